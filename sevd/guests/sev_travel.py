"""An SEV guest that leaves for another host, or comes from one: its pages one by one, and the state of its vCPUs.

Private pages travel as packets that only the receiving firmware opens. Pages that the guest shares with its host travel
as they are; on a simulated host those are all that no command encrypted, on a real one those that the guest said.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sev.errors import MalformedInput, UsageError, WrongState
from sev.launch import vcpu_state
from sev.launch.sev_migration import Departure, Page, Receiver, Sender
from sevd.guests.memory import Intervals
from sevd.guests.model import PAGE

if TYPE_CHECKING:
    from collections.abc import Sequence

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
    """

    session: bytes
    vcpus: tuple[bytes, ...]


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
        return Leaving(departure.session, vcpus)

    def send(self, position: int, most: int) -> tuple[list[Carried], int]:
        """At most so many pages from a position on, and where to go on; 0: that was all."""
        sender = self._sending()
        memory = self._driver.machine.guest_memory
        assert memory is not None
        out: list[Carried] = []
        first = 0
        for part in memory.ranges:
            count = part.size // PAGE
            for page in range(max(position - first, 0), count):
                number = first + page
                if len(out) == most or number >= position + LOOKS:
                    return out, number
                gpa = part.gpa + page * PAGE
                if self._is_private(gpa):
                    packet = sender.page(gpa)
                    out.append(Carried(gpa, packet.header, packet.data))
                elif any(content := part.pages[page * PAGE : (page + 1) * PAGE]):
                    out.append(Carried(gpa, b"", content))
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
        for one in pages:
            if one.header:
                receiver.page(one.gpa, Page(one.header, one.data))
                self.take(one.gpa, PAGE)
                continue
            if one.gpa % PAGE or len(one.data) != PAGE or self._private.overlap(one.gpa, one.gpa + PAGE) is not None:
                raise UsageError(f"pages: the page at 0x{one.gpa:x} is none, or came as private before", field="pages")
            with self._driver.memory(one.gpa, PAGE) as memory:
                memory[:] = one.data

    def finish_receiving(self, vcpus: Sequence[bytes]) -> None:
        """RECEIVE_FINISH, after the vCPUs were given their state."""
        receiver, machine = self._receiving(), self._driver.machine
        if len(vcpus) != len(machine.vcpu_fds):
            raise MalformedInput(f"vcpus: {len(vcpus)} states for {len(machine.vcpu_fds)} vCPUs", field="vcpus")
        for state in vcpus:
            vcpu_state.parse(state)
        for fd, state in zip(machine.vcpu_fds, vcpus, strict=True):
            vcpu_state.give(self._driver.kernel, fd, state)
        receiver.finish()
        self.close()

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
