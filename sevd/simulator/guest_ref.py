"""A launched guest as its own devices see it: its name, its keys, and its line to the firmware.

    for guest_id, guest in simulator.guests().items():
        response = guest.send(message)           # SNP_GUEST_REQUEST, as the guest's kernel asks KVM for it

A guest has the name that its owner gave it, else asid-N.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, TypeVar

from sevd.simulator.errnos import Reply, fail
from sevd.simulator.firmware_status import FirmwareStatus

if TYPE_CHECKING:
    from sevd.simulator.kvm_vm import Vm

T = TypeVar("T")
NAME = re.compile(r"[a-z0-9-]{8,36}")
RESERVED = re.compile(r"asid-[0-9]+")
"""What guests without a name are called; nobody may call himself so."""


def valid_name(name: str) -> bool:
    """Whether a guest may be given this name."""
    return NAME.fullmatch(name) is not None and RESERVED.fullmatch(name) is None


class GuestRef:
    """One guest, from the start of its launch to its end; the same object all that time.

    Args:
        vm: Its VM.
    """

    def __init__(self, vm: Vm) -> None:
        self._vm = vm

    @property
    def guest_id(self) -> str:
        """Its name, else asid-N."""
        return self._vm.name or f"asid-{self._vm.sev.asid}"

    @property
    def asid(self) -> int:
        """Its ASID."""
        return self._vm.sev.asid

    @property
    def alive(self) -> bool:
        """Its VM exists, and the firmware knows it."""
        return self._vm.sev.active and self._vm.sev.context is not None

    @property
    def running(self) -> bool:
        """Its launch is finished: the firmware answers its messages."""
        return self.alive and self._vm.sev.finished

    @property
    def lock(self) -> AbstractContextManager[object]:
        """Held while a message is numbered and sent, so that two senders cannot take the same number."""
        return self._vm.module.ccp.lock

    def vmpck(self, number: int) -> bytes:
        """The key of a privilege level (0 to 3), 32 bytes, as its secrets page has it. Secret.

        Raises:
            OSError: ENXIO: the guest is gone, or there is no such level.
        """
        return self._ask(lambda context: self._vm.module.ccp.firmware.vmpck(context, number))

    def messages(self, number: int) -> int:
        """Messages sent and received with a level's key so far, as its secrets page counts them.

        Raises:
            OSError: As `vmpck`.
        """
        return self._ask(lambda context: self._vm.module.ccp.firmware.message_count(context, number))

    def send(self, message: bytes) -> bytes:
        """SNP_GUEST_REQUEST: an encrypted request to its encrypted response, one page at most.

        Raises:
            FirmwareRefused: EIO with `status`: the guest sees the status in SW_EXITINFO2.
            OSError: Everything else ends KVM_RUN with this errno. EBADF: the owner closed the /dev/sev descriptor of
                the launch; ETIMEDOUT, EBUSY: the secure processor does not answer; ENXIO: the guest is gone.
        """
        vm = self._vm
        context, ccp = vm.sev.context, vm.module.ccp
        if context is None:
            fail(errno.ENXIO)
        ccp.resolve(vm.owner, vm.sev.fd)
        return ccp.call(Reply(), lambda: ccp.firmware.snp_guest_request(context, message))

    def _ask(self, question: Callable[[int], T]) -> T:
        context = self._vm.sev.context
        if context is None:
            fail(errno.ENXIO)
        try:
            return question(context)
        except FirmwareStatus:
            fail(errno.ENXIO)
