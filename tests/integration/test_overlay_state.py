"""A real vCPU takes on the state of a save area, register by register; and no more CPUID than its processor has."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from sev.abi import kvm, kvm_vcpu, vmsa
from sev.abi.kvm_vcpu import CpuidEntry, Fpu, MsrEntry, Regs, Sregs
from sev.errors import MalformedInput
from sev.launch import reset_state
from sev.launch.linux import LinuxKernel
from sevd.simulator import overlay_state, vcpu_state
from tests.support.needs import need_kvm


class RealVcpu(NamedTuple):
    """A vCPU of the real KVM."""

    kernel: LinuxKernel
    device: int
    fd: int

    def get(self, request: int, size: int, before: bytes = b"") -> bytes:
        """What an ioctl writes into a structure."""
        buffer = bytearray(before or bytes(size))
        address = self.kernel.memory.place(buffer)
        self.kernel.ioctl(self.fd, request, address)
        self.kernel.memory.release(address)
        return bytes(buffer)


@pytest.fixture
def vcpu() -> Iterator[RealVcpu]:
    need_kvm()
    kernel = LinuxKernel()
    device = kernel.open("/dev/kvm", os.O_RDWR)
    vm = kernel.ioctl(device, kvm.KVM_CREATE_VM, 0)
    fd = kernel.ioctl(vm, kvm.KVM_CREATE_VCPU, 0)
    yield RealVcpu(kernel, device, fd)
    for one in (fd, vm):
        os.close(one)
    kernel.exit()


REGISTERS = {name: 0x1111_0000_0000_0000 + index * 0x0101 for index, name in enumerate(Regs.fields())} | {"rflags": 2}


def page_of(start: int, **more: int) -> bytes:
    """The save area that KVM makes of QEMU's reset state, with other values in some registers."""
    reset = vcpu_state.after_reset(True)
    state = vcpu_state.VcpuState(
        vcpu_state.regs_of(reset_state.regs(start, 0x00A20F12).encode()),
        vcpu_state.sregs_of(reset_state.sregs(start, 0xFEE00900)),
        vcpu_state.fpu_of(reset_state.FPU.encode()),
        reset.debug,
        reset.msrs,
    )
    page = bytearray(vcpu_state.save_area(state, 1))
    for name, value in more.items():
        vmsa.store(page, name.replace("__", "."), value)
    return bytes(page)


@pytest.mark.parametrize("start", [0xFFFFFFF0, 0x80B004])
def test_the_reset_state_arrives(vcpu: RealVcpu, start: int) -> None:
    overlay_state.apply(vcpu.kernel, vcpu.fd, page_of(start))
    sregs = Sregs.decode(vcpu.get(kvm.KVM_GET_SREGS, Sregs.size()))
    regs = Regs.decode(vcpu.get(kvm.KVM_GET_REGS, Regs.size()))
    assert (sregs.cs.base + regs.rip, sregs.cs.selector, sregs.cs.type) == (start, 0xF000, 0xB)
    assert (regs.rdx, regs.rflags) == (0x00A20F12, 2)
    assert (sregs.cr0, sregs.efer) == (0x10, 0)
    fpu = Fpu.decode(vcpu.get(kvm.KVM_GET_FPU, Fpu.size()))
    assert fpu.fcw == 0x37F


def test_every_register_arrives(vcpu: RealVcpu) -> None:
    changed = {name: value for name, value in REGISTERS.items() if name != "rip"}
    page = bytearray(page_of(0xFFFFFFF0, **changed, cr2=0x1234000, cr3=0x5000, sysenter_eip=0x77, star=0x99 << 32))
    for segment in ("es", "ss", "ds", "fs", "gs"):
        vmsa.store(page, f"{segment}.base", 0x10000 * len(segment) + ord(segment[0]))
        vmsa.store(page, f"{segment}.limit", 0xFFF)
    vmsa.store(page, "gdtr.base", 0xABC000)
    vmsa.store(page, "idtr.limit", 0x3FF)
    page[0x470:0x570] = bytes(range(256))
    page[0x420:0x42A] = b"0123456789"
    overlay_state.apply(vcpu.kernel, vcpu.fd, bytes(page))
    regs = Regs.decode(vcpu.get(kvm.KVM_GET_REGS, Regs.size()))
    assert {name: getattr(regs, name) for name in changed} == changed
    sregs = Sregs.decode(vcpu.get(kvm.KVM_GET_SREGS, Sregs.size()))
    for segment in ("es", "ss", "ds", "fs", "gs"):
        found = getattr(sregs, segment)
        assert (found.base, found.limit) == (0x10000 * len(segment) + ord(segment[0]), 0xFFF)
    assert (sregs.cr2, sregs.cr3, sregs.gdt.base, sregs.idt.limit) == (0x1234000, 0x5000, 0xABC000, 0x3FF)
    fpu = Fpu.decode(vcpu.get(kvm.KVM_GET_FPU, Fpu.size()))
    assert (fpu.xmm, fpu.fpr[:16]) == (bytes(range(256)), b"0123456789" + bytes(6))
    asked = kvm_vcpu.encode_list((MsrEntry(0x176), MsrEntry(0xC0000081), MsrEntry(kvm_vcpu.MSR_IA32_PAT)))
    told = vcpu.get(kvm.KVM_GET_MSRS, len(asked), asked)
    values = [int.from_bytes(told[8 + 16 * at + 8 : 8 + 16 * at + 16], "little") for at in range(3)]
    assert values == [0x77, 0x99 << 32, kvm_vcpu.PAT_RESET]


def test_what_is_no_save_area_is_refused(vcpu: RealVcpu) -> None:
    with pytest.raises(MalformedInput, match="4096"):
        overlay_state.apply(vcpu.kernel, vcpu.fd, b"short")


class Picky(LinuxKernel):
    """A processor that has not all of the simulated one's features: the first CPUID is refused."""

    refusals = 1

    def ioctl(self, fd: int, request: int, argument: int = 0) -> int:
        if request == kvm.KVM_SET_CPUID2 and self.refusals:
            self.refusals -= 1
            raise OSError(errno.EINVAL, "no such features")
        return super().ioctl(fd, request, argument)


WANTED = (
    CpuidEntry(0, 0, 0, 0x10, 0x68747541, 0x444D4163, 0x69746E65),
    CpuidEntry(1, 0, 0, 0x00A20F12, 0x800, 0xFFFFFFFF, 0xFFFFFFFF),
    CpuidEntry(7, 0, 1, 0, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
    CpuidEntry(0xD, 1, 1, 1, 2, 3, 4),
    CpuidEntry(0x80000008, 0, 0, 0x3939, 0, 0, 0),
    CpuidEntry(0x8000001F, 0, 0, 0x1E, 0x33, 0, 0),
)


def test_a_processor_with_fewer_features_gives_those_it_has(vcpu: RealVcpu, caplog: pytest.LogCaptureFixture) -> None:
    kernel = Picky()
    address = kernel.memory.place(kvm_vcpu.encode_list(WANTED))
    overlay_state.set_cpuid(kernel, vcpu.device, vcpu.fd, address)
    kernel.memory.release(address)
    assert "not all features" in caplog.text
    told = kvm_vcpu.decode_cpuid(vcpu.get(kvm.KVM_GET_CPUID2, 0, bytes(kvm_vcpu.empty_cpuid())))
    assert [entry.eax for entry in told if entry.function == 1] == [0x00A20F12]


def test_no_leaf_says_more_than_the_processor() -> None:
    offered = [
        CpuidEntry(1, 0, 0, 0x800F12, 0x5, 0x11, 0x22),
        CpuidEntry(7, 0, 1, 2, 0x33, 0x44, 0x55),
        CpuidEntry(0x80000008, 0, 0, 0x3030, 1, 2, 3),
    ]
    assert overlay_state.common(WANTED, offered) == [
        WANTED[0],
        CpuidEntry(1, 0, 0, 0x00A20F12, 0x800, 0x11, 0x22),
        CpuidEntry(7, 0, 1, 0, 0x33, 0x44, 0x55),
        offered[2],
        WANTED[5],
    ]


def test_other_refusals_of_cpuid_are_told(vcpu: RealVcpu) -> None:
    address = vcpu.kernel.memory.place(kvm_vcpu.encode_list(()))
    with pytest.raises(OSError, match="Bad file descriptor"):
        overlay_state.set_cpuid(vcpu.kernel, vcpu.device, 999_999, address)
    vcpu.kernel.memory.release(address)
