"""Checks of the processor: what CPUID says (AMD64 APM volume 3, appendix E.4.17, leaf 0x8000001F)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sev.host.machine import ON, SEV_LEAF
from sev.host.result import SEV, SEV_ES, SEV_SNP, TECHNOLOGIES, Checks, Outcome, failed, passed, skipped

if TYPE_CHECKING:
    from sev.host.machine import Machine

CHECKS = Checks()
_check = CHECKS.check

_BUY = "SEV needs an AMD EPYC server processor: 7001 and later for SEV, 7002 for SEV-ES, 7003 for SEV-SNP."
_BIOS = "Enable SMEE and SEV support in the BIOS (AMD CBS, CPU options); a processor that has none cannot be helped."
_HOST = "Use the bare machine: a hypervisor does not hand SEV on to its guests."


@_check("cpu.architecture", "processor", "x86-64", required=TECHNOLOGIES)
def _architecture(machine: Machine) -> Outcome:
    word = machine.architecture
    if word == "x86_64":
        return passed(word)
    return failed(f"this is {word or 'an unknown machine'}, not x86-64", _BUY)


@_check("cpu.vendor", "processor", "AMD processor", required=TECHNOLOGIES, after=("cpu.architecture",))
def _vendor(machine: Machine) -> Outcome:
    vendor = machine.vendor
    if vendor == "AuthenticAMD":
        return passed(vendor)
    return failed(f"the processor is not AMD's ({vendor or 'unknown vendor'})", _BUY)


@_check("cpu.brand", "processor", "EPYC", about=TECHNOLOGIES, after=("cpu.vendor",))
def _brand(machine: Machine) -> Outcome:
    brand = machine.brand
    if "EPYC" in brand.upper():
        return passed(brand)
    return failed(f'the processor calls itself "{brand}", not EPYC', _BUY)


@_check("cpu.line", "processor", "known processor line", about=TECHNOLOGIES, after=("cpu.vendor",))
def _line(machine: Machine) -> Outcome:
    family, model, stepping = machine.signature
    where = f"family 0x{family:x}, model 0x{model:x}, stepping {stepping}"
    product = machine.product
    if product is None:
        return failed(f"{where} is no server line that is known here", f"{_BUY} For a newer line, update sevd.")
    return passed(f"{product.kds_name} ({where})")


@_check("cpu.bare-metal", "processor", "not virtualised", required=(SEV_SNP,), about=TECHNOLOGIES)
def _bare_metal(machine: Machine) -> Outcome:
    if not machine.virtual:
        return passed("no hypervisor shows itself")
    if machine.parameter("sev_snp") in ON:
        return passed("a hypervisor shows itself, and the kernel runs SEV-SNP all the same (sev_snp is on)")
    seen = ""
    if machine.vendor == "AuthenticAMD" and machine.sev_bit(1, "sev_guest"):
        seen = ", perhaps a confidential guest: inside one, sev attest check looks at it"
    return failed(f"this machine is a virtual machine itself{seen}; the kernel does not start SEV-SNP in one", _HOST)


def _bit(
    identifier: str,
    bit: int,
    name: str,
    flag: str,
    *,
    decides: tuple[str, ...] = (),
    required: tuple[str, ...] = (),
) -> None:
    """Declares the check of one feature bit."""

    @_check(identifier, "processor", name, decides=decides, required=required, after=("cpu.vendor",))
    def look(machine: Machine) -> Outcome:
        if machine.sev_bit(bit, flag):
            return passed(f"CPUID 0x8000001F EAX bit {bit} is set")
        return failed(
            f"the processor does not show {name} (CPUID 0x8000001F EAX bit {bit} is 0)",
            _HOST if machine.virtual else _BIOS,
        )


_bit("cpu.sme", 0, "SME", "sme", required=TECHNOLOGIES)
_bit("cpu.sev", 1, "SEV", "sev", decides=TECHNOLOGIES)
_bit("cpu.sev-es", 3, "SEV-ES", "sev_es", decides=(SEV_ES, SEV_SNP))
_bit("cpu.sev-snp", 4, "SEV-SNP", "sev_snp", decides=(SEV_SNP,))
_bit("cpu.vmpl", 5, "VMPLs", "", required=(SEV_SNP,))


@_check("cpu.c-bit", "processor", "C-bit", about=TECHNOLOGIES, after=("cpu.sev",))
def _c_bit(machine: Machine) -> Outcome:
    ebx = machine.cpuid(SEV_LEAF)[1]
    position, reduction = ebx & 0x3F, ebx >> 6 & 0x3F
    if not position:
        return failed("CPUID names no position of the C-bit", "Update the BIOS.")
    return passed(f"bit {position}; physical addresses lose {reduction} bits")


@_check("cpu.vmpl-count", "processor", "number of VMPLs", about=(SEV_SNP,), after=("cpu.vmpl",))
def _vmpl_count(machine: Machine) -> Outcome:
    count = machine.cpuid(SEV_LEAF)[1] >> 12 & 0xF
    if count:
        return passed(str(count))
    return failed("CPUID 0x8000001F EBX names no VMPL", "Update the BIOS.")


@_check("cpu.asids-sev", "processor", "ASIDs for SEV", required=(SEV,), after=("cpu.sev",))
def _asids_sev(machine: Machine) -> Outcome:
    _, _, highest, lowest = machine.cpuid(SEV_LEAF)
    if lowest <= highest and highest:
        return passed(f"{highest - lowest + 1}: {lowest} to {highest}")
    return failed(
        f"none: the BIOS gave all {highest} to SEV-ES and SEV-SNP", "Lower the BIOS's minimum SEV non-ES ASID."
    )


@_check("cpu.asids-sev-es", "processor", "ASIDs for SEV-ES and SEV-SNP", required=(SEV_ES, SEV_SNP), after=("cpu.sev",))
def _asids_sev_es(machine: Machine) -> Outcome:
    _, _, highest, lowest = machine.cpuid(SEV_LEAF)
    last = min(lowest - 1, highest)
    if last >= 1:
        return passed(f"{last}: 1 to {last}")
    return failed(
        f"none: the BIOS keeps all {highest} for SEV without ES",
        "Raise the BIOS's minimum SEV non-ES ASID (AMD CBS, CPU options) above 1.",
    )


@_check("cpu.page-flush", "processor", "page-flush MSR or coherent caches", about=(SEV,), after=("cpu.sev",))
def _page_flush(machine: Machine) -> Outcome:
    eax = machine.cpuid(SEV_LEAF)[0]
    ways = [name for bit, name in ((2, "page-flush MSR"), (10, "hardware cache coherency")) if eax >> bit & 1]
    if ways:
        return passed(" and ".join(ways))
    return skipped("neither is there: freeing guest memory flushes all caches, which is slow and works")
