"""Sending an SEV guest to another platform, and receiving one, in the process that owns the VM.

    sender = Sender(guest)                          # a launched guest (sev.launch.Sev) whose vCPUs stand still
    departure = sender.start(pdh, chain, authorities)     # of the platform where it goes: verified before
    packets = sender.pages(gpas)                    # of all pages that are the guest's own, at most 64 at a time
    sender.finish()                                 # it is away; cancel: it stays, and may run

    receiver = Receiver(guest)                      # a created guest, not started
    receiver.start(departure, own_pdh_of_the_sender)
    receiver.pages(zip(gpas, packets))
    receiver.finish()                               # it may run

Packets are encrypted for the receiver's platform; what a host changes in them, its firmware refuses. Registers of an
SEV guest and the pages that it shares with its host are not secret, and are the caller's to carry. Linux migrates no
SEV-ES guests: there is no command for their VMSAs.
"""

from __future__ import annotations

import contextlib
import mmap
from itertools import islice

from sev import status as statuses
from sev.abi import kvm_sev
from sev.abi import kvm_sev_legacy as abi
from sev.errors import FirmwareError, UsageError
from sev.launch.machine import PAGE
from sev.records import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from types import TracebackType
    from typing import Self

    from sev.launch.sev import Sev

SESSION_SIZE = 128
HEADER_SIZE = 52
BATCH = 64
"""Pages of one call."""

_ROOM, _STRUCTURE, _ENVELOPE = 256, 64, 128
"""Bytes for the header of a page and the command on it, and where the command's parts lie there."""

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
    """Memory for headers, pages and the commands on them, placed once for many commands."""

    def __init__(self, guest: Sev) -> None:
        self._guest = guest
        self._memory = guest.kernel.memory
        self._area = mmap.mmap(-1, BATCH * (PAGE + _ROOM))
        self._base = self._memory.place(memoryview(self._area))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Gives the memory back; once more does nothing."""
        base, self._base = self._base, 0
        if base:
            self._memory.release(base)
            with contextlib.suppress(BufferError):  # a view is on its way out: the memory goes with it
                self._area.close()

    def _command(self, number: int, gpas: Sequence[int]) -> None:
        """The command for every page, on the headers and pages that lie in the area.

        Raises:
            UsageError: No page, not inside one region, or too many.
        """
        if len(gpas) > BATCH:
            raise UsageError(f"{len(gpas)} pages at once, expected at most {BATCH}", field="gpa")
        fill, places = abi.SendUpdateData.LAYOUT.pack_into, []
        for index, gpa in enumerate(gpas):
            if gpa % PAGE:
                raise UsageError(f"gpa: 0x{gpa:x} is not a multiple of {PAGE}", field="gpa")
            address = self._guest.machine.address(gpa, PAGE)
            room, page = self._room(index), self._base + index * PAGE
            fill(self._area, room + _STRUCTURE, self._base + room, HEADER_SIZE, address, PAGE, page, PAGE)
            envelope = self._guest.envelope(number, self._base + room + _STRUCTURE).encode()
            self._area[room + _ENVELOPE : room + _ENVELOPE + len(envelope)] = envelope
            places.append(self._base + room + _ENVELOPE)
        self._guest.command_each(number, places)

    def _room(self, index: int) -> int:
        """Where the header of a page lies in the area, and after it the command."""
        return BATCH * PAGE + index * _ROOM


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
        """One page; see `pages`."""
        return self.pages((gpa,))[0]

    def pages(self, gpas: Sequence[int]) -> list[Page]:
        """SEND_UPDATE_DATA of pages, at most 64; Linux takes one a command.

        Raises:
            UsageError: Not a page of the guest's memory, or too many.
            FirmwareError: INVALID_GUEST_STATE: not started.
        """
        self._command(kvm_sev.SEND_UPDATE_DATA, gpas)
        area, out = self._area, []
        for index in range(len(gpas)):
            room = self._room(index)
            out.append(Page(area[room : room + HEADER_SIZE], area[index * PAGE : (index + 1) * PAGE]))
        return out

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
        """One page; see `pages`."""
        self.pages(((gpa, page),))

    def pages(self, pages: Iterable[tuple[int, Page]]) -> None:
        """RECEIVE_UPDATE_DATA of pages with their addresses, at most 64.

        Raises:
            UsageError: Not a page of the guest's memory, not a header and a page, or too many.
            FirmwareError: BAD_MEASUREMENT: a packet was changed, or is another guest's.
        """
        gpas: list[int] = []
        for index, (gpa, page) in enumerate(islice(pages, BATCH + 1)):
            if len(page.header) != HEADER_SIZE or len(page.data) != PAGE:
                raise UsageError(
                    f"packet: {len(page.header)} and {len(page.data)} bytes, expected {HEADER_SIZE} and {PAGE}",
                    field="packet",
                )
            gpas.append(gpa)
            if index < BATCH:
                room = self._room(index)
                self._area[room : room + HEADER_SIZE] = page.header
                self._area[index * PAGE : (index + 1) * PAGE] = page.data
        self._command(kvm_sev.RECEIVE_UPDATE_DATA, gpas)

    def finish(self) -> None:
        """RECEIVE_FINISH: the guest may run here."""
        self._guest.command(kvm_sev.RECEIVE_FINISH, None)
        self._guest.machine.finished = True
