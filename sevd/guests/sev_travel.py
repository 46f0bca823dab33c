"""An SEV guest that leaves for another host, or comes from one: its pages one by one, and the state of its vCPUs.

Private pages travel as packets that only the receiving firmware opens. Pages that the guest shares with its host travel
as they are; on a simulated host those are all that no command encrypted, on a real one those that the guest said.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sev.errors import MalformedInput, UsageError, WrongState
from sev.launch import vcpu_state
from sev.launch.sev_migration import BATCH, Departure, Page, Receiver, Sender
from sevd.guests.memory import Intervals
from sevd.guests.model import PAGE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sev.launch.memory import Range
    from sev.launch.sev import Sev

LOOKS = 8192
"""Pages that one call looks at."""


class Carried(NamedTuple):
    """One page on its way.

    Attributes:
        gpa: Guest physical address.
        header: Header of its packet, 52 bytes; empty for a shared page.
        data: The packet, or the content of a shared page; 4096 bytes.
    """

    gpa: int
    header: bytes
    data: bytes


class Leaving(NamedTuple):
    """What is known of a guest when it begins to leave.

    Attributes:
        session: Launch blob for the receiver, 128 bytes.
        vcpus: State of each vCPU (sev.launch.vcpu_state).
        shared: The memory that it shares with its host: (address, bytes), whole pages.
    """

    session: bytes
    vcpus: tuple[bytes, ...]
    shared: tuple[tuple[int, int], ...] = ()


class SevTravel:
    """One guest on its way.

    Args:
        driver: What drives its VM.
        told: The platform is a model: what is private is known from its commands. Else all that the guest did not
            declare shared.
    """

    def __init__(self, driver: Sev, *, told: bool) -> None:
        self._driver = driver
        self._told = told
        self._private = Intervals()
        self._shared = Intervals()
        self._sender: Sender | None = None
        self._receiver: Receiver | None = None

    def take(self, gpa: int, size: int, private: bool = True) -> None:
        """Pages became private, or shared."""
        start, end = gpa - gpa % PAGE, -(-(gpa + size) // PAGE) * PAGE
        to, other = (self._private, self._shared) if private else (self._shared, self._private)
        to.add(start, end)
        other.remove(start, end)

    def start_sending(self, pdh: bytes, chain: bytes, authorities: bytes) -> Leaving:
        """SEND_START; takes the state of the vCPUs, which stand still."""
        kernel, machine = self._driver.kernel, self._driver.machine
        vcpus = tuple(vcpu_state.take(kernel, fd) for fd in machine.vcpu_fds)
        sender = Sender(self._driver)
        try:
            departure = sender.start(pdh, chain, authorities)
        except BaseException:
            sender.close()
            raise
        self._sender = sender
        return Leaving(departure.session, vcpus, self._shared_memory())

    def send(self, position: int, most: int) -> tuple[list[Carried], int]:
        """At most so many pages from a position on, and where to go on; 0: that was all."""
        sender = self._sending()
        wanted, following = self._next(position, most)
        sealed = [gpa for gpa, content in wanted if content is None]
        packets: list[Page] = []
        for at in range(0, len(sealed), BATCH):
            packets += sender.pages(sealed[at : at + BATCH])
        each = iter(packets)
        out = []
        for gpa, content in wanted:
            packet = next(each) if content is None else Page(b"", content)
            out.append(Carried(gpa, packet.header, packet.data))
        return out, following

    def _next(self, position: int, most: int) -> tuple[list[tuple[int, bytes | None]], int]:
        """Addresses of the next pages, with the content of shared ones, and where to go on."""
        out: list[tuple[int, bytes | None]] = []
        first = 0
        for part in self._ranges():
            count = part.size // PAGE
            for page in range(max(position - first, 0), count):
                number = first + page
                if len(out) == most or number >= position + LOOKS:
                    return out, number
                gpa = part.gpa + page * PAGE
                if self._is_private(gpa):
                    out.append((gpa, None))
                elif any(content := part.pages[page * PAGE : (page + 1) * PAGE]):
                    out.append((gpa, content))
            first += count
        return out, 0

    def cancel(self) -> None:
        """SEND_CANCEL."""
        self._sending().cancel()
        self.close()

    def finish_sending(self) -> None:
        """SEND_FINISH."""
        self._sending().finish()
        self.close()

    def start_receiving(self, departure: Departure, pdh: bytes) -> None:
        """RECEIVE_START."""
        receiver = Receiver(self._driver)
        try:
            receiver.start(departure, pdh)
        except BaseException:
            receiver.close()
            raise
        self._receiver = receiver

    def receive(self, pages: Sequence[Carried]) -> None:
        """RECEIVE_UPDATE_DATA of packets; shared pages are written as they are.

        Raises:
            UsageError: A page outside of memory, or a shared one over a private one.
        """
        receiver = self._receiving()
        packets = [one for one in pages if one.header]
        for at in range(0, len(packets), BATCH):
            group = packets[at : at + BATCH]
            receiver.pages((one.gpa, Page(one.header, one.data)) for one in group)
            for one in group:
                self.take(one.gpa, PAGE)
        for one in pages:
            if one.header:
                continue
            if one.gpa % PAGE or len(one.data) != PAGE or self._private.overlap(one.gpa, one.gpa + PAGE) is not None:
                raise UsageError(f"pages: the page at 0x{one.gpa:x} is none, or came as private before", field="pages")
            with self._driver.memory(one.gpa, PAGE) as memory:
                memory[:] = one.data

    def finish_receiving(self, vcpus: Sequence[bytes], shared: Sequence[tuple[int, int]]) -> None:
        """RECEIVE_FINISH, after the vCPUs were given their state.

        Raises:
            MalformedInput: A state of a vCPU that is none, or too many or few of them.
            UsageError: What is said to be shared came as private, or the rest of memory did not.
            FirmwareError, KernelError: Refused.
        """
        receiver, machine = self._receiving(), self._driver.machine
        if len(vcpus) != len(machine.vcpu_fds):
            raise MalformedInput(f"vcpus: {len(vcpus)} states for {len(machine.vcpu_fds)} vCPUs", field="vcpus")
        for state in vcpus:
            vcpu_state.parse(state)
        self._take_shared(shared)
        for fd, state in zip(machine.vcpu_fds, vcpus, strict=True):
            vcpu_state.give(self._driver.kernel, fd, state)
        receiver.finish()
        self.close()

    def _take_shared(self, shared: Sequence[tuple[int, int]]) -> None:
        """The map of what the guest shares. All memory must have come as the map has it: nothing was lost."""
        named = Intervals()
        for gpa, size in shared:
            whole = size > 0 and not (gpa % PAGE or size % PAGE)
            if (at := self._private.overlap(gpa, gpa + size) if whole else gpa) is not None:
                raise UsageError(f"shared: 0x{at:x} is no page, or came as private", field="shared")
            named.add(gpa, gpa + size)
        for part in self._ranges():
            for start, end in self._private.gaps(part.gpa, part.gpa + part.size):
                for lacking, _ in named.gaps(start, end):
                    raise UsageError(
                        f"shared: the page at 0x{lacking:x} is not shared, and did not come", field="shared"
                    )
        self._shared = named

    def _shared_memory(self) -> tuple[tuple[int, int], ...]:
        out = []
        for part in self._ranges():
            end = part.gpa + part.size
            runs = self._private.gaps(part.gpa, end) if self._told else self._shared.within(part.gpa, end)
            out += [(start, stop - start) for start, stop in runs]
        return tuple(out)

    def _ranges(self) -> list[Range]:
        memory = self._driver.machine.guest_memory
        assert memory is not None
        return memory.ranges

    def close(self) -> None:
        """Gives back what is held for the way; once more does nothing."""
        for one in (self._sender, self._receiver):
            if one is not None:
                one.close()
        self._sender = self._receiver = None

    def _is_private(self, gpa: int) -> bool:
        if self._told:
            return self._private.overlap(gpa, gpa + PAGE) is not None
        return self._shared.overlap(gpa, gpa + PAGE) is None

    def _sending(self) -> Sender:
        if self._sender is None:
            raise WrongState("the guest is not being sent", metadata={"state": "READY", "allowed": "start_sending"})
        return self._sender

    def _receiving(self) -> Receiver:
        if self._receiver is None:
            raise WrongState("nothing is being received", metadata={"state": "CREATED", "allowed": "start_receiving"})
        return self._receiver
