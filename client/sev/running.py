"""A guest that runs: its exits, and what the client says to them, without a word about the connection.

`Conversation` is the one description behind the runs of both clients: it makes the messages, reads the answers, and
gathers completions so that what arrived together is answered together. An exit's kind is one of the small classes of
`sev.abi.kvm_run`: PortRead, PortWrite, MmioRead, MmioWrite, Halt, and those with which a guest ends.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, TypeAlias

from sev.abi import kvm_run
from sev.calls import Call
from sev.errors import InternalError, UsageError
from sev.records import record
from sev.wire import text, word

if TYPE_CHECKING:
    from sev.abi.kvm_run import Exit
    from sev.v1 import guest_pb2

PATH = "/sev.v1.GuestService/RunGuest"
MOST_POSTED = 256
"""Most writes that a vCPU may be ahead of their completion."""

CLOSE_SECONDS = 10.0
"""How long leaving a run waits for the daemon to say that the guest stands still."""


@record
class GuestExit:
    """A vCPU left the guest.

    Attributes:
        vcpu: The vCPU, from 0.
        sequence: Its number among the vCPU's exits, from 1; the same when it comes again on a later run.
        what: What happened.
    """

    vcpu: int
    sequence: int
    what: Exit

    @property
    def kind(self) -> str:
        """What happened, in a word of `KINDS`."""
        return KINDS.get(type(self.what), "other")

    def document(self) -> dict[str, object]:
        """The JSON form, as `sev guest run --json` prints it."""
        values = self.what._asdict()
        named = {name: value.hex() if isinstance(value, bytes) else value for name, value in values.items()}
        return {"vcpu": self.vcpu, "sequence": self.sequence, "exit": self.kind, **named}


@record
class RunState:
    """The guest took a state: "running", "paused", or "stopped" with a reason.

    Attributes:
        state: The state.
        reason: Why it has stopped; empty otherwise.
        failed: It has stopped because it could not be run on.
    """

    state: str
    reason: str = ""
    failed: bool = False

    def document(self) -> dict[str, object]:
        """The JSON form, as `sev guest run --json` prints it."""
        return {"state": self.state, "reason": self.reason or None, "failed": self.failed}


Event: TypeAlias = GuestExit | RunState

KINDS: dict[type, str] = {
    kvm_run.PortRead: "port_read",
    kvm_run.PortWrite: "port_write",
    kvm_run.MmioRead: "mmio_read",
    kvm_run.MmioWrite: "mmio_write",
    kvm_run.Halt: "halt",
    kvm_run.Shutdown: "shutdown",
    kvm_run.FailedEntry: "failed_entry",
    kvm_run.InternalError: "internal_error",
    kvm_run.SystemEvent: "system_event",
    kvm_run.MemoryFault: "memory_fault",
    kvm_run.Hypercall: "hypercall",
    kvm_run.Other: "other",
}
"""The names of exits."""


def wanted(what: Exit) -> int:
    """Bytes that complete an exit: of reads as many as they ask for, of others none."""
    if isinstance(what, kvm_run.PortRead):
        return what.size * what.repeat
    return what.size if isinstance(what, kvm_run.MmioRead) else 0


class Conversation:
    """What is said on one run.

    Args:
        guest_id: The guest.
        posted_writes: How many writes a vCPU may be ahead of their completion, 0 to 256.

    Attributes:
        state: The last state that the daemon told; None before the first.

    Raises:
        UsageError: A value that cannot be sent.
    """

    def __init__(self, guest_id: str, posted_writes: int) -> None:
        if not 0 <= posted_writes <= MOST_POSTED:
            raise UsageError(f"posted_writes is {posted_writes}, expected 0 to {MOST_POSTED}", field="posted_writes")
        self.guest_id = text("guest_id", guest_id)
        self.state: RunState | None = None
        self._posted = posted_writes
        self._events: deque[Event] = deque()
        self._done: dict[int, tuple[int, bytes]] = {}

    def first(self) -> bytes:
        """The first message."""
        from sev.v1 import guest_pb2 as pb

        return pb.RunGuestRequest(guest_id=self.guest_id, posted_writes=self._posted).SerializeToString()

    def receive(self, raw: bytes) -> None:
        """Takes an answer of the daemon.

        Raises:
            InternalError: It is none.
        """
        from google.protobuf.message import DecodeError

        from sev.v1 import guest_pb2 as pb

        try:
            answer = pb.RunGuestResponse.FromString(raw)
        except DecodeError:
            raise InternalError(f"RunGuest: {len(raw)} bytes that are no RunGuestResponse") from None
        for found in answer.exits:
            self._events.append(GuestExit(found.vcpu, found.sequence, _what(found)))
        if answer.HasField("state"):
            told = answer.state
            state = RunState(word(pb.GuestState, "GUEST_STATE_", told.state), told.reason, told.failed)
            if self._events:
                self._events.append(state)
            else:
                self.state = state

    def next(self) -> GuestExit | None:
        """The next exit that has arrived; None if there is none. States on the way are kept in `state`."""
        while self._events:
            event = self._events.popleft()
            if isinstance(event, GuestExit):
                return event
            self.state = event
        return None

    def complete(self, done: GuestExit, data: bytes = b"") -> bytes | None:
        """The exit, and every earlier one of its vCPU, was dealt with. Answers what must be sent now, if anything.

        Raises:
            UsageError: Not as many bytes as the exit asks for.
        """
        if len(data) != wanted(done.what):
            raise UsageError(f"data: {len(data)} bytes, expected {wanted(done.what)}", field="data")
        before = self._done.get(done.vcpu)
        message = self.flush() if before is not None and before[1] else None
        self._done[done.vcpu] = (done.sequence, data)
        return message

    def flush(self) -> bytes | None:
        """Everything that was completed and not sent yet, as one message; None if there is nothing."""
        if not self._done:
            return None
        from sev.v1 import guest_pb2 as pb

        request = pb.RunGuestRequest()
        for vcpu, (sequence, data) in self._done.items():
            request.completions.add(vcpu=vcpu, sequence=sequence, data=data)
        self._done.clear()
        return request.SerializeToString()

    def control(self, what: str) -> bytes:
        """Asks for "pause", "resume" or "stop".

        Raises:
            UsageError: Another word.
        """
        from sev.v1 import guest_pb2 as pb

        if what not in ("pause", "resume", "stop"):
            raise UsageError(f"{what!r}: expected pause, resume or stop", field="control")
        value = pb.RunControl.Value(f"RUN_CONTROL_{what.upper()}")
        return pb.RunGuestRequest(control=value).SerializeToString()


def described() -> Call[Any]:
    """The call behind a run, for what is told and tried again when it fails."""
    from sev.v1 import guest_pb2 as pb

    return Call(PATH.removeprefix("/sev.v1."), pb.RunGuestRequest(), pb.RunGuestResponse)


def _what(found: guest_pb2.GuestExit) -> Exit:
    kind = found.WhichOneof("reason")
    if kind == "port_write":
        out = found.port_write
        return kvm_run.PortWrite(out.port, out.size_bytes, out.data)
    if kind == "port_read":
        into = found.port_read
        return kvm_run.PortRead(into.port, into.size_bytes, into.count)
    if kind == "mmio_write":
        return kvm_run.MmioWrite(found.mmio_write.gpa, found.mmio_write.data)
    if kind == "mmio_read":
        return kvm_run.MmioRead(found.mmio_read.gpa, found.mmio_read.size_bytes)
    if kind == "halt":
        return kvm_run.HALT
    if kind == "shutdown":
        return kvm_run.SHUTDOWN
    if kind == "failed_entry":
        return kvm_run.FailedEntry(found.failed_entry.reason, found.failed_entry.cpu)
    if kind == "internal_error":
        return kvm_run.InternalError(found.internal_error.suberror, tuple(found.internal_error.data))
    if kind == "system_event":
        return kvm_run.SystemEvent(found.system_event.type, tuple(found.system_event.data))
    if kind == "memory_fault":
        fault = found.memory_fault
        return kvm_run.MemoryFault(fault.gpa, fault.size_bytes, fault.private)
    if kind == "hypercall":
        return kvm_run.Hypercall(found.hypercall.number, tuple(found.hypercall.arguments))
    return kvm_run.Other(found.other.reason)
