"""The host's side of an SNP guest's requests: the hypercalls GUEST_REQUEST and EXT_GUEST_REQUEST as KVM and a VMM
answer them together.

The firmware's refusal goes back to the guest as a status. The host's own refusals (no room for the certificates, busy)
stand in the high half of `exitinfo2`.

Source: GHCB specification (AMD 56421), SNP guest requests; arch/x86/kvm/svm/sev.c.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

from sev.abi import guest_device as abi
from sevd.simulator.errnos import FirmwareRefused
from sevd.simulator.firmware_status import FirmwareStatus

GUEST_REQUEST = "GUEST_REQUEST"
EXT_GUEST_REQUEST = "EXT_GUEST_REQUEST"
"""What the fault hook is called with."""


class GuestRef(Protocol):
    """A guest of the simulated host, as its own software meets it."""

    @property
    def lock(self) -> AbstractContextManager[object]:
        """Held while a message is numbered and sent, so that two senders cannot take the same number."""

    @property
    def running(self) -> bool:
        """Its launch is finished, and it was not ended."""

    def send(self, message: bytes) -> bytes:
        """SNP_GUEST_REQUEST. Raises FirmwareRefused, HostRefused, or OSError where KVM could not ask the firmware."""

    def vmpck(self, number: int) -> bytes:
        """A communication key from the guest's secrets page, 32 bytes."""

    def messages(self, number: int) -> int:
        """Messages sent and received with that key so far, as the secrets page counts them."""


class HostRefused(Exception):
    """The host answers a guest's request with an error of its own, such as abi.VMM_ERROR_BUSY, and does not ask the
    firmware. Raised by fault hooks."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Answer(NamedTuple):
    """What the guest finds after the hypercall.

    Attributes:
        exitinfo2: 0: done.
        response: The encrypted response.
        certificates: What was put into the certificate pages.
        pages: Pages that the certificates need, where they did not fit.
    """

    exitinfo2: int
    response: bytes = b""
    certificates: bytes = b""
    pages: int = 0


class GuestHost:
    """The host of one guest.

    Args:
        guest: The guest.
        certificates: The certificate table for guests; empty: this host has none.
        faults: Called with the name of a hypercall before it is answered; may raise HostRefused, FirmwareStatus or
            TimeoutError.
    """

    def __init__(self, guest: GuestRef, certificates: Callable[[], bytes], faults: Callable[[str], None]) -> None:
        self._guest = guest
        self._certificates = certificates
        self._faults = faults

    def refusal(self, *, extended: bool) -> Answer | None:
        """The answer that a fault makes the host give, with or without a delay; None: there is no such fault."""
        try:
            self._faults(EXT_GUEST_REQUEST if extended else GUEST_REQUEST)
        except HostRefused as refused:
            return Answer(abi.vmm_error(refused.code))
        except FirmwareStatus as refused:
            return Answer(refused.code)
        except OSError:
            return Answer(abi.EXITINFO2_NO_FW_CALL)
        return None

    def request(self, message: bytes) -> Answer:
        """GUEST_REQUEST."""
        try:
            return Answer(0, self._guest.send(message))
        except HostRefused as refused:
            return Answer(abi.vmm_error(refused.code))
        except FirmwareRefused as refused:
            return Answer(refused.status)
        except OSError:
            # KVM tells the VMM, not the guest: no answer ever comes.
            return Answer(abi.EXITINFO2_NO_FW_CALL)

    def extended(self, message: bytes, pages: int) -> Answer:
        """EXT_GUEST_REQUEST: as above, with the certificate table put into that many pages. Where it does not fit, the
        firmware is not asked."""
        table = self._certificates()
        needed = -(-len(table) // abi.CERTS_PAGE)
        if needed > pages:
            return Answer(abi.vmm_error(abi.VMM_ERROR_INVALID_LEN), pages=needed)
        answer = self.request(message)
        return answer if answer.exitinfo2 else answer._replace(certificates=table)
