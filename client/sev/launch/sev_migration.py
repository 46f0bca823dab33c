"""Sending an SEV guest to another platform, and receiving one, in the process that owns the VM.

    sender = Sender(guest)                          # a launched guest (sev.launch.Sev) whose vCPUs stand still
    departure = sender.start(pdh, chain, authorities)     # of the platform where it goes: verified before
    packet = sender.page(gpa)                       # for every page that is the guest's own
    sender.finish()                                 # it is away; cancel: it stays, and may run

    receiver = Receiver(guest)                      # a created guest, not started
    receiver.start(departure, own_pdh_of_the_sender)
    receiver.page(gpa, packet)
    receiver.finish()                               # it may run

Packets are encrypted for the receiver's platform; what a host changes in them, its firmware refuses. Registers of an
SEV guest and the pages that it shares with its host are not secret, and are the caller's to carry. Linux migrates no
SEV-ES guests: there is no command for their VMSAs.
"""

from __future__ import annotations

from sev import status as statuses
from sev.abi import kvm_sev
from sev.abi import kvm_sev_legacy as abi
from sev.errors import FirmwareError, UsageError
from sev.launch.machine import PAGE
from sev.records import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from sev.launch.sev import Sev

SESSION_SIZE = 128
HEADER_SIZE = 52

_KEPT = (
    "The guest's policy keeps it here: nosend never lets it go; domain, to platforms of the same owner (OCA) alone; a "
    "minimum API version, to platforms that have it."
)


@record
class Departure:
    """What the receiving platform needs to begin.

    Attributes:
        policy: Guest policy.
        session: Launch blob, 128 bytes: transport keys that only the receiver's firmware can unwrap.
    """

    policy: int
    session: bytes


@record
class Page:
    """One page of a guest on its way.

    Attributes:
        header: 52 bytes: flags, IV, MAC.
        data: The encrypted page.
    """

    header: bytes
    data: bytes


class _Scratch:
    """Memory for one header and one page, placed once for many commands."""

    def __init__(self, guest: Sev) -> None:
        self._guest = guest
        self._memory = guest.kernel.memory
        self._header = self._memory.place(bytes(HEADER_SIZE))
        self._page = self._memory.place(bytes(PAGE))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Gives the memory back; once more does nothing."""
        places, self._header, self._page = (self._header, self._page), 0, 0
        for place in places:
            if place:
                self._memory.release(place)

    def _address(self, gpa: int) -> int:
        """Where a page lies in this process. Raises UsageError: no page, or not inside one region."""
        if gpa % PAGE:
            raise UsageError(f"gpa: 0x{gpa:x} is not a multiple of {PAGE}", field="gpa")
        return self._guest.machine.address(gpa, PAGE)


class Sender(_Scratch):
    """One guest that goes. Close it, or use it as a context manager.

    Args:
        guest: A launched guest. It must not run until `cancel`.
    """

    def start(self, pdh: bytes, chain: bytes, authorities: bytes) -> Departure:
        """SEND_START.

        Args:
            pdh: The receiver's PDH, 2084 bytes.
            chain: Its PEK, OCA and CEK with AMD's signature, 6252 bytes (`sev.certs.sev_chain`, verified).
            authorities: ASK and ARK in a row.

        Raises:
            FirmwareError: POLICY_FAILURE: the policy does not let it go, or not there; BAD_SIGNATURE,
                INVALID_CERTIFICATE: the chain; INVALID_GUEST_STATE: not launched.
        """
        memory = self._memory
        placed = [memory.place(bytes(blob) or b"\0") for blob in (pdh, chain, authorities)]
        placed.append(memory.place(bytes(SESSION_SIZE)))
        try:
            request = abi.SendStart(
                0, placed[0], len(pdh), placed[1], len(chain), placed[2], len(authorities), placed[3], SESSION_SIZE
            )
            answer = abi.SendStart.decode(self._guest.command(kvm_sev.SEND_START, request))
            self._guest.machine.finished = False
            return Departure(answer.policy, memory.read(placed[3], SESSION_SIZE))
        except FirmwareError as error:
            if error.firmware_status == statuses.POLICY_FAILURE:
                error.remedy = _KEPT
            raise
        finally:
            for place in placed:
                memory.release(place)

    def page(self, gpa: int) -> Page:
        """SEND_UPDATE_DATA of one page.

        Raises:
            UsageError: Not a page of the guest's memory.
            FirmwareError: INVALID_GUEST_STATE: not started.
        """
        request = abi.SendUpdateData(self._header, HEADER_SIZE, self._address(gpa), PAGE, self._page, PAGE)
        self._guest.command(kvm_sev.SEND_UPDATE_DATA, request)
        return Page(self._memory.read(self._header, HEADER_SIZE), self._memory.read(self._page, PAGE))

    def finish(self) -> None:
        """SEND_FINISH: the guest is away, and never runs here again."""
        self._guest.command(kvm_sev.SEND_FINISH, None)

    def cancel(self) -> None:
        """SEND_CANCEL: the guest stays, and may run."""
        self._guest.command(kvm_sev.SEND_CANCEL, None)
        self._guest.machine.finished = True


class Receiver(_Scratch):
    """One guest that comes. Close it, or use it as a context manager.

    Args:
        guest: A created guest, as large as the one that comes, and not started.
    """

    def start(self, departure: Departure, pdh: bytes) -> int:
        """RECEIVE_START; answers the firmware's handle.

        Args:
            departure: What the sender's firmware made for this platform.
            pdh: The sender's PDH, 2084 bytes.

        Raises:
            FirmwareError: BAD_MEASUREMENT: made for another platform, or changed; POLICY_FAILURE.
        """
        memory = self._memory
        placed = [memory.place(bytes(blob) or b"\0") for blob in (pdh, departure.session)]
        try:
            request = abi.ReceiveStart(0, departure.policy, placed[0], len(pdh), placed[1], len(departure.session))
            return abi.ReceiveStart.decode(self._guest.command(kvm_sev.RECEIVE_START, request)).handle
        finally:
            for place in placed:
                memory.release(place)

    def page(self, gpa: int, page: Page) -> None:
        """RECEIVE_UPDATE_DATA of one page.

        Raises:
            UsageError: Not a page of the guest's memory, or not a header and a page.
            FirmwareError: BAD_MEASUREMENT: the packet was changed, or is another guest's.
        """
        address = self._address(gpa)
        if len(page.header) != HEADER_SIZE or len(page.data) != PAGE:
            raise UsageError(
                f"packet: {len(page.header)} and {len(page.data)} bytes, expected {HEADER_SIZE} and {PAGE}",
                field="packet",
            )
        self._memory.write(self._header, page.header)
        self._memory.write(self._page, page.data)
        request = abi.ReceiveUpdateData(self._header, HEADER_SIZE, address, PAGE, self._page, PAGE)
        self._guest.command(kvm_sev.RECEIVE_UPDATE_DATA, request)

    def finish(self) -> None:
        """RECEIVE_FINISH: the guest may run here."""
        self._guest.command(kvm_sev.RECEIVE_FINISH, None)
        self._guest.machine.finished = True
