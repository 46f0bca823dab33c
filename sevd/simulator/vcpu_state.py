"""The state of a simulated vCPU, what KVM accepts as one, and the save area (VMSA) that KVM makes of it.

The state after reset is KVM's own (init_vmcb and kvm_vcpu_reset of arch/x86/kvm); what QEMU sets on top of it is the
launch driver's affair.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from sev.abi import kvm_vcpu, vmsa
from sev.abi.kvm_vcpu import DebugRegs, DescriptorTable, Fpu, Regs, Segment, Sregs

CR0_PE, CR0_NW, CR0_CD, CR0_PG = 1 << 0, 1 << 29, 1 << 30, 1 << 31
CR4_PAE, CR4_MCE = 1 << 5, 1 << 6
EFER_LME, EFER_LMA, EFER_SVME = 1 << 8, 1 << 10, 1 << 12
DR6_RESET, DR7_RESET = 0xFFFF0FF0, 0x400
MXCSR_RESET = 0x1F80
APIC_BASE_RESET, APIC_BSP = 0xFEE00800, 1 << 8
PAT_TYPES = frozenset({0, 1, 4, 5, 6, 7})

MSRS = {
    0x174: "sysenter_cs", 0x175: "sysenter_esp", 0x176: "sysenter_eip", 0x1D9: "dbgctl",
    kvm_vcpu.MSR_IA32_PAT: "g_pat", 0xDA0: "xss", 0xC0000081: "star", 0xC0000082: "lstar", 0xC0000083: "cstar",
    0xC0000084: "sfmask", 0xC0000102: "kernel_gs_base", 0xC0000103: "tsc_aux",
}  # fmt: skip
"""MSRs that the save area holds; others are refused, as KVM refuses MSRs that it does not know."""

MSR_TSC_AUX = 0xC0000103

_X87_DP, _X87, _XMM = 0x400, 0x420, 0x470
_SEGMENTS = ("es", "cs", "ss", "ds", "fs", "gs", "tr")


def _reset_sregs(boot: bool) -> Sregs:
    data = Segment(type=0x2)
    return Sregs(
        cs=Segment(base=0xFFFF0000, selector=0xF000, type=0xA),
        ds=data,
        es=data,
        fs=data,
        gs=data,
        ss=data,
        tr=Segment(type=0x3, s=0),
        ldt=Segment(type=0x2, s=0),
        gdt=DescriptorTable(),
        idt=DescriptorTable(),
        cr0=0x60000010,
        cr2=0,
        cr3=0,
        cr4=0,
        cr8=0,
        efer=0,
        apic_base=APIC_BASE_RESET | (APIC_BSP if boot else 0),
    )


@dataclass(frozen=True, slots=True)
class VcpuState:
    """Everything that ioctls can set; `msrs` holds the values in the order of MSRS."""

    regs: Regs
    sregs: Sregs
    fpu: Fpu
    debug: DebugRegs
    msrs: tuple[int, ...]


ORDER = {number: at for at, number in enumerate(MSRS)}
"""Where each MSR stands in `msrs`."""


@lru_cache(maxsize=2)
def after_reset(boot: bool) -> VcpuState:
    """The state of a new vCPU, the boot processor's or another's."""
    return VcpuState(
        regs=Regs(rdx=0x600, rip=0xFFF0, rflags=2),
        sregs=_reset_sregs(boot),
        fpu=Fpu(fcw=0x37F),
        debug=DebugRegs(dr6=DR6_RESET, dr7=DR7_RESET),
        msrs=tuple(kvm_vcpu.PAT_RESET if number == kvm_vcpu.MSR_IA32_PAT else 0 for number in MSRS),
    )


@lru_cache(maxsize=64)
def save_area(state: VcpuState, sev_features: int, *, x87: bool = True) -> bytes:
    """The VMSA, 4096 bytes, with or without x87 and SSE. Remembered: all vCPUs of a guest but the first usually have
    the same."""
    sregs, regs, fpu = state.sregs, state.regs, state.fpu
    values: dict[str, int | tuple[int, int, int, int]] = {
        name: _save_segment(getattr(sregs, name)) for name in _SEGMENTS
    }
    values |= {
        "ldtr": _save_segment(sregs.ldt),
        "gdtr": (0, 0, sregs.gdt.limit, sregs.gdt.base),
        "idtr": (0, 0, sregs.idt.limit, sregs.idt.base),
        "cpl": sregs.ss.dpl,
        "efer": sregs.efer | EFER_SVME,
        # KVM hides CD and NW from the processor, and keeps the host's machine checks on.
        "cr0": sregs.cr0 & ~(CR0_CD | CR0_NW),
        "cr2": sregs.cr2,
        "cr3": sregs.cr3,
        "cr4": sregs.cr4 | CR4_MCE,
        "dr6": state.debug.dr6,
        "dr7": state.debug.dr7,
        "sev_features": sev_features,
        "xcr0": 1,
    }
    values |= {name: getattr(regs, name) for name in Regs.fields()}
    values |= dict(zip(MSRS.values(), state.msrs, strict=True))
    if not x87:
        return vmsa.build(values)
    values |= {
        "mxcsr": MXCSR_RESET,
        "x87_ftw": fpu.ftwx,
        "x87_fsw": fpu.fsw,
        "x87_fcw": fpu.fcw,
        "x87_fop": fpu.last_opcode,
        "x87_rip": fpu.last_ip,
    }
    page = bytearray(vmsa.build(values))
    page[_X87_DP : _X87_DP + 8] = fpu.last_dp.to_bytes(8, "little")
    for register in range(8):
        page[_X87 + 10 * register : _X87 + 10 * register + 10] = fpu.fpr[16 * register : 16 * register + 10]
    page[_XMM : _XMM + 256] = fpu.xmm
    return bytes(page)


def _save_segment(segment: Segment) -> tuple[int, int, int, int]:
    """(selector, attributes, limit, base) as svm_set_segment packs them."""
    present = segment.present & 1 and not segment.unusable
    attributes = (
        (segment.type & 15)
        | (segment.s & 1) << 4
        | (segment.dpl & 3) << 5
        | int(present) << 7
        | (segment.avl & 1) << 8
        | (segment.l & 1) << 9
        | (segment.db & 1) << 10
        | (segment.g & 1) << 11
    )
    return segment.selector, attributes, segment.limit, segment.base


@lru_cache(maxsize=64)
def shown(sregs: Sregs) -> bytes:
    """Encoded, with segments as svm_get_segment tells them: data segments accessed, the task segment busy."""
    return replace(
        sregs,
        ds=_typed(sregs.ds, 1),
        es=_typed(sregs.es, 1),
        fs=_typed(sregs.fs, 1),
        gs=_typed(sregs.gs, 1),
        tr=_typed(sregs.tr, 2),
    ).encode()


def _typed(segment: Segment, bits: int) -> Segment:
    return replace(segment, type=segment.type | bits)


def valid_sregs(sregs: Sregs) -> bool:
    """kvm_is_valid_sregs: paging, long mode and control registers that go together."""
    if sregs.cr0 >> 32 or sregs.cr4 >> 32:
        return False
    if (sregs.cr0 & CR0_NW and not sregs.cr0 & CR0_CD) or (sregs.cr0 & CR0_PG and not sregs.cr0 & CR0_PE):
        return False
    if sregs.efer & EFER_LME and sregs.cr0 & CR0_PG:
        return bool(sregs.cr4 & CR4_PAE and sregs.efer & EFER_LMA)
    return not sregs.efer & EFER_LMA and not sregs.cs.l


def valid_msr(index: int, value: int) -> bool:
    if index == kvm_vcpu.MSR_IA32_PAT:
        return all(byte in PAT_TYPES for byte in value.to_bytes(8, "little"))
    return index != MSR_TSC_AUX or value >> 32 == 0


@lru_cache(maxsize=64)
def sregs_of(data: bytes) -> Sregs:
    """`Sregs.decode`, remembered: every vCPU of every guest is given one of two."""
    return Sregs.decode(data)


@lru_cache(maxsize=64)
def regs_of(data: bytes) -> Regs:
    """`Regs.decode` with bit 1 of RFLAGS, which KVM sets itself; remembered."""
    regs = Regs.decode(data)
    return replace(regs, rflags=regs.rflags | 2)


@lru_cache(maxsize=64)
def fpu_of(data: bytes) -> Fpu:
    """`Fpu.decode` without MXCSR, which does not travel this way; remembered."""
    return replace(Fpu.decode(data), mxcsr=0)
