"""The registers of a vCPU after reset as QEMU gives them to KVM: what a launch measures.

Every vCPU starts in real mode; the boot vCPU at 0xFFFFFFF0, the others where the firmware says (its SEV-ES reset
block). KVM adds what belongs to it: CR4.MCE, EFER.SVME, and no CD or NW in CR0.
"""

from __future__ import annotations

from functools import lru_cache

from sev.abi.kvm_vcpu import MSR_IA32_PAT, PAT_RESET, DescriptorTable, Fpu, MsrEntry, Regs, Segment, Sregs

BOOT_ADDRESS = 0xFFFFFFF0

CR0_RESET = 0x60000010
RFLAGS_RESET = 0x2
FCW_RESET = 0x37F

_CODE, _DATA, _LDT, _TSS = 0xB, 0x3, 0x2, 0xB
_LOW = 0xFFFF


def regs(start: int, cpuid_signature: int) -> Regs:
    """General registers: the low 16 bits of the start address, and the CPU's signature in EDX."""
    return Regs(rdx=cpuid_signature, rip=start & _LOW, rflags=RFLAGS_RESET)


@lru_cache(maxsize=16)
def sregs(start: int, apic_base: int) -> bytes:
    """Encoded sregs: segments, tables, control registers; the rest of the start address is the code segment's base."""
    data = Segment(type=_DATA)
    base = start & ~_LOW
    return Sregs(
        cs=Segment(base=base, selector=0xF000, type=_CODE),
        ds=data,
        es=data,
        fs=data,
        gs=data,
        ss=data,
        tr=Segment(type=_TSS, s=0),
        ldt=Segment(type=_LDT, s=0),
        gdt=DescriptorTable(),
        idt=DescriptorTable(),
        cr0=CR0_RESET,
        cr2=0,
        cr3=0,
        cr4=0,
        cr8=0,
        efer=0,
        apic_base=apic_base,
    ).encode()


FPU = Fpu(fcw=FCW_RESET)
"""KVM keeps MXCSR at its reset value, 0x1F80: these ioctls do not carry it."""

MSRS = (MsrEntry(MSR_IA32_PAT, PAT_RESET),)
