"""The state that vCPUs have on the real KVM is the state that is measured: read back, made into the page that KVM
would measure, and compared with what `sev measure snp --vmm qemu` expects."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from sev.abi import kvm, kvm_vcpu
from sev.launch.linux import LinuxKernel
from sev.launch.plain import Plain
from sev.measurement.plan import snp_plan
from sev.measurement.sample import sample_firmware
from sev.measurement.vcpu_types import signature
from sevd.simulator import vcpu_state
from tests.support.needs import need_kvm

TYPE = "EPYC-v4"
VCPUS = 3


@pytest.fixture
def kernel() -> Iterator[LinuxKernel]:
    need_kvm()
    kernel = LinuxKernel()
    yield kernel
    kernel.exit()


def read(kernel: LinuxKernel, fd: int, request: int, size: int, start: bytes = b"") -> bytes:
    buffer = bytearray(start.ljust(size, b"\0"))
    address = kernel.memory.place(buffer)
    try:
        kernel.ioctl(fd, request, address)
    finally:
        kernel.memory.release(address)
    return bytes(buffer)


def state_of(kernel: LinuxKernel, fd: int) -> vcpu_state.VcpuState:
    pat = read(kernel, fd, kvm.KVM_GET_MSRS, 24, struct.pack("<IIIIQ", 1, 0, kvm_vcpu.MSR_IA32_PAT, 0, 0))
    (value,) = struct.unpack_from("<Q", pat, 16)
    return vcpu_state.VcpuState(
        regs=kvm_vcpu.Regs.decode(read(kernel, fd, kvm.KVM_GET_REGS, 144)),
        sregs=kvm_vcpu.Sregs.decode(read(kernel, fd, kvm.KVM_GET_SREGS, 312)),
        fpu=kvm_vcpu.Fpu.decode(read(kernel, fd, kvm.KVM_GET_FPU, 416)),
        debug=kvm_vcpu.DebugRegs.decode(read(kernel, fd, kvm.KVM_GET_DEBUGREGS, 128)),
        msrs=tuple(value if number == kvm_vcpu.MSR_IA32_PAT else 0 for number in vcpu_state.MSRS),
    )


def test_real_vcpus_have_the_state_that_is_measured(kernel: LinuxKernel) -> None:
    plan = snp_plan(sample_firmware(), VCPUS, vcpu_type=TYPE)
    guest = Plain(kernel)
    guest.create(1 << 20, 1 << 16, VCPUS, signature(TYPE), plan.ap_reset_address)
    try:
        pages = [vcpu_state.save_area(state_of(kernel, fd), 1) for fd in guest.machine.vcpu_fds]
    finally:
        guest.close()
    assert len(pages) == len(plan.vmsas)
    for index, (page, expected) in enumerate(zip(pages, plan.vmsas, strict=True)):
        different = [at for at in range(4096) if page[at] != expected[at]]
        assert different == [], f"vCPU {index}: bytes {[hex(at) for at in different[:16]]}"
