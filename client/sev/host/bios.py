"""Checks of what the BIOS set up: model-specific registers and the RMP (AMD64 APM volume 2, chapter 15.36)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sev.host.machine import HWCR, RMP_BASE, RMP_CFG, RMP_END, SYSCFG
from sev.host.result import SEV_SNP, TECHNOLOGIES, Checks, NotSeen, Outcome, failed, passed

if TYPE_CHECKING:
    from sev.host.machine import Machine

CHECKS = Checks()
_check = CHECKS.check

BOOKKEEPING = 0x4000
"""Bytes at the start of an RMP that hold no entries."""

ENTRY = 16
PAGE = 4096

_RMP = "Enable SEV-SNP and RMP table coverage of all memory in the BIOS (AMD CBS: SNP Memory Coverage: Enabled)."


@_check("bios.memory-encryption", "bios", "memory encryption on", required=TECHNOLOGIES, after=("cpu.vendor",))
def _memory_encryption(machine: Machine) -> Outcome:
    if machine.msr(SYSCFG, "SYSCFG") >> 23 & 1:
        return passed("SYSCFG bit 23 is set")
    return failed("SYSCFG bit 23 is 0: the kernel drops SEV", "Enable SMEE in the BIOS (AMD CBS, CPU options).")


@_check("bios.snp", "bios", "SNP on", required=(SEV_SNP,), after=("cpu.sev-snp",))
def _snp(machine: Machine) -> Outcome:
    if machine.msr(SYSCFG, "SYSCFG") >> 24 & 1:
        return passed("SYSCFG bit 24 is set")
    return failed(
        "SYSCFG bit 24 is 0: SNP is off",
        "Enable SEV-SNP support in the BIOS; the kernel sets the bit at boot if nothing else keeps it from SNP.",
    )


@_check("bios.vmpl", "bios", "VMPLs on", about=(SEV_SNP,), after=("cpu.sev-snp",))
def _vmpl(machine: Machine) -> Outcome:
    if machine.msr(SYSCFG, "SYSCFG") >> 25 & 1:
        return passed("SYSCFG bit 25 is set")
    return failed("SYSCFG bit 25 is 0: VMPLs are off", "Enable SEV-SNP support in the BIOS; the kernel sets the bit.")


@_check("bios.smm-lock", "bios", "SMM locked", required=TECHNOLOGIES, after=("cpu.vendor",))
def _smm_lock(machine: Machine) -> Outcome:
    if machine.msr(HWCR, "HWCR") & 1:
        return passed("HWCR bit 0 is set")
    return failed("HWCR bit 0 is 0: the BIOS did not lock SMM, and the kernel drops SEV", "Update the BIOS.")


@_check("rmp.address", "bios", "RMP reserved", required=(SEV_SNP,), after=("cpu.sev-snp",))
def _rmp_address(machine: Machine) -> Outcome:
    base, end = machine.msr(RMP_BASE, "RMP_BASE"), machine.msr(RMP_END, "RMP_END")
    if _segmented(machine):
        if base:
            return passed(f"segment table at 0x{base:x}")
        return failed("the RMP is segmented and has no segment table", _RMP)
    if not base or not end:
        return failed(f"the BIOS reserved no memory for the RMP (base 0x{base:x}, end 0x{end:x})", _RMP)
    if end <= base:
        return failed(f"the RMP ends (0x{end:x}) before it starts (0x{base:x})", "Update the BIOS.")
    return passed(f"0x{base:x} to 0x{end:x}, {(end + 1 - base) >> 20} MiB")


@_check("rmp.segmented", "bios", "segmented RMP", about=(SEV_SNP,), after=("rmp.address",))
def _rmp_segmented(machine: Machine) -> Outcome:
    if not machine.sev_bit(23):
        return passed("the processor has one contiguous RMP")
    if not _segmented(machine):
        return passed("possible, not used")
    return passed(f"in use, segments of 2^{machine.msr(RMP_CFG, 'RMP_CFG') >> 8 & 0x3F} bytes")


@_check("rmp.coverage", "bios", "RMP covers all memory", required=(SEV_SNP,), after=("rmp.address",))
def _rmp_coverage(machine: Machine) -> Outcome:
    if _segmented(machine):
        return passed("the RMP is segmented: each segment covers its own memory")
    base, end = machine.msr(RMP_BASE, "RMP_BASE"), machine.msr(RMP_END, "RMP_END")
    top = _memory_top(machine)
    covered = max(0, end + 1 - base - BOOKKEEPING) // ENTRY * PAGE
    if covered >= top:
        return passed(f"{covered >> 30} GiB covered, memory ends at {top / (1 << 30):.1f} GiB")
    return failed(
        f"the RMP covers {covered >> 30} GiB, memory ends at {top / (1 << 30):.1f} GiB: the kernel does not start SNP",
        _RMP,
    )


def _segmented(machine: Machine) -> bool:
    return machine.sev_bit(23) and bool(machine.msr(RMP_CFG, "RMP_CFG") & 1)


def _memory_top(machine: Machine) -> int:
    """The end of the highest memory, from /proc/iomem. Raises NotSeen: only root is told the addresses."""
    top = 0
    for line in (machine.text("/proc/iomem", 1 << 20) or "").splitlines():
        span, _, name = line.partition(" : ")
        first, dash, last = span.partition("-")
        if name.strip() == "System RAM" and dash and not line.startswith(" "):
            try:
                top = max(top, int(last, 16) + 1 if int(first, 16) or int(last, 16) else 0)
            except ValueError:
                continue
    if not top:
        raise NotSeen("/proc/iomem does not tell where memory ends", "Run as root.")
    return top
