"""Tiny real-mode programs as bytes, and a bare VM on the real KVM that runs them; for tests of running vCPUs."""

from __future__ import annotations

import mmap
import os
import struct

from sev.abi import kvm, kvm_vcpu
from sev.launch.linux import LinuxKernel
from sev.launch.vcpu import Vcpu

LOAD = 0x1000
"""Where the programs stand: below 64 KiB, in segment 0."""

RAM = 0x10000

HLT = b"\xf4"
FOREVER = b"\xeb\xfe"
TRIPLE_FAULT = bytes.fromhex("e80000 5e 0f015c15 0f20c0 0c01 0f22c0 eb00 b8ff00 8ed8 f4") + bytes(8)
"""call next; next: pop si; lidt [si + 0x15], which are zeros; protected mode; mov ds, 0xff, which is no segment: no
handler can be found, nor one for that."""


def out(port: int, value: int) -> bytes:
    """mov dx, port; mov al, value; out dx, al."""
    return b"\xba" + struct.pack("<H", port) + b"\xb0" + bytes([value]) + b"\xee"


def outs(port: int, at: int, length: int) -> bytes:
    """cld; mov dx, port; mov si, at; mov cx, length; rep outsb."""
    return (
        b"\xfc\xba"
        + struct.pack("<H", port)
        + b"\xbe"
        + struct.pack("<H", at)
        + b"\xb9"
        + struct.pack("<H", length)
        + b"\xf3\x6e"
    )


def read(port: int) -> bytes:
    """mov dx, port; in al, dx."""
    return b"\xba" + struct.pack("<H", port) + b"\xec"


def reads(port: int, at: int, length: int) -> bytes:
    """cld; mov dx, port; mov di, at; mov cx, length; rep insb (es is 0)."""
    return (
        b"\xfc\xba"
        + struct.pack("<H", port)
        + b"\xbf"
        + struct.pack("<H", at)
        + b"\xb9"
        + struct.pack("<H", length)
        + b"\xf3\x6c"
    )


def echo(port: int) -> bytes:
    """mov dx, port; out dx, al."""
    return b"\xba" + struct.pack("<H", port) + b"\xee"


def store(segment: int, offset: int, value: int) -> bytes:
    """mov bx, segment; mov ds, bx; mov byte [offset], value."""
    return b"\xbb" + struct.pack("<H", segment) + b"\x8e\xdb\xc6\x06" + struct.pack("<HB", offset, value)


def fetch(segment: int, offset: int) -> bytes:
    """mov bx, segment; mov ds, bx; mov al, [offset]."""
    return b"\xbb" + struct.pack("<H", segment) + b"\x8e\xdb\xa0" + struct.pack("<H", offset)


def text(port: int, words: bytes) -> bytes:
    """Every byte of a text out of a port."""
    return b"".join(out(port, byte) for byte in words)


def counter(port: int) -> bytes:
    """mov dx, port; loop: out dx, al; inc al; jmp loop: writes without end."""
    return b"\xba" + struct.pack("<H", port) + b"\xee\xfe\xc0\xeb\xfb"


class Bare:
    """A VM with 64 KiB and one vCPU in real mode, at LOAD; close it."""

    def __init__(self, program: bytes, *, hypercalls: bool = False) -> None:
        self.kernel = LinuxKernel()
        self.device = self.kernel.open("/dev/kvm", os.O_RDWR)
        self.vm = self.kernel.ioctl(self.device, kvm.KVM_CREATE_VM, 0)
        self.ram = mmap.mmap(-1, RAM)
        self.ram[LOAD : LOAD + len(program)] = program
        address = self.kernel.memory.place(memoryview(self.ram))
        self._ask(self.vm, kvm.KVM_SET_USER_MEMORY_REGION, kvm.UserMemoryRegion(0, 0, 0, RAM, address).encode())
        if hypercalls:
            bits = 1 << kvm.HC_MAP_GPA_RANGE
            self._ask(self.vm, kvm.KVM_ENABLE_CAP, kvm.EnableCap(kvm.CAP_EXIT_HYPERCALL, arg0=bits).encode())
        self.mmap_size = self.kernel.ioctl(self.device, kvm.KVM_GET_VCPU_MMAP_SIZE)
        self.vcpus: list[Vcpu] = []
        self.fds: list[int] = []

    def vcpu(self) -> Vcpu:
        """One more vCPU, at the program's start."""
        fd = self.kernel.ioctl(self.vm, kvm.KVM_CREATE_VCPU, len(self.fds))
        self.fds.append(fd)
        state = bytearray(kvm_vcpu.Sregs.size())
        address = self.kernel.memory.place(state)
        self.kernel.ioctl(fd, kvm.KVM_GET_SREGS, address)
        struct.pack_into("<QIH", state, 0, 0, 0xFFFF, 0)  # cs: base 0, selector 0
        self.kernel.ioctl(fd, kvm.KVM_SET_SREGS, address)
        self.kernel.memory.release(address)
        self._ask(fd, kvm.KVM_SET_REGS, kvm_vcpu.Regs(rip=LOAD, rflags=2, rsp=0x7000).encode())
        self.vcpus.append(Vcpu(self.kernel, fd, self.mmap_size))
        return self.vcpus[-1]

    def close(self) -> None:
        for vcpu in self.vcpus:
            vcpu.close()
        self.kernel.exit()
        for fd in (*self.fds, self.vm):
            os.close(fd)

    def _ask(self, fd: int, request: int, structure: bytes) -> None:
        address = self.kernel.memory.place(structure)
        self.kernel.ioctl(fd, request, address)
        self.kernel.memory.release(address)


def firmware(program: bytes, size: int = RAM) -> bytes:
    """A firmware image of which the boot vCPU runs this program: it stands 64 KiB below 4 GiB, and the reset vector
    jumps there. Data segments start at 0."""
    image = bytearray(size)
    image[size - RAM : size - RAM + len(program)] = program
    image[-16:-13] = b"\xe9\x0d\x00"  # jmp: from 0xfff3 by 0xd, around the segment's end
    return bytes(image)
