"""What the guest room asks of a machine, wherever it lives: in the daemon's own process or in a worker.

A `GuestMachine` is one VM under launch. Its methods block, and run on the device worker; `memory` and `share` do not
wait for the device and may be called from any thread. `Machines` is where they come from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from sevd.guests.model import CreateGuest, GuestState

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
    from datetime import datetime

    from sev.launch.sev_migration import Departure
    from sevd.guests.machine import Finish, KeyRequest
    from sevd.guests.sev_launch import Measured
    from sevd.guests.sev_travel import Carried, Leaving


class Card(NamedTuple):
    """Whose guest it is and what was asked for: what a machine keeps for a daemon that starts again.

    Attributes:
        guest_id: Its id.
        owner: Who created it.
        create_time: When (aware, UTC).
        simulated: Its platform is simulated.
        request: What was asked for.
    """

    guest_id: str
    owner: str
    create_time: datetime
    simulated: bool
    request: CreateGuest


class Progress(NamedTuple):
    """How far a guest is, as its machine knows.

    Attributes:
        state: State.
        policy: Guest policy; 0 before the launch starts.
        launch_digest: 48 or 32 bytes; empty before READY or MEASURED, and for guests without one.
        failure: Why it FAILED; empty otherwise.
        updated_pages: Pages of 4 KiB that LAUNCH_UPDATE accepted.
        taken: Their address ranges: (first, end).
        measurement: What LAUNCH_MEASURE answered; empty before, and for guests without one.
    """

    state: GuestState = GuestState.CREATED
    policy: int = 0
    launch_digest: bytes = b""
    failure: str = ""
    updated_pages: int = 0
    taken: tuple[tuple[int, int], ...] = ()
    measurement: bytes = b""


class Piece(NamedTuple):
    """One range of guest memory and where it lies in the guest's memfd.

    Attributes:
        gpa: Guest physical address of its first byte.
        size: Bytes.
        offset: Byte in the memfd.
    """

    gpa: int
    size: int
    offset: int


class SharedMemory(NamedTuple):
    """A guest's memory as somebody may map it.

    Attributes:
        fd: The memfd, sealed against growing and shrinking. The machine's: it is not to be closed.
        layout: Where guest memory lies in it.
    """

    fd: int
    layout: tuple[Piece, ...]


class Travel(Protocol):
    """An SEV guest's way to another host, or from one; see sevd.guests.sev_travel."""

    def start_sending(self, pdh: bytes, chain: bytes, authorities: bytes) -> Leaving:
        """SEND_START."""

    def send(self, position: int, most: int) -> tuple[list[Carried], int]:
        """SEND_UPDATE_DATA."""

    def cancel(self) -> None:
        """SEND_CANCEL."""

    def finish_sending(self) -> None:
        """SEND_FINISH."""

    def start_receiving(self, departure: Departure, pdh: bytes) -> None:
        """RECEIVE_START."""

    def receive(self, pages: Sequence[Carried]) -> None:
        """RECEIVE_UPDATE_DATA."""

    def finish_receiving(self, vcpus: Sequence[bytes], shared: Sequence[tuple[int, int]]) -> None:
        """RECEIVE_FINISH."""


class GuestMachine(Protocol):
    """One VM under launch."""

    @property
    def asid(self) -> int:
        """The ASID where the platform is a model that tells it; 0 elsewhere."""

    def create(self, card: Card) -> None:
        """Makes the VM with its memory and vCPUs. Whatever fails, nothing is left behind."""

    def memory(self, gpa: int, size: int) -> memoryview:
        """The writable bytes of an address range. Raises UsageError outside of memory."""

    def share(self) -> SharedMemory:
        """The guest's memory for others to map. Raises NotOffered where there is no such thing."""

    def start(self, policy: int, gosvw: bytes, certificate: bytes = b"", session: bytes = b"") -> None:
        """LAUNCH_START; of an SEV or SEV-ES guest with its owner's certificate and launch blob, if it has an owner."""

    def update(self, gpa: int, size: int, page_type: int) -> None:
        """LAUNCH_UPDATE of whole pages of one type, or of a run of bytes."""

    def measure(self) -> Measured:
        """LAUNCH_MEASURE of an SEV or SEV-ES guest, after LAUNCH_UPDATE_VMSA of the latter."""

    def secret(self, gpa: int, header: bytes, payload: bytes) -> None:
        """LAUNCH_SECRET."""

    def attestation(self, mnonce: bytes) -> bytes:
        """GET_ATTESTATION_REPORT, 208 bytes."""

    def debug_read(self, gpa: int, size: int) -> bytes:
        """DBG_DECRYPT."""

    def debug_write(self, gpa: int, data: bytes) -> None:
        """DBG_ENCRYPT."""

    def finish(self, finish: Finish) -> bytes:
        """LAUNCH_FINISH; answers the launch digest, 48 bytes, or nothing where there is none."""

    def report(self, report_data: bytes, vmpl: int, key_selection: int) -> bytes:
        """Plays the guest: MSG_REPORT_REQ. Raises NotOffered on a real platform."""

    def key(self, request: KeyRequest) -> bytes:
        """Plays the guest: MSG_KEY_REQ. Raises NotOffered on a real platform."""

    @property
    def travel(self) -> Travel:
        """The guest's way to another host, or from one. Raises NotOffered for other types than SEV."""

    def run_connection(self) -> socket.socket:
        """A connection over which the guest's vCPUs are run (sevd.worker.vcpus): SOCK_SEQPACKET, blocking, connected,
        its first message sent. The caller closes it.

        Raises:
            NotOffered: Guests do not execute where this machine lives.
        """

    def close(self, lost: str = "") -> None:
        """Ends the VM and frees what it held; once more does nothing. `lost` says why the guest was lost, if it was:
        a machine that outlives the daemon leaves that for the next one to find (Machines.forget)."""

    def leave(self) -> None:
        """The daemon ends: gives up what the daemon holds of it. A machine that outlives the daemon goes on."""


class Found(NamedTuple):
    """A machine that an earlier daemon left.

    Attributes:
        card: Whose guest it is.
        progress: How far it is.
        machine: The machine; None where it is gone.
        reason: Why it is gone; empty otherwise.
    """

    card: Card
    progress: Progress
    machine: GuestMachine | None
    reason: str = ""


class Machines(Protocol):
    """Where machines come from."""

    outlive: bool
    """Machines go on when the daemon ends, and are found by the next one."""

    def make(self) -> GuestMachine:
        """A machine to be created. Blocks for as long as a process takes to start; from any thread."""

    def watch(self, machine: GuestMachine, lost: Callable[[str], None]) -> None:
        """Calls `lost` with the reason, once, on the running event loop, if the machine ends without `close`."""

    def find(self) -> Iterable[Found]:
        """What an earlier daemon left. Blocks, briefly; to be called once, before anything is made."""

    def awaited(self) -> Collection[Card]:
        """What else it left, and does not answer yet: its process is in the middle of a firmware command."""

    def find_late(self) -> Iterator[Found]:
        """Those, one by one as they answer; until `close`, or until their patience is over. Blocks."""

    def forget(self, owner: str, guest_id: str) -> None:
        """A guest that was lost is deleted: it will not be found again. Blocks."""

    def close(self) -> None:
        """Gives up what was prepared. Blocks."""
