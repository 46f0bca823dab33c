"""This machine as a reader: files of /proc and /sys, the CPUID instruction, the MSR device, /dev/sev and /dev/kvm."""

from __future__ import annotations

import os
import resource

from sev.host.cpuid import cpuid
from sev.host.devices import DeviceReader
from sev.launch.linux import LinuxKernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sev.launch.seam import Kernel

MSR_PATH = "/dev/cpu/0/msr"


class LinuxReader(DeviceReader):
    """This machine (`sev.host.reader.Reader`).

    Args:
        kernel: Where devices are opened.
        sev_path: The SEV device.
        kvm_path: The KVM device.
        root: Files are read below it.
        msr_path: The MSR device of CPU 0.
        moved: Files that stand elsewhere: start of a path to what replaces it, such as the folder of a simulator.
        ask_cpuid: How CPUID is asked.
    """

    def __init__(
        self,
        *,
        kernel: Kernel | None = None,
        sev_path: str = "/dev/sev",
        kvm_path: str = "/dev/kvm",
        root: str = "/",
        msr_path: str = MSR_PATH,
        moved: Mapping[str, str] | None = None,
        ask_cpuid: Callable[[int, int], tuple[int, int, int, int]] = cpuid,
    ) -> None:
        super().__init__(kernel or LinuxKernel(), sev_path=sev_path, kvm_path=kvm_path)
        self._root = root
        self._msr_path = msr_path
        self._moved = dict(moved or {})
        self._ask_cpuid = ask_cpuid

    def architecture(self) -> str:
        """The machine word of uname(2)."""
        return os.uname().machine

    def user(self) -> int:
        """The effective uid."""
        return os.geteuid()

    def text(self, path: str, limit: int = 1 << 16) -> str:
        """The start of a file. Raises OSError."""
        with open(self._place(path), "rb") as file:
            return file.read(limit).decode("ascii", "replace")

    def names(self, path: str) -> list[str]:
        """What is in a directory. Raises OSError."""
        return sorted(os.listdir(self._place(path)))

    def cpuid(self, leaf: int, subleaf: int = 0) -> tuple[int, int, int, int]:
        """CPUID. Raises CpuidUnavailable."""
        return self._ask_cpuid(leaf, subleaf)

    def msr(self, number: int) -> int:
        """An MSR of CPU 0: 8 bytes at the offset of its number. Raises OSError."""
        fd = os.open(self._msr_path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            data = os.pread(fd, 8, number)
        finally:
            os.close(fd)
        if len(data) != 8:
            raise OSError(5, os.strerror(5), self._msr_path)
        return int.from_bytes(data, "little")

    def memlock(self) -> int | None:
        """Soft RLIMIT_MEMLOCK."""
        soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
        return None if soft == resource.RLIM_INFINITY else soft

    def _place(self, path: str) -> str:
        for start, other in self._moved.items():
            if path == start or path.startswith(start + "/"):
                return other + path[len(start) :]
        return os.path.join(self._root, path.lstrip("/"))
