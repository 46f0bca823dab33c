"""One vCPU's thread: enters the guest, hands its exits to the link, waits for their completions, parks when told to.

An exit is kept until the client has completed it, and is sent again over the next link if this one ends before that: no
exit is lost. Over one link no exit is sent twice. Exits that need an answer (reads, a halt) hold the vCPU until it
comes; writes hold it when more of them than the client admits are not completed yet.
"""

from __future__ import annotations

import logging
import threading
from collections import deque

from sev.abi import kvm_run
from sev.errors import NotNow, SevError, UsageError
from sevd.worker.run_wire import EXITS, encode_exit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from sev.abi.kvm_run import Exit
    from sev.launch.vcpu import Vcpu
    from sevd.worker.conversions import Conversions

    class Link(Protocol):
        """Where exits go."""

        posted_writes: int

        def send(self, packet: bytes, runner: Runner) -> bool:
            """Sends a packet; False if the link is gone, or the runner is to park before there was room."""

    class Owner(Protocol):
        """Who has the vCPUs."""

        def ended(self, reason: str, *, failed: bool) -> None:
            """The guest ended; it never runs again."""


STACK_BYTES = 256 << 10
"""A runner's thread calls nothing deep."""

MEMORY_FAULTS = 64
"""So many faults of one page in a row mean that converting it does not help."""

RUN, PARK, END = range(3)

log = logging.getLogger(__name__)


class _Sent:
    """An exit that was not completed yet: `wanted` bytes are its answer, `blocks` says that the vCPU waits for it."""

    __slots__ = ("blocks", "halt", "link", "packet", "sequence", "wanted")

    def __init__(self, sequence: int, packet: bytes, wanted: int, *, blocks: bool, halt: bool) -> None:
        self.halt = halt
        self.sequence = sequence
        self.packet = packet
        self.wanted = wanted
        self.blocks = blocks
        self.link: Link | None = None


class Runner:
    """The thread of one vCPU. It is parked at first."""

    def __init__(self, index: int, vcpu: Vcpu, conversions: Conversions, owner: Owner) -> None:
        self.index = index
        self._vcpu = vcpu
        self._conversions = conversions
        self._owner = owner
        self._condition = threading.Condition()
        self._wanted = PARK
        self._parked = True
        self._link: Link | None = None
        self._open: deque[_Sent] = deque()
        self._sequence = 0
        self._answer = b""
        self._faults: tuple[kvm_run.MemoryFault | None, int] = (None, 0)
        self._thread = threading.Thread(target=self._work, name=f"vcpu-{index}", daemon=True)
        self._thread.start()

    @property
    def parking(self) -> bool:
        """It is to stand still as soon as it can."""
        return self._wanted != RUN

    def go(self, link: Link) -> None:
        """Runs, with its exits over this link."""
        with self._condition:
            self._link = link
            if self._wanted == PARK:
                self._wanted = RUN
                self._parked = False
            self._condition.notify_all()

    def park(self, *, end: bool = False) -> None:
        """Leaves the guest as soon as it can and stays out; see `parked`."""
        with self._condition:
            self._wanted = END if end else max(self._wanted, PARK)
            self._condition.notify_all()
        self._vcpu.interrupt()

    def parked(self, seconds: float) -> bool:
        """Waits until it is out of the guest."""
        with self._condition:
            return self._condition.wait_for(lambda: self._parked, seconds)

    def complete(self, sequence: int, data: bytes) -> None:
        """The client has dealt with every exit up to this one; `data` answers it, if it is a read.

        An exit that was completed already is left alone.

        Raises:
            UsageError: There is no such exit yet, or it wants another number of bytes.
        """
        with self._condition:
            if sequence > self._sequence:
                raise UsageError(
                    f"sequence: vCPU {self.index} has had no exit {sequence} yet, the last was {self._sequence}",
                    field="sequence",
                )
            if not self._open or sequence < self._open[0].sequence:
                return
            found = next(one for one in self._open if one.sequence == sequence)
            if len(data) != found.wanted:
                raise UsageError(
                    f"data: {len(data)} bytes for exit {sequence} of vCPU {self.index}, expected {found.wanted}",
                    field="data",
                )
            while self._open and self._open[0].sequence <= sequence:
                self._open.popleft()
            if found.wanted:
                self._answer = data
            self._condition.notify_all()

    def settle(self) -> None:
        """Ends in KVM what the last exit began; a halt that was not completed is over. Only while it is parked.

        Raises:
            NotNow: Another exit waits for the client.
        """
        with self._condition:
            if any(not one.halt for one in self._open):
                raise NotNow(
                    f"vCPU {self.index} waits for its client to answer an exit",
                    remedy="Run the guest until it halts, or until nothing is asked of it (sev guest run ID).",
                )
            answer, self._answer = self._answer, b""
        if answer:
            self._vcpu.complete(answer)
        if self._sequence:
            self._vcpu.interrupt()  # the next entry completes what was begun, and enters nothing
            found = self._vcpu.run()
            if not isinstance(found, kvm_run.Interrupted):
                self._handle(found)
                raise NotNow(f"vCPU {self.index} asks its client for something more", remedy="Run the guest on.")

    def close(self, seconds: float) -> bool:
        """Ends the thread and gives the vCPU's mapping back; False if it does not leave the guest."""
        self.park(end=True)
        self._thread.join(seconds)
        if self._thread.is_alive():
            return False
        self._vcpu.close()
        return True

    def _work(self) -> None:
        self._vcpu.enter()
        try:
            while self._may_run():
                self._handle(self._vcpu.run())
        except SevError as error:
            self._owner.ended(error.message, failed=True)
        except Exception as error:
            log.exception("vCPU %d failed", self.index)
            self._owner.ended(f"unexpected {type(error).__name__}", failed=True)
        finally:
            self._vcpu.leave()
            with self._condition:
                self._parked = True
                self._condition.notify_all()

    def _may_run(self) -> bool:
        """Waits until the guest may be entered; False: never again."""
        while True:
            with self._condition:
                while (link := self._next_step()) is None:
                    self._condition.wait()
                if self._wanted == END:
                    return False
                if not self._open or self._open[-1].link is link:  # exits go out in order: then all have gone
                    if self._answer:
                        answer, self._answer = self._answer, b""
                        self._vcpu.complete(answer)
                    return True
                unsent = [one for one in self._open if one.link is not link]
                for one in unsent:
                    one.link = link
            self._send(unsent, link)

    def _next_step(self) -> Link | None:
        """The link, if there is something to do on it; None while there is not. At the end any."""
        if self._wanted == PARK and not self._parked:
            self._parked = True
            self._condition.notify_all()
        link = self._link
        if self._wanted == END:
            return link or _NOWHERE
        if self._wanted == PARK or link is None:
            return None
        if self._open:
            if self._open[-1].link is not link:
                return link
            if self._open[-1].blocks or len(self._open) > link.posted_writes:
                return None
        return link

    def _send(self, exits: list[_Sent], link: Link) -> None:
        for number, one in enumerate(exits):
            if not link.send(EXITS + one.packet, self):
                self._unsent(exits[number:], link)
                return

    def _unsent(self, exits: list[_Sent], link: Link) -> None:
        """These did not go out: the link is gone, or there was no room before the runner had to park."""
        with self._condition:
            for one in exits:
                one.link = None
            if self._link is link and self._wanted == RUN:
                self._link = None  # whoever serves it will say that it is gone

    def _handle(self, found: Exit) -> None:
        if type(found) in _WRITES:  # most exits are
            self._say(found, 0, blocks=False)
            return
        if isinstance(found, kvm_run.Interrupted):
            return
        if isinstance(found, kvm_run.Hypercall):
            self._vcpu.answer_hypercall(self._conversions.hypercall(found))
            return
        if isinstance(found, kvm_run.MemoryFault) and self._resolved(found):
            return
        self._faults = (None, 0)
        wanted, reason, failed = _meaning(found)
        self._say(found, wanted, blocks=True)
        if reason:
            self._owner.ended(reason, failed=failed)

    def _say(self, found: Exit, wanted: int, *, blocks: bool) -> None:
        """Keeps an exit and sends it."""
        self._sequence += 1
        halt = isinstance(found, kvm_run.Halt)
        one = _Sent(self._sequence, encode_exit(self.index, self._sequence, found), wanted, blocks=blocks, halt=halt)
        with self._condition:
            link = one.link = self._link
            self._open.append(one)
        if link is not None and not link.send(EXITS + one.packet, self):
            self._unsent([one], link)

    def _resolved(self, fault: kvm_run.MemoryFault) -> bool:
        last, times = self._faults
        times = times + 1 if last == fault else 1
        self._faults = (fault, times)
        return times <= MEMORY_FAULTS and self._conversions.fault(fault)


class _Nowhere:
    posted_writes = 0

    def send(self, packet: bytes, runner: Runner) -> bool:
        """Nobody is there."""
        del packet, runner
        return False


_NOWHERE = _Nowhere()


_WRITES = (kvm_run.PortWrite, kvm_run.MmioWrite)


def _meaning(found: Exit) -> tuple[int, str, bool]:
    """Of an exit that the vCPU stands still for: (bytes of the answer, why the guest ended if it did, whether that is
    a failure)."""
    if isinstance(found, kvm_run.PortRead):
        return found.size * found.repeat, "", False
    if isinstance(found, kvm_run.MmioRead):
        return found.size, "", False
    if isinstance(found, kvm_run.Halt):
        return 0, "", False
    if isinstance(found, kvm_run.Shutdown):
        return 0, "it shut down (a triple fault, or its vCPU cannot be entered any more)", False
    if isinstance(found, kvm_run.SystemEvent):
        word = kvm_run.SYSTEM_EVENTS.get(found.type, f"event {found.type}")
        words = "".join(f" 0x{word:x}" for word in found.data)
        return 0, f"it asked for the system event {word}{words}", found.type in (3, 6)
    if isinstance(found, kvm_run.FailedEntry):
        return 0, f"the processor cannot enter it (hardware reason 0x{found.reason:x})", True
    if isinstance(found, kvm_run.InternalError):
        word = kvm_run.INTERNAL_ERRORS.get(found.suberror, "unknown")
        return 0, f"KVM gave up: internal error {found.suberror} ({word})", True
    if isinstance(found, kvm_run.MemoryFault):
        kind = "private" if found.private else "shared"
        return 0, f"an access to {kind} memory at 0x{found.gpa:x} cannot be resolved", True
    return 0, f"KVM left it for reason {getattr(found, 'reason', '?')}, which is not known here", True
