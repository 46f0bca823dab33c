"""The simulated machine as the checks of a host see it (`sev.host.reader.Reader`): a server with SEV set up right.

Processor, KVM and platform answer as the model does, in this process or over a simulator's files; files and registers
that the model has no use for are those of such a server, never those of the machine that the simulation runs on.
"""

from __future__ import annotations

import errno
import os

from sev import products
from sev.errors import SevError
from sev.host import machine as places
from sev.host.devices import DeviceReader
from sev.host.linux import LinuxReader
from sev.launch.linux import LinuxKernel
from sevd.simulator import hardware
from sevd.simulator.overlay import OverlayKernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from sevd.simulator.simulator import Simulator

    Asids = Callable[[], Mapping[str, tuple[int, int]]]

MEMORY_TOP = 64 << 30
"""Where the simulated machine's memory ends."""

_RMP_BASE = 0x1_0000_0000
_RMP_SIZE = 0x4000 + MEMORY_TOP // 4096 * 16

_SNP_MSRS = {
    places.SYSCFG: 1 << 23 | 1 << 24 | 1 << 25,
    places.HWCR: 1,
    places.RMP_BASE: _RMP_BASE,
    places.RMP_END: _RMP_BASE + _RMP_SIZE - 1,
    places.RMP_CFG: 0,
}
_SEV_MSRS = {places.SYSCFG: 1 << 23, places.HWCR: 1}


def registers(*, snp: bool) -> Mapping[int, int]:
    """Model-specific registers by number, of a processor with or without SNP."""
    return _SNP_MSRS if snp else _SEV_MSRS


PARAMETERS = f"{places.KVM_AMD}/parameters"


class MachineFiles:
    """The files of the simulated machine.

    Args:
        technologies: What KVM launches there.
        asids: (total, in use) of "sev" and "sev_es" ASIDs.
    """

    def __init__(self, technologies: tuple[str, ...], asids: Asids) -> None:
        self._asids = asids
        self._files = {
            f"{PARAMETERS}/sev": "Y",
            f"{PARAMETERS}/sev_es": "Y",
            f"{PARAMETERS}/sev_snp": "Y" if "sev-snp" in technologies else "N",
            f"{PARAMETERS}/ciphertext_hiding_asids": "0",
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

    def text(self, path: str, limit: int) -> str:
        """A file. Raises OSError(ENOENT)."""
        column = {f"{places.CGROUP}/misc.capacity": 0, f"{places.CGROUP}/misc.current": 1}.get(path)
        if column is not None:
            return "".join(f"{name} {use[column]}\n" for name, use in self._asids().items())
        if path not in self._files:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return self._files[path][:limit]

    def names(self, path: str) -> list[str]:
        """What is in a directory. Raises OSError(ENOENT)."""
        below = {name[len(path) + 1 :].partition("/")[0] for name in self._files if name.startswith(path + "/")}
        if not below:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return sorted(below)


class SimulatedReader(DeviceReader):
    """A simulated machine in this process.

    Args:
        simulator: The model; each reader is a process of its own on it until it is closed.
    """

    def __init__(self, simulator: Simulator) -> None:
        self._process = simulator.process()
        super().__init__(self._process)
        facts = simulator.host_facts()
        product = products.by_name(facts.product)
        self._hardware = hardware.of(product)
        self._registers = registers(snp=product.has_snp)
        self._files = MachineFiles(facts.technologies, simulator.asids)

    def close(self) -> None:
        """Ends the process."""
        self._process.exit()

    def architecture(self) -> str:
        """x86-64."""
        return "x86_64"

    def user(self) -> int:
        """The effective uid of the daemon."""
        return os.geteuid()

    def text(self, path: str, limit: int = 1 << 16) -> str:
        """A file. Raises OSError(ENOENT)."""
        return self._files.text(path, limit)

    def names(self, path: str) -> list[str]:
        """What is in a directory. Raises OSError(ENOENT)."""
        return self._files.names(path)

    def cpuid(self, leaf: int, subleaf: int = 0) -> tuple[int, int, int, int]:
        """The simulated part's registers."""
        return self._hardware.registers(leaf, subleaf)

    def msr(self, number: int) -> int:
        """A register. Raises OSError(EIO) for others than those of SEV."""
        if number not in self._registers:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return self._registers[number]

    def memlock(self) -> int | None:
        """Unlimited: the model locks nothing."""
        return None


class ServedReader(LinuxReader):
    """A simulated machine that another process serves: its devices, registers and parameters by its files, KVM over its
    control socket. While the simulator is gone, its devices are.

    Args:
        directory: Where its files are.
        kvm_path: The path by which KVM is asked for.
        technologies: What KVM launches there.
        asids: (total, in use) of "sev" and "sev_es" ASIDs.
        ask_cpuid: Its processor's registers.
    """

    def __init__(
        self,
        directory: Path,
        *,
        kvm_path: str = "/dev/kvm",
        technologies: tuple[str, ...],
        asids: Asids,
        ask_cpuid: Callable[[int, int], tuple[int, int, int, int]],
    ) -> None:
        self._served: OverlayKernel | _Gone
        try:
            self._served = OverlayKernel(directory, kvm_path)
        except SevError:
            self._served = _Gone()
        super().__init__(
            kernel=self._served,
            sev_path=os.fspath(directory / "sev"),
            kvm_path=kvm_path,
            msr_path=os.fspath(directory / "msr"),
            moved={PARAMETERS: os.fspath(directory / "parameters")},
            ask_cpuid=ask_cpuid,
        )
        self._files = MachineFiles(technologies, asids)

    def close(self) -> None:
        """Hangs up."""
        self._served.exit()

    def architecture(self) -> str:
        """x86-64."""
        return "x86_64"

    def text(self, path: str, limit: int = 1 << 16) -> str:
        """A file. Raises OSError."""
        if not path.startswith(f"{PARAMETERS}/"):
            return self._files.text(path, limit)
        if isinstance(self._served, _Gone):
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV), path)
        return super().text(path, limit)

    def names(self, path: str) -> list[str]:
        """What is in a directory. Raises OSError(ENOENT)."""
        return self._files.names(path)

    def memlock(self) -> int | None:
        """Unlimited: the model locks nothing."""
        return None


class _Gone(LinuxKernel):
    """Devices of a simulator that does not run."""

    def open(self, path: str, flags: int) -> int:
        """Raises OSError(ENODEV)."""
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV), path)
