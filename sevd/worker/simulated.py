"""The model's view on the guest of a worker on a simulated host (sevd.guests.machine.SimulatedView)."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from sev.launch.seam import Kernel
    from sevd.guests.machine import KeyRequest

    class Overlay(Kernel, Protocol):
        """A kernel whose SEV is a model that tells more than a real one (sevd.simulator.overlay)."""

        def name(self, vm_fd: int, guest_id: str) -> None: ...
        def launch_digest(self, vm_fd: int) -> bytes: ...
        def asid(self, vm_fd: int) -> int: ...
        def report(self, vm_fd: int, report_data: bytes, vmpl: int, key_selection: int) -> bytes: ...
        def key(self, vm_fd: int, **request: int) -> bytes: ...


class RemoteView:
    """What the model tells of one guest.

    Args:
        kernel: The kernel of this worker.
    """

    def __init__(self, kernel: Overlay) -> None:
        self._kernel = kernel

    def name(self, process: Kernel, vm_fd: int, guest_id: str) -> None:
        """Names the guest's files. Raises UsageError: another guest has the name."""
        del process
        self._kernel.name(vm_fd, guest_id)

    def launch_digest(self, process: Kernel, vm_fd: int) -> bytes:
        """The firmware's own launch digest, 48 bytes."""
        del process
        return self._kernel.launch_digest(vm_fd)

    def asid(self, process: Kernel, vm_fd: int) -> int:
        """Its ASID."""
        del process
        return self._kernel.asid(vm_fd)

    def guest_report(self, process: Kernel, vm_fd: int, report_data: bytes, vmpl: int, key_selection: int) -> bytes:
        """A report as the guest would get it, 1184 bytes. Raises FirmwareError."""
        del process
        return self._kernel.report(vm_fd, report_data, vmpl, key_selection)

    def guest_key(self, process: Kernel, vm_fd: int, request: KeyRequest) -> bytes:
        """A derived key as the guest would get it, 32 bytes. Raises FirmwareError."""
        del process
        return self._kernel.key(vm_fd, **request._asdict())
