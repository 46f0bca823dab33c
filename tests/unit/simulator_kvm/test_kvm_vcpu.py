"""The vCPU ioctls of the modelled KVM: registers, MSRs, and what of them reaches the save area."""

from __future__ import annotations

import errno
import struct
from dataclasses import replace

import pytest

from sev.abi import kvm, kvm_sev, kvm_vcpu, vmsa
from sevd.simulator.process import Process
from tests.support.caller import PAGE, Machine, attempt, code

UNMAPPED = 0x1000


def get(process: Process, fd: int, request: int, size: int) -> bytes:
    buffer = bytearray(size)
    process.ioctl(fd, request, process.memory.place(buffer))
    return bytes(buffer)


def test_reset_state(machine: Machine) -> None:
    process, fd, ap = machine.process, machine.vcpu(0), machine.vcpu(1)
    regs = kvm_vcpu.Regs.decode(get(process, fd, kvm.KVM_GET_REGS, 144))
    assert regs == kvm_vcpu.Regs(rdx=0x600, rip=0xFFF0, rflags=2)
    sregs = kvm_vcpu.Sregs.decode(get(process, fd, kvm.KVM_GET_SREGS, 312))
    assert (sregs.cs.base, sregs.cs.selector, sregs.cs.type) == (0xFFFF0000, 0xF000, 0xA)
    assert (sregs.ds.type, sregs.ss.type, sregs.tr.type, sregs.ldt.type) == (3, 2, 3, 2)
    assert (sregs.cr0, sregs.cr4, sregs.efer, sregs.apic_base) == (0x60000010, 0, 0, 0xFEE00900)
    assert kvm_vcpu.Sregs.decode(get(process, ap, kvm.KVM_GET_SREGS, 312)).apic_base == 0xFEE00800
    fpu = kvm_vcpu.Fpu.decode(get(process, fd, kvm.KVM_GET_FPU, 416))
    assert (fpu.fcw, fpu.mxcsr) == (0x37F, 0)
    debug = kvm_vcpu.DebugRegs.decode(get(process, fd, kvm.KVM_GET_DEBUGREGS, 128))
    assert (debug.dr6, debug.dr7) == (0xFFFF0FF0, 0x400)


def test_state_comes_back_as_set(machine: Machine) -> None:
    process, fd = machine.process, machine.vcpu(0)
    regs = kvm_vcpu.Regs(rax=1, r15=2, rip=3, rflags=0)
    assert code(process, fd, kvm.KVM_SET_REGS, regs) == "ok"
    assert kvm_vcpu.Regs.decode(get(process, fd, kvm.KVM_GET_REGS, 144)) == replace(regs, rflags=2)
    fpu = kvm_vcpu.Fpu(fcw=0x40, last_ip=7, xmm=bytes(range(256)), mxcsr=0x1F00)
    assert code(process, fd, kvm.KVM_SET_FPU, fpu) == "ok"
    assert kvm_vcpu.Fpu.decode(get(process, fd, kvm.KVM_GET_FPU, 416)) == replace(fpu, mxcsr=0)
    sregs = kvm_vcpu.Sregs.decode(get(process, fd, kvm.KVM_GET_SREGS, 312))
    assert code(process, fd, kvm.KVM_SET_SREGS, replace(sregs, cr3=PAGE)) == "ok"
    assert kvm_vcpu.Sregs.decode(get(process, fd, kvm.KVM_GET_SREGS, 312)).cr3 == PAGE
    cpuid = kvm_vcpu.encode_list([kvm_vcpu.CpuidEntry(1, 0, 0, 2, 3, 4, 5)])
    assert code(process, fd, kvm.KVM_SET_CPUID2, cpuid) == "ok"
    buffer = kvm_vcpu.empty_cpuid(4)
    process.ioctl(fd, kvm.KVM_GET_CPUID2, process.memory.place(buffer))
    assert kvm_vcpu.decode_cpuid(buffer)[0].edx == 5
    assert code(process, fd, kvm.KVM_GET_CPUID2, kvm_vcpu.empty_cpuid(0)) == "E2BIG"


@pytest.mark.parametrize(
    "changes",
    [
        {"cr0": 1 << 32},
        {"cr4": 1 << 32},
        {"cr0": 1 << 29},
        {"cr0": 1 << 31},
        {"efer": 1 << 10},
        {"cr0": 0x80000011, "efer": 1 << 8},
        {"cs": kvm_vcpu.Segment(l=1)},
    ],
    ids=[
        "high cr0",
        "high cr4",
        "NW without CD",
        "paging unprotected",
        "LMA alone",
        "long mode half on",
        "64-bit code",
    ],
)
def test_impossible_sregs_are_einval(machine: Machine, changes: dict[str, int]) -> None:
    process, fd = machine.process, machine.vcpu(0)
    sregs = kvm_vcpu.Sregs.decode(get(process, fd, kvm.KVM_GET_SREGS, 312))
    assert code(process, fd, kvm.KVM_SET_SREGS, replace(sregs, **changes)) == "EINVAL"  # type: ignore[arg-type]


def test_long_mode_sregs_are_taken(machine: Machine) -> None:
    process, fd = machine.process, machine.vcpu(0)
    sregs = kvm_vcpu.Sregs.decode(get(process, fd, kvm.KVM_GET_SREGS, 312))
    long_mode = replace(sregs, cr0=0x80000011, cr4=1 << 5, efer=0x500, cs=kvm_vcpu.Segment(l=1))
    assert code(process, fd, kvm.KVM_SET_SREGS, long_mode) == "ok"


def test_msrs_stop_at_the_first_unknown(machine: Machine) -> None:
    process, fd = machine.process, machine.vcpu(0)

    def run(request: int, *entries: kvm_vcpu.MsrEntry) -> tuple[int, bytes]:
        buffer = bytearray(kvm_vcpu.encode_list(entries))
        return attempt(process, fd, request, process.memory.place(buffer))[1], bytes(buffer)

    pat, star, unknown = kvm_vcpu.MSR_IA32_PAT, 0xC0000081, 0x12345678
    assert run(kvm.KVM_SET_MSRS)[0] == 0
    sets = (kvm_vcpu.MsrEntry(star, 5), kvm_vcpu.MsrEntry(unknown, 1), kvm_vcpu.MsrEntry(pat, 0x0606060606060606))
    assert run(kvm.KVM_SET_MSRS, *sets)[0] == 1
    count, data = run(kvm.KVM_GET_MSRS, kvm_vcpu.MsrEntry(star), kvm_vcpu.MsrEntry(pat), kvm_vcpu.MsrEntry(unknown))
    assert count == 2
    assert struct.unpack_from("<Q", data, 16)[0] == 5
    assert struct.unpack_from("<Q", data, 32)[0] == kvm_vcpu.PAT_RESET
    assert run(kvm.KVM_SET_MSRS, kvm_vcpu.MsrEntry(pat, 2))[0] == 0  # no such memory type
    assert run(kvm.KVM_SET_MSRS, kvm_vcpu.MsrEntry(0xC0000103, 1 << 32))[0] == 0
    many = bytearray(struct.pack("<II", 256, 0))
    assert code(process, fd, kvm.KVM_SET_MSRS, many) == "E2BIG"
    assert code(process, fd, kvm.KVM_SET_MSRS, bytearray(struct.pack("<II", 2, 0))) == "EFAULT"


def test_debug_registers(machine: Machine) -> None:
    process, fd = machine.process, machine.vcpu(0)
    for wrong in (kvm_vcpu.DebugRegs(flags=1), kvm_vcpu.DebugRegs(dr6=1 << 32), kvm_vcpu.DebugRegs(dr7=1 << 32)):
        assert code(process, fd, kvm.KVM_SET_DEBUGREGS, wrong) == "EINVAL"
    assert code(process, fd, kvm.KVM_SET_DEBUGREGS, kvm_vcpu.DebugRegs(dr7=0x401)) == "ok"


def test_other_vcpu_ioctls(machine: Machine) -> None:
    process, fd = machine.process, machine.vcpu(0)
    assert code(process, fd, 0xAEFF) == "EINVAL"
    assert code(process, fd, kvm.KVM_RUN, 1) == "EINVAL"
    assert code(process, fd, kvm.KVM_RUN) == "EINVAL"  # INIT2 is missing
    assert code(process, fd, kvm.KVM_SET_CPUID2, bytearray(struct.pack("<II", 257, 0))) == "E2BIG"
    for request in (kvm.KVM_GET_REGS, kvm.KVM_SET_SREGS, kvm.KVM_GET_FPU, kvm.KVM_SET_MSRS, kvm.KVM_SET_CPUID2):
        assert code(process, fd, request, UNMAPPED) == "EFAULT"


def test_no_guest_code_runs(plain: Machine) -> None:
    assert code(plain.process, plain.vcpu(0), kvm.KVM_RUN) == errno.errorcode[errno.EOPNOTSUPP]


def test_every_set_register_reaches_the_save_area(machine: Machine) -> None:
    process, fd = machine.process, machine.vcpu(0)
    names = kvm_vcpu.Regs.fields()
    regs = kvm_vcpu.Regs(**{name: 0x1000 + index for index, name in enumerate(names)})
    sregs = replace(
        kvm_vcpu.Sregs.decode(get(process, fd, kvm.KVM_GET_SREGS, 312)),
        fs=kvm_vcpu.Segment(base=9, limit=8, selector=7, type=5, dpl=3, db=1, l=0, g=1, avl=1),
        gs=kvm_vcpu.Segment(unusable=1, s=0),
        gdt=kvm_vcpu.DescriptorTable(11, 12),
        cr2=13,
        cr3=PAGE,
        cr4=1 << 5,
    )
    fpu = kvm_vcpu.Fpu(
        fpr=bytes(range(128)), fcw=1, fsw=2, ftwx=3, last_opcode=4, last_ip=5, last_dp=6, xmm=b"\7" * 256
    )
    msrs = kvm_vcpu.encode_list([kvm_vcpu.MsrEntry(0xC0000081, 21), kvm_vcpu.MsrEntry(0xC0000103, 22)])
    for request, value in (
        (kvm.KVM_SET_REGS, regs.encode()),
        (kvm.KVM_SET_SREGS, sregs.encode()),
        (kvm.KVM_SET_FPU, fpu.encode()),
        (kvm.KVM_SET_MSRS, msrs),
    ):
        assert code(process, fd, request, value) == "ok"
    file = process.take(fd)
    page = file.vcpu.vmsa(kvm_sev.VMSA_SNP_ACTIVE)  # type: ignore[attr-defined]
    file.drop()
    found = vmsa.parse(bytes(page))
    for name in names:
        if name != "rflags":
            assert found[name] == getattr(regs, name)
    assert found["rflags"] == regs.rflags | 2
    assert found["fs"] == (7, 0x5 | 1 << 4 | 3 << 5 | 1 << 7 | 1 << 8 | 1 << 10 | 1 << 11, 8, 9)
    assert found["gs"] == (0, 0, 0xFFFF, 0)  # not present
    assert found["gdtr"] == (0, 0, 12, 11)
    assert (found["cr2"], found["cr3"], found["cr4"]) == (13, PAGE, 1 << 5 | 1 << 6)
    assert (found["star"], found["tsc_aux"], found["g_pat"]) == (21, 22, kvm_vcpu.PAT_RESET)
    assert (found["x87_fcw"], found["x87_fsw"], found["x87_ftw"], found["x87_fop"], found["x87_rip"]) == (1, 2, 3, 4, 5)
    assert (found["mxcsr"], found["xcr0"], found["efer"], found["cr0"]) == (0x1F80, 1, 0x1000, 0x10)
    assert page[0x400:0x408] == (6).to_bytes(8, "little")
    assert page[0x420:0x42A] == bytes(range(10))
    assert page[0x42A:0x434] == bytes(range(16, 26))
    assert page[0x470:0x570] == b"\7" * 256
