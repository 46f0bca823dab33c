"""Facts of the real machine from /proc, /sys and uname, and the exact list of what it lacks for SEV-SNP.

Everything is read below `root`, so that tests can lay out a machine of their own in a folder.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from sev import products
from sev.launch.linux import LinuxKernel, LinuxMemory
from sevd.devices.facts import HostFacts

__all__ = ["LinuxHost", "LinuxKernel", "LinuxMemory"]

_TECHNOLOGIES = (("sev", "sev"), ("sev-es", "sev_es"), ("sev-snp", "sev_snp"))
_FLAGS = (("sev", "SEV"), ("sev_es", "SEV-ES"), ("sev_snp", "SEV-SNP"))
_MISC = "sys/fs/cgroup"
_SNP_OFF = (
    "kvm_amd has SEV-SNP switched off: load it with sev_snp=1, and look in the kernel's log for what keeps it off "
    "(IOMMU, RMP, firmware older than 1.51)."
)
_VIRTUAL = (
    "This machine is a virtual machine itself, and its processor shows no {}: confidential guests need the bare "
    "machine, or a host that hands SEV on."
)
_NOT_IN_CPU = (
    "The kernel does not see {} in the processor (/proc/cpuinfo): enable SEV-SNP in the BIOS (SMEE, SEV-SNP support, "
    "RMP coverage), and look for the reason in the kernel's log."
)


class LinuxHost:
    """One machine, looked at through its files."""

    def __init__(
        self, *, sev_path: str = "/dev/sev", kvm_path: str = "/dev/kvm", root: Path = Path("/"), release: str = ""
    ) -> None:
        self._sev_path = sev_path
        self._kvm_path = kvm_path
        self._root = root
        self._release = release or os.uname().release

    def facts(self) -> HostFacts:
        """What the machine says about itself; zeros and empty text for what it does not say."""
        cpu = self._cpuinfo()
        family, model, stepping = (_number(cpu.get(key, "")) for key in ("cpu family", "model", "stepping"))
        amd = cpu.get("vendor_id") == "AuthenticAMD"
        product = products.by_cpuid(family, model) if amd else None
        return HostFacts(
            product=product.name if product else "",
            cpu_family=family,
            cpu_model=model,
            cpu_stepping=stepping,
            kernel=self._release,
            technologies=tuple(name for name, parameter in _TECHNOLOGIES if self._enabled(parameter)),
        )

    def asids(self) -> dict[str, tuple[int, int]]:
        """(total, in use) of "sev" and "sev_es" ASIDs as the misc cgroup counts them; (0, 0) where it is not there.

        SNP guests count under sev_es (kernel, misc cgroup). The root cgroup's numbers are those of the host.
        """
        total, used = self._flat(f"{_MISC}/misc.capacity"), self._flat(f"{_MISC}/misc.current")
        return {key: (total.get(key, 0), used.get(key, 0)) for key in ("sev", "sev_es")}

    def missing(self) -> list[str]:
        """What is missing for launching SNP guests, each as one sentence with what to do; empty if nothing is."""
        out: list[str] = []
        sev, kvm = self._device(self._sev_path), self._device(self._kvm_path)
        if not sev and not kvm:
            # Both nodes answer: whatever stands behind them (a simulator's files too) speaks for itself.
            return out
        if sev:
            out.append(sev)
            out.extend(self._why_no_sev())
        if kvm:
            out.append(kvm)
        return out

    def _why_no_sev(self) -> list[str]:
        cpu = self._cpuinfo()
        vendor = cpu.get("vendor_id", "")
        if vendor != "AuthenticAMD":
            return [f"The processor is not AMD's ({vendor or 'unknown vendor'}): SEV needs an AMD EPYC processor."]
        flags = cpu.get("flags", "").split()
        lacking = [text for flag, text in _FLAGS if flag not in flags]
        if lacking and "hypervisor" in flags:
            return [_VIRTUAL.format(", ".join(lacking))]
        if lacking:
            return [_NOT_IN_CPU.format(", ".join(lacking))]
        modules = [name for name in ("ccp", "kvm_amd") if not (self._root / "sys/module" / name).is_dir()]
        if modules:
            return [f"The kernel module {name} is not loaded: modprobe {name}." for name in modules]
        if not self._enabled("sev_snp"):
            return [_SNP_OFF]
        return ["The driver ccp found no usable SEV firmware: look for ccp in the kernel's log."]

    def _device(self, path: str) -> str:
        """Empty if the device node can be opened, else one sentence."""
        try:
            if not stat.S_ISCHR(os.stat(path).st_mode) and path.startswith("/dev/"):
                return f"{path} is not a device."
            os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))
        except FileNotFoundError:
            return f"There is no {path}."
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM):
                return f"{path} may not be opened by uid {os.geteuid()}: run the daemon as root, or give it the group."
            return f"{path} cannot be opened: {os.strerror(error.errno or 0)}."
        return ""

    def _cpuinfo(self) -> dict[str, str]:
        """The first processor of /proc/cpuinfo."""
        out: dict[str, str] = {}
        for line in self._text("proc/cpuinfo", 1 << 16).splitlines():
            if not line.strip():
                break
            key, _, value = line.partition(":")
            out[key.strip()] = value.strip()
        return out

    def _enabled(self, parameter: str) -> bool:
        return self._text(f"sys/module/kvm_amd/parameters/{parameter}", 16).strip() in ("Y", "1")

    def _flat(self, path: str) -> dict[str, int]:
        """A flat-keyed cgroup file: one "key number" per line."""
        out: dict[str, int] = {}
        for line in self._text(path, 1 << 12).splitlines():
            key, _, value = line.partition(" ")
            out[key] = _number(value)
        return out

    def _text(self, path: str, limit: int) -> str:
        """The start of a file; empty if it cannot be read."""
        try:
            with (self._root / path).open("rb") as file:
                return file.read(limit).decode("ascii", "replace")
        except OSError:
            return ""


def _number(text: str) -> int:
    text = text.strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 0
