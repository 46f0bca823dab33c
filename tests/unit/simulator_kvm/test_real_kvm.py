"""The simulated KVM against the real one, where there is one: what has nothing to do with SEV must be the same."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable

import pytest

from sev.abi import kvm, kvm_vcpu
from sev.launch.linux import LinuxKernel
from sevd.simulator.process import Process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sev.launch.seam import Kernel

PAGE = 4096


class Probe:
    """One kernel, asked by raw ioctls."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.device = kernel.open("/dev/kvm", os.O_RDWR)
        self.vm = kernel.ioctl(self.device, kvm.KVM_CREATE_VM, 0)
        self.vcpu = kernel.ioctl(self.vm, kvm.KVM_CREATE_VCPU, 0)
        self.page = kernel.memory.place(bytes(2 * PAGE))

    def ask(self, fd: int, request: int, argument: int | bytes = 0) -> int | str:
        address = self.kernel.memory.place(argument) if isinstance(argument, bytes) else argument
        try:
            return self.kernel.ioctl(fd, request, address)
        except OSError as refused:
            return errno.errorcode[refused.errno or 0]
        finally:
            if isinstance(argument, bytes):
                self.kernel.memory.release(address)

    def region(self, slot: int, flags: int, gpa: int, size: int, at: int | None = None) -> int | str:
        address = self.page if at is None else at
        return self.ask(
            self.vm, kvm.KVM_SET_USER_MEMORY_REGION, kvm.UserMemoryRegion(slot, flags, gpa, size, address).encode()
        )


def cpuid(count: int) -> bytes:
    return struct.pack("<II", count, 0) + bytes(40 * min(count, 300))


QUESTIONS: dict[str, Callable[[Probe], object]] = {
    "unknown system ioctl": lambda p: p.ask(p.device, 0xAEFF),
    "ioctl of another kind": lambda p: p.ask(p.device, 0x5300),
    "version": lambda p: p.ask(p.device, kvm.KVM_GET_API_VERSION),
    "version with argument": lambda p: p.ask(p.device, kvm.KVM_GET_API_VERSION, 1),
    "mmap size": lambda p: p.ask(p.device, kvm.KVM_GET_VCPU_MMAP_SIZE),
    "mmap size with argument": lambda p: p.ask(p.device, kvm.KVM_GET_VCPU_MMAP_SIZE, 1),
    "memory slots": lambda p: p.ask(p.device, kvm.KVM_CHECK_EXTENSION, kvm.CAP_NR_MEMSLOTS),
    "hypercall exits": lambda p: p.ask(p.device, kvm.KVM_CHECK_EXTENSION, kvm.CAP_EXIT_HYPERCALL),
    "unknown capability": lambda p: p.ask(p.device, kvm.KVM_CHECK_EXTENSION, 99999),
    "bad vm type": lambda p: p.ask(p.device, kvm.KVM_CREATE_VM, 77),
    "no room for cpuid": lambda p: [p.ask(p.device, kvm.KVM_GET_SUPPORTED_CPUID, cpuid(n)) for n in (0, 1, 10)],
    "unknown attribute": lambda p: p.ask(p.device, kvm.KVM_GET_DEVICE_ATTR, kvm.DeviceAttr(0, 1, 7, 0).encode()),
    "attribute to nowhere": lambda p: p.ask(p.device, kvm.KVM_GET_DEVICE_ATTR, kvm.DeviceAttr(0, 0, 0, 0).encode()),
    "attribute with flags": lambda p: p.ask(p.device, kvm.KVM_HAS_DEVICE_ATTR, kvm.DeviceAttr(1, 0, 0, 0).encode()),
    "unknown vm ioctl": lambda p: p.ask(p.vm, 0xAEFF),
    "unknown vcpu ioctl": lambda p: p.ask(p.vcpu, 0xAEFF),
    "system ioctl on a vcpu": lambda p: p.ask(p.vcpu, kvm.KVM_GET_API_VERSION),
    "vcpu again": lambda p: p.ask(p.vm, kvm.KVM_CREATE_VCPU, 0),
    "vcpu id too high": lambda p: p.ask(p.vm, kvm.KVM_CREATE_VCPU, 4096),
    "run with argument": lambda p: p.ask(p.vcpu, kvm.KVM_RUN, 1),
    "hypercall capability": lambda p: [
        p.ask(p.vm, kvm.KVM_ENABLE_CAP, kvm.EnableCap(kvm.CAP_EXIT_HYPERCALL, flags, argument).encode())
        for flags, argument in ((0, 0), (0, 4096), (0, 1), (1, 4096))
    ],
    "capability that is none": lambda p: p.ask(p.vm, kvm.KVM_ENABLE_CAP, kvm.EnableCap(9999).encode()),
    "encryption probe": lambda p: p.ask(p.vm, kvm.KVM_CHECK_EXTENSION, kvm.CAP_USER_MEMORY),
    "deleting nothing": lambda p: p.region(9, 0, 0, 0),
    "unaligned guest address": lambda p: p.region(0, 0, 1, PAGE),
    "unaligned size": lambda p: p.region(0, 0, 0, PAGE + 1),
    "unaligned address": lambda p: p.region(0, 0, 0, PAGE, p.page + 1),
    "kernel address": lambda p: p.region(0, 0, 0, PAGE, 1 << 63),
    "memfd flag in the old form": lambda p: p.region(0, 4, 0, PAGE),
    "slots": lambda p: [
        p.region(0, 0, 0, PAGE), p.region(1, 0, 0, PAGE), p.region(0, 0, 0, 2 * PAGE), p.region(0, 2, 0, PAGE),
        p.region(0, 0, 1 << 20, PAGE), p.region(1, 0, 0, PAGE), p.region(0, 0, 0, PAGE), p.region(0, 0, 0, 0),
        p.region(32763, 0, 1 << 30, PAGE), p.region(32764, 0, 1 << 31, PAGE), p.region(40000, 0, 1 << 31, PAGE),
    ],
    "guest_memfd sizes": lambda p: [
        p.ask(p.vm, kvm.KVM_CREATE_GUEST_MEMFD, kvm.CreateGuestMemfd(size, flags).encode())
        for size, flags in ((0, 0), (1, 0), (1 << 63, 0), (PAGE, 1 << 40))
    ],
    "regs": lambda p: read(p, kvm.KVM_GET_REGS, 144),
    "fpu": lambda p: kvm_vcpu.Fpu.decode(read(p, kvm.KVM_GET_FPU, 416)).fcw,
    "mxcsr in fpu": lambda p: (p.ask(p.vcpu, kvm.KVM_SET_FPU, kvm_vcpu.Fpu(mxcsr=0x1F00).encode()), read(p, kvm.KVM_GET_FPU, 416)[408:412]),
    "reset control registers": lambda p: read(p, kvm.KVM_GET_SREGS, 312)[224:272],
    "rflags bit 1": lambda p: (p.ask(p.vcpu, kvm.KVM_SET_REGS, bytes(144)), read(p, kvm.KVM_GET_REGS, 144)[136:]),
    "sregs out of order": lambda p: [
        p.ask(p.vcpu, kvm.KVM_SET_SREGS, changed(read(p, kvm.KVM_GET_SREGS, 312), cr0, cr4, efer))
        for cr0, cr4, efer in (
            (1 << 32, 0, 0), (1 << 29, 0, 0), (1 << 31, 0, 0), (0x60000010, 0, 1 << 10), (0x80000011, 0, 0x500),
            (0x60000010, 0, 0),
        )
    ],
    "too many msrs": lambda p: p.ask(p.vcpu, kvm.KVM_SET_MSRS, struct.pack("<II", 256, 0) + bytes(4096)),
    "no msrs": lambda p: p.ask(p.vcpu, kvm.KVM_SET_MSRS, struct.pack("<II", 0, 0)),
    "pat": lambda p: read(p, kvm.KVM_GET_MSRS, 24, struct.pack("<IIIIQ", 1, 0, 0x277, 0, 0))[16:],
    "too many cpuid entries": lambda p: p.ask(p.vcpu, kvm.KVM_SET_CPUID2, struct.pack("<II", 257, 0) + bytes(12000)),
    "debug registers": lambda p: [
        p.ask(p.vcpu, kvm.KVM_SET_DEBUGREGS, kvm_vcpu.DebugRegs(dr6=dr6, dr7=dr7, flags=flags).encode())
        for dr6, dr7, flags in ((0, 0x400, 1), (1 << 32, 0x400, 0), (0, 1 << 32, 0), (0xFFFF0FF0, 0x400, 0))
    ],
    "faults": lambda p: [p.ask(p.vcpu, n, 8) for n in (kvm.KVM_GET_REGS, kvm.KVM_SET_SREGS, kvm.KVM_GET_FPU)],
}  # fmt: skip


def read(probe: Probe, request: int, size: int, start: bytes = b"") -> bytes:
    buffer = bytearray(start.ljust(size, b"\0"))
    address = probe.kernel.memory.place(buffer)
    probe.kernel.ioctl(probe.vcpu, request, address)
    out = probe.kernel.memory.read(address, size)
    probe.kernel.memory.release(address)
    return out


def changed(sregs: bytes, cr0: int, cr4: int, efer: int) -> bytes:
    out = bytearray(sregs)
    for offset, value in ((224, cr0), (248, cr4), (264, efer)):
        struct.pack_into("<Q", out, offset, value)
    return bytes(out)


@pytest.mark.skipif(not os.access("/dev/kvm", os.R_OK | os.W_OK), reason="no /dev/kvm here")
@pytest.mark.parametrize("question", QUESTIONS.values(), ids=QUESTIONS)
def test_both_kernels_answer_alike(process: Process, question: Callable[[Probe], object]) -> None:
    real = LinuxKernel()
    try:
        theirs = question(Probe(real))
    finally:
        real.exit()
    assert question(Probe(process)) == theirs
