"""The simulated machine as the checks of a host see it (`sev.host.reader.Reader`): a server with SEV set up right.

Processor, KVM and platform answer as the model does; files and registers that the model has no use for are those of
such a server.
"""

from __future__ import annotations

import errno
import os

from sev import products
from sev.host import machine as places
from sev.host.devices import DeviceReader
from sevd.simulator import hardware

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sevd.simulator.simulator import Simulator

MEMORY_TOP = 64 << 30
"""Where the simulated machine's memory ends."""

_RMP_BASE = 0x1_0000_0000
_RMP_SIZE = 0x4000 + MEMORY_TOP // 4096 * 16

MSRS = {
    places.SYSCFG: 1 << 23 | 1 << 24 | 1 << 25,
    places.HWCR: 1,
    places.RMP_BASE: _RMP_BASE,
    places.RMP_END: _RMP_BASE + _RMP_SIZE - 1,
    places.RMP_CFG: 0,
}
"""Registers by number."""


class SimulatedReader(DeviceReader):
    """A simulated machine.

    Args:
        simulator: The model; each reader has a process of its own on it, which lives as long as the model.
    """

    def __init__(self, simulator: Simulator) -> None:
        super().__init__(simulator.process())
        facts = simulator.host_facts()
        self._hardware = hardware.of(products.by_name(facts.product))
        self._simulator = simulator
        snp = "Y" if "sev-snp" in facts.technologies else "N"
        folder = f"{places.KVM_AMD}/parameters"
        self._files = {
            f"{folder}/sev": "Y",
            f"{folder}/sev_es": "Y",
            f"{folder}/sev_snp": snp,
            f"{folder}/ciphertext_hiding_asids": "0",
            f"{places.CCP}/parameters/psp_init_on_probe": "Y",
            f"{places.PSP}/0000:42:00.1/fused_part": "1",
            f"{places.PSP}/0000:42:00.1/debug_lock_on": "1",
            f"{places.PSP}/0000:42:00.1/anti_rollback_status": "1",
            "/proc/cmdline": "simulated",
            "/proc/iomem": f"00001000-{MEMORY_TOP - 1:08x} : System RAM",
            "/sys/devices/system/cpu/present": "0-1",
            "/sys/devices/system/cpu/online": "0-1",
            "/sys/class/iommu/ivhd0/amd-iommu/features": f"{1 << 63:x}:0",
        }

    def architecture(self) -> str:
        """x86-64."""
        return "x86_64"

    def user(self) -> int:
        """The effective uid of the daemon."""
        return os.geteuid()

    def text(self, path: str, limit: int = 1 << 16) -> str:
        """A file. Raises OSError(ENOENT)."""
        if path.startswith(f"{places.CGROUP}/misc."):
            column = {"misc.capacity": 0, "misc.current": 1}.get(path.rpartition("/")[2])
            if column is not None:
                return "".join(f"{name} {use[column]}\n" for name, use in self._simulator.asids().items())
        if path not in self._files:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return self._files[path][:limit]

    def names(self, path: str) -> list[str]:
        """What is in a directory. Raises OSError(ENOENT)."""
        below = {name[len(path) + 1 :].partition("/")[0] for name in self._files if name.startswith(path + "/")}
        if not below:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return sorted(below)

    def cpuid(self, leaf: int, subleaf: int = 0) -> tuple[int, int, int, int]:
        """The simulated part's registers."""
        return self._hardware.registers(leaf, subleaf)

    def msr(self, number: int) -> int:
        """A register. Raises OSError(EIO) for others than those of SEV."""
        if number not in MSRS:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return MSRS[number]

    def memlock(self) -> int | None:
        """Unlimited: the model locks nothing."""
        return None
