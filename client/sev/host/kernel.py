"""Checks of the kernel: command line, processors, IOMMU, the modules ccp and kvm_amd, the PSP's device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sev.host.machine import CCP, KERNEL_LOG, KVM_AMD, ON, PSP
from sev.host.result import SEV, SEV_ES, SEV_SNP, TECHNOLOGIES, Checks, NotSeen, Outcome, failed, passed, skipped

if TYPE_CHECKING:
    from sev.host.machine import Machine

CHECKS = Checks()
_check = CHECKS.check

IOMMU = "/sys/class/iommu"
IOMMU_SNP = 1 << 63
"""The IOMMU's extended feature register: SNPSup (AMD I/O Virtualization Technology specification, MMIO 0x30)."""

OFF_WORDS = {
    "kvm_amd.sev=0": SEV,
    "kvm_amd.sev=N": SEV,
    "kvm_amd.sev_es=0": SEV_ES,
    "kvm_amd.sev_es=N": SEV_ES,
    "kvm_amd.sev_snp=0": SEV_SNP,
    "kvm_amd.sev_snp=N": SEV_SNP,
}


@_check("kernel.command-line", "kernel", "kernel command line", required=(SEV_SNP,), about=TECHNOLOGIES)
def _command_line(machine: Machine) -> Outcome:
    words = machine.command_line
    for word in words:
        name, _, value = word.partition("=")
        if name == "sev" and "nosnp" in value.split(","):
            return failed(f"{word} switches SEV-SNP off", f"Take {word} out of the kernel's command line and reboot.")
    off = [word for word in words if word in OFF_WORDS]
    if off:
        return failed(
            f"{' '.join(off)} switches guests off", f"Take {' '.join(off)} out of the kernel's command line and reboot."
        )
    seen = [word for word in words if word.partition("=")[0] in ("sev", "mem_encrypt", "iommu", "amd_iommu")]
    return passed("nothing switches SEV off" + (f" ({' '.join(seen)})" if seen else ""))


@_check("kernel.processors", "kernel", "all processors online", about=(SEV_SNP,))
def _processors(machine: Machine) -> Outcome:
    folder = "/sys/devices/system/cpu"
    present, online = machine.text(f"{folder}/present", 256), machine.text(f"{folder}/online", 256)
    if not present or not online:
        return skipped(f"{folder} does not tell which processors are there", "Mount /sys.")
    if present == online:
        return passed(online)
    return failed(
        f"processors {present} are present and {online} online: SNP is initialised only with all of them",
        "Bring them online before kvm_amd is loaded (take maxcpus= and nosmt out of the kernel's command line).",
    )


@_check("kernel.iommu", "kernel", "AMD IOMMU with SNP", required=(SEV_SNP,), after=("cpu.sev-snp",))
def _iommu(machine: Machine) -> Outcome:
    units = machine.names(IOMMU)
    if units is None:
        return skipped(f"there is no {IOMMU}", "Mount /sys.")
    amd = [unit for unit in units if unit.startswith("ivhd")]
    if not amd:
        return failed(
            "the kernel runs no AMD IOMMU, which SEV-SNP needs",
            "Enable the IOMMU in the BIOS, and take amd_iommu=off and iommu=off out of the kernel's command line.",
        )
    features = [machine.text(f"{IOMMU}/{unit}/amd-iommu/features", 64) for unit in amd]
    if None in features:
        raise NotSeen("the IOMMU does not tell its features", "Run as root.")
    # Kernels write one register or both, in either order; the second has nothing at this bit.
    lacking = [unit for unit, text in zip(amd, features, strict=True) if not _any_bit(text or "", IOMMU_SNP)]
    if lacking:
        return failed(
            f"{', '.join(lacking)} shows no support for SNP",
            "Enable SEV-SNP support in the BIOS (AMD CBS, NBIO options).",
        )
    return passed(f"{len(amd)} unit{'s' if len(amd) > 1 else ''}, all with SNP")


@_check("kernel.iommu-mode", "kernel", "IOMMU translates", about=(SEV_SNP,), after=("kernel.iommu",))
def _iommu_mode(machine: Machine) -> Outcome:
    words = machine.command_line
    bad = [
        word
        for word in words
        if word in ("iommu=pt", "iommu=off", "amd_iommu=off", "iommu.passthrough=1")
        or (word.startswith("amd_iommu=") and "pgtbl_v2" in word)
    ]
    if not bad:
        return passed("neither in passthrough nor with second-version page tables by the command line")
    return failed(
        f"{' '.join(bad)}: the kernel refuses SNP in this mode where the IOMMU cannot do without",
        f"Take {' '.join(bad)} out of the kernel's command line and reboot.",
    )


def _module(identifier: str, name: str, folder: str, what: str) -> None:
    @_check(identifier, "kernel", f"module {name}", required=TECHNOLOGIES, after=("cpu.sev",))
    def look(machine: Machine) -> Outcome:
        if machine.names(folder) is not None:
            return passed("loaded, or built in")
        return failed(f"the kernel module {name} ({what}) is not loaded", f"modprobe {name}.")


_module("module.ccp", "ccp", CCP, "the driver of the AMD secure processor")
_module("module.kvm-amd", "kvm_amd", KVM_AMD, "KVM on AMD processors")


def _parameter(identifier: str, name: str, technology: str, needed: tuple[str, ...]) -> None:
    @_check(identifier, "kvm", f"kvm_amd.{name}", decides=needed, after=(f"cpu.{technology.lower()}", "module.kvm-amd"))
    def look(machine: Machine) -> Outcome:
        value = machine.parameter(name)
        if value in ON:
            return passed(f"{value}: KVM offers {technology}")
        if value is None:
            return failed(
                f"kvm_amd has no parameter {name}: this kernel was built without {technology}",
                "Use a kernel with CONFIG_KVM_AMD_SEV, 6.11 or newer for SEV-SNP.",
            )
        return failed(
            f"kvm_amd has {technology} off ({name}={value}); the kernel writes what is in effect",
            f"Load kvm_amd with {name}=1. If it stays off, processor, BIOS or firmware keeps it off. {KERNEL_LOG}",
        )


_parameter("kvm.sev", "sev", "SEV", TECHNOLOGIES)
_parameter("kvm.sev-es", "sev_es", "SEV-ES", (SEV_ES, SEV_SNP))
_parameter("kvm.sev-snp", "sev_snp", "SEV-SNP", (SEV_SNP,))


@_check("kvm.ciphertext-hiding-asids", "kvm", "ASIDs with ciphertext hiding", about=(SEV_SNP,), after=("kvm.sev-snp",))
def _hiding(machine: Machine) -> Outcome:
    value = machine.parameter("ciphertext_hiding_asids")
    if value is None:
        return skipped("this kernel has no such parameter (it came with 6.18)")
    if value == "0":
        return skipped("off: no ASIDs are set aside for it", "Load kvm_amd with ciphertext_hiding_asids=N to use it.")
    return passed(f"SNP guests have ASIDs 1 to {value}, SEV-ES guests the rest")


@_check("ccp.init", "kernel", "firmware initialised at load", about=TECHNOLOGIES, after=("module.ccp",))
def _ccp_init(machine: Machine) -> Outcome:
    path, probe = machine.parameter("init_ex_path", CCP), machine.parameter("psp_init_on_probe", CCP)
    where = f"; the platform's state is kept in {path}" if path and path != "(null)" else ""
    if probe is None:
        return skipped("ccp does not tell its parameters")
    if probe in ON:
        return passed(f"psp_init_on_probe={probe}{where}")
    return skipped(f"psp_init_on_probe={probe}: the firmware is initialised when a guest is first launched{where}")


def _psp(machine: Machine) -> str | None:
    """The folder of the first secure processor; None if the driver has none."""
    names = machine.names(PSP)
    devices = sorted(name for name in names or () if name.count(":") == 2)
    return f"{PSP}/{devices[0]}" if devices else None


@_check("psp.device", "kernel", "secure processor", about=TECHNOLOGIES, after=("module.ccp",))
def _psp_device(machine: Machine) -> Outcome:
    folder = _psp(machine)
    if folder is None:
        return failed("the driver ccp found no AMD secure processor on the PCI bus", f"Update the BIOS. {KERNEL_LOG}")
    versions = [
        f"{name} {text}" for name in ("bootloader_version", "tee_version") if (text := machine.text(f"{folder}/{name}"))
    ]
    return passed(", ".join([folder.rpartition("/")[2], *versions]))


def _attribute(identifier: str, name: str, title: str, wanted: str, why: str, remedy: str) -> None:
    @_check(identifier, "kernel", title, about=TECHNOLOGIES, after=("psp.device",))
    def look(machine: Machine) -> Outcome:
        value = machine.text(f"{_psp(machine)}/{name}", 16)
        if value is None:
            return skipped("the secure processor does not report it")
        if value == wanted:
            return passed(f"{name} is {value}")
        return failed(f"{name} is {value}: {why}", remedy)


_attribute(
    "psp.fused", "fused_part", "production part", "1",
    "this is an unfused engineering sample, whose keys are no secret", "Use a production part.",
)  # fmt: skip
_attribute(
    "psp.debug-lock", "debug_lock_on", "debug lock", "1",
    "the part can be opened for debugging", "Use a production part, or ask its maker to lock it.",
)  # fmt: skip
_attribute(
    "psp.anti-rollback", "anti_rollback_status", "anti-rollback", "1",
    "the BIOS may load older firmware", "Enable anti-rollback in the BIOS if it is offered.",
)  # fmt: skip


def _any_bit(text: str, bit: int) -> bool:
    for part in text.split(":"):
        try:
            if int(part, 16) & bit:
                return True
        except ValueError:
            continue
    return False
