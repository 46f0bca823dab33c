"""Facts of the real machine from /proc, /sys and uname, and the exact list of what it lacks for SEV-SNP.

Everything is read below `root`, so that tests can lay out a machine of their own in a folder.
"""

from __future__ import annotations

import os
from pathlib import Path

from sev import products
from sev.host.cpuid import CpuidUnavailable, cpuid
from sev.host.linux import LinuxReader
from sev.host.result import FAILED, SEV_SNP
from sev.host.verdict import check_host
from sev.launch.linux import LinuxKernel, LinuxMemory
from sevd.devices.facts import HostFacts
from sevd.devices.missing import Missing

__all__ = ["LinuxHost", "LinuxKernel", "LinuxMemory"]

_TECHNOLOGIES = (("sev", "sev"), ("sev-es", "sev_es"), ("sev-snp", "sev_snp"))
_MISC = "sys/fs/cgroup"
_DEVICES = ("device.sev", "device.sev-read", "device.kvm", "device.kvm-open")


class LinuxHost:
    """One machine, looked at through its files."""

    def __init__(
        self, *, sev_path: str = "/dev/sev", kvm_path: str = "/dev/kvm", root: Path = Path("/"), release: str = ""
    ) -> None:
        self._sev_path = sev_path
        self._kvm_path = kvm_path
        self._root = root
        self._release = release or os.uname().release
        self._reader = LinuxReader(
            sev_path=sev_path,
            kvm_path=kvm_path,
            root=str(root),
            # Another folder than / is another machine: its CPUID is not this processor's.
            ask_cpuid=cpuid if root == Path("/") else _no_cpuid,
        )

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
        """What is missing for launching SNP guests, each as one sentence that knows its remedy; empty if nothing is.

        Nothing is missing where both devices can be opened: whatever stands behind them speaks for itself. Otherwise
        the devices come first, then what the checks of the host (`sev.host`) find to be the cause.
        """
        checks = check_host(self._reader, SEV_SNP).checks if not self._usable() else ()
        devices = [
            one for one in checks if one.id in _DEVICES and one.result != "passed" and "not looked" not in one.reason
        ]
        causes = [one for one in checks if one.result == FAILED and SEV_SNP in (*one.decides, *one.required)]
        causes = [one for one in causes if one.id not in _DEVICES]
        if not any(one.id.startswith("device.sev") for one in devices):
            causes = []  # KVM alone is missing, and says so itself
        first = causes[0].group if causes else ""
        # One cause is enough where the others follow from it: a processor without SEV lacks everything else, too.
        causes = causes[:1] if first == "processor" else causes[:3]
        told = [*devices, *causes]
        remedies = [one.remedy for one in causes] or [one.remedy for one in devices]
        return [
            Missing(_sentence(one.reason), one.remedy if one in causes or not causes else remedies[0]) for one in told
        ]

    def _usable(self) -> bool:
        """Both devices can be opened."""
        for path, write in ((self._sev_path, False), (self._kvm_path, True)):
            try:
                self._reader.try_open(path, write=write)
            except OSError:
                return False
        return True

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


def _sentence(text: str) -> str:
    start = text[:1].upper() if text.partition(" ")[0].isalpha() else text[:1]
    return f"{start}{text[1:].rstrip('.')}."


def _no_cpuid(leaf: int, subleaf: int) -> tuple[int, int, int, int]:
    raise CpuidUnavailable("this machine is a folder")


def _number(text: str) -> int:
    text = text.strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 0
