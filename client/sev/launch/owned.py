"""What every guest has in the process that owns it: a VM, the devices it was made with, and an end."""

from __future__ import annotations

import os

from sev.abi import kvm
from sev.errors import NotOffered, WrongState
from sev.launch.machine import Machine
from sev.launch.refusals import opening

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from sev.launch.seam import Kernel


class OwnedGuest:
    """One guest of this process. Its end frees everything; a context manager ends it.

    Args:
        kernel: The kernel as this process sees it. The guest belongs to this process: no other can drive it.
        sev_path: Device of the secure processor; it is opened for reading only, which suffices for every launch.
        kvm_path: Device of KVM.
        share_memory: Guest memory is a memfd, which others can map; else it is this process's alone, in large pages.
    """

    def __init__(
        self,
        kernel: Kernel,
        *,
        sev_path: str = "/dev/sev",
        kvm_path: str = "/dev/kvm",
        share_memory: bool = True,
    ) -> None:
        self.kernel = kernel
        self._sev_path = sev_path
        self._kvm_path = kvm_path
        self._share_memory = share_memory
        self._sev_fd = -1
        self._machine: Machine | None = None
        self._dead = ""
        """Why nothing can be done with it any more; empty while something can."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def machine(self) -> Machine:
        """The VM below: its descriptors and memory. Raises WrongState where there is none, or none that is of use."""
        if self._dead or self._machine is None:
            raise WrongState(
                self._dead or "this guest was not created",
                metadata={"state": "dead" if self._dead else "new", "allowed": "close" if self._dead else "create"},
            )
        return self._machine

    @property
    def vm_fd(self) -> int:
        """The VM's descriptor. Raises WrongState as `machine`."""
        return self.machine.vm_fd

    def memory(self, gpa: int, size: int) -> memoryview:
        """Guest memory as this process sees it, writable.

        Raises:
            UsageError: Not wholly inside one region of guest memory.
            WrongState: There is no VM.
        """
        return self.machine.view(gpa, size)

    def close(self) -> None:
        """Ends the guest and frees what it held, its ASID too; once more does nothing."""
        self._dead = self._dead or "this guest was closed"
        self._give_up()

    def _begin(self) -> None:
        """Raises WrongState unless the guest is still to be created."""
        if self._machine is not None or self._dead:
            raise WrongState(
                f"create: {self._dead or 'this guest exists already'}",
                metadata={"state": "dead" if self._dead else "created", "allowed": "close"},
            )

    def _open_sev(self) -> None:
        """Opens the secure processor's device. Raises DeviceMissing, NotPermitted."""
        try:
            self._sev_fd = self.kernel.open(self._sev_path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise opening(error, self._sev_path) from None

    def _give_up(self) -> None:
        machine, self._machine = self._machine, None
        if machine is not None:
            machine.close()
        fd, self._sev_fd = self._sev_fd, -1
        if fd >= 0:
            self.kernel.close(fd)


def check_features(machine: Machine, wanted: int, *, without: int = 0, always: int = 0) -> None:
    """Raises NotOffered unless KVM offers these VMSA features.

    Args:
        machine: The VM.
        wanted: SEV_FEATURES asked for.
        without: Features that are offered, and not for this type of guest.
        always: Features that every guest of this type has, for the sentence.
    """
    offered = machine.sev_attribute(kvm.SEV_ATTR_VMSA_FEATURES) & ~without
    if wanted & ~offered:
        raise NotOffered(
            f"VMSA features 0x{wanted & ~offered:x} are not offered by this kernel and processor",
            field="vmsa_features",
            remedy=f"It offers 0x{offered | always:x}.",
            command="SEV_INIT2",
        )
