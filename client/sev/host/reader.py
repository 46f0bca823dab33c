"""What a look at a host needs, as a protocol: everything that the checks read goes through one of these.

`sev.host.linux` is the real one. Tests, the simulator and the daemon offer their own. A reader changes nothing on the
host. What cannot be read is an OSError with the kernel's errno, or a SevError where a SEV command was refused.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from sev.abi.sev_device import PlatformStatus, SnpStatus

    class Reader(Protocol):
        """One host, looked at."""

        sev_path: str
        """The SEV device, usually /dev/sev."""

        kvm_path: str
        """The KVM device, usually /dev/kvm."""

        def architecture(self) -> str:
            """The machine word of uname(2), such as "x86_64"."""

        def user(self) -> int:
            """The effective uid of whoever looks."""

        def text(self, path: str, limit: int = 1 << 16) -> str:
            """The first `limit` bytes of a file, bytes that are no ASCII replaced. Raises OSError."""

        def names(self, path: str) -> list[str]:
            """What is in a directory, sorted. Raises OSError."""

        def cpuid(self, leaf: int, subleaf: int = 0) -> tuple[int, int, int, int]:
            """EAX, EBX, ECX, EDX; zeros for a leaf that is not there. Raises CpuidUnavailable."""

        def msr(self, number: int) -> int:
            """A model-specific register of CPU 0, 64 bits. Raises OSError: EIO if the processor has no such one."""

        def memlock(self) -> int | None:
            """Bytes of memory that a process of this user may lock (soft RLIMIT_MEMLOCK); None if unlimited."""

        def try_open(self, path: str, *, write: bool) -> None:
            """Opens and closes a device. Raises OSError."""

        def platform_status(self) -> PlatformStatus:
            """PLATFORM_STATUS of SEV. Raises SevError."""

        def snp_status(self) -> SnpStatus:
            """SNP_PLATFORM_STATUS. Raises SevError."""

        def config_refusal(self) -> int:
            """The errno of SNP_SET_CONFIG on a read-only descriptor, with an address that is not there: it never
            reaches the firmware, and its errno tells kernels apart. Raises SevError if it cannot be opened."""

        def kvm_version(self) -> int:
            """KVM_GET_API_VERSION. Raises OSError."""

        def kvm_extension(self, capability: int) -> int:
            """KVM_CHECK_EXTENSION on the KVM device. Raises OSError."""

        def close(self) -> None:
            """Gives back what the reader holds."""

        def kvm_attribute(self, attribute: int) -> int:
            """KVM_GET_DEVICE_ATTR of group SEV, 64 bits. Raises OSError: ENXIO if there is no such attribute."""
