"""SEV_STATUS, the register that tells a guest how it is protected (MSR 0xC0010131).

A host cannot set it by hand: its bits are what the processor has switched on for this guest. Bits 3 and up are those of
SEV_FEATURES in the save area, two places higher.

Source: AMD64 Architecture Programmer's Manual volume 2, SEV_STATUS MSR; arch/x86/include/asm/msr-index.h.
"""

from __future__ import annotations

SEV_STATUS = 0xC001_0131

SEV, SEV_ES, SEV_SNP = 0, 1, 2
"""Bits of the three technologies."""

FEATURES: tuple[tuple[int, str, str], ...] = (
    (3, "vtom", "virtual top of memory"),
    (4, "reflect-vc", "#VC handled at VMPL 0"),
    (5, "restricted-injection", "restricted injection of interrupts"),
    (6, "alternate-injection", "alternate injection of interrupts"),
    (7, "debug-swap", "debug registers swapped by hardware"),
    (8, "prevent-host-ibs", "no instruction-based sampling by the host"),
    (9, "btb-isolation", "branch predictions isolated"),
    (10, "vmpl-sss", "supervisor shadow stacks by VMPL"),
    (11, "secure-tsc", "secure time stamp counter"),
    (12, "vmgexit-parameter", "VMGEXIT parameter"),
    (14, "ibs-virtualisation", "instruction-based sampling for the guest"),
    (16, "vmsa-register-protection", "registers in the save area masked"),
    (17, "smt-protection", "no other guest on the sibling thread"),
    (18, "secure-avic", "secure interrupt controller"),
)
"""(Bit, id, a few words) of features that a guest may have or not."""
