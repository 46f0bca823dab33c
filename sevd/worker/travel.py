"""The worker's steps for a guest that leaves for another host, or comes from one: `travel` and a word."""

from __future__ import annotations

from sev.errors import MalformedInput
from sev.launch.sev_migration import Departure
from sevd.guests.model import GuestState
from sevd.guests.sev_travel import Leaving
from sevd.worker import pages, wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sevd.guests.sev_travel import SevTravel

    Message = dict[str, object]

STATES = 8
"""States of vCPUs in one message."""

RUNS = 2000
"""Ranges of shared memory in one message."""


class TravelSteps:
    """The steps.

    Args:
        travel: The guest's way; raises where it has none.
        settle: Makes its vCPUs stand still with nothing begun.
    """

    def __init__(self, travel: Callable[[], SevTravel], settle: Callable[[], None]) -> None:
        self._travel = travel
        self._settle = settle
        self._leaving = Leaving(b"", ())
        self._vcpus: list[bytes] = []
        self._shared: list[tuple[int, int]] = []

    def step(self, word: str, message: Message, fds: Sequence[int]) -> tuple[Message, GuestState | None]:
        """One step; the answer, and the state that the guest took. The descriptors stay the caller's.

        Raises:
            MalformedInput: There is no such step, or it lacks something.
            SevError: Refused.
        """
        steps: dict[str, Callable[[Message], tuple[Message, GuestState | None]]] = {
            "start-sending": self._start_sending,
            "vcpus": self._states,
            "shared": self._shared_runs,
            "send": lambda asked: self._send(asked, fds),
            "cancel": self._cancel,
            "finish-sending": self._finish_sending,
            "start-receiving": self._start_receiving,
            "receive": lambda asked: self._receive(asked, fds),
            "give-vcpus": self._take_states,
            "give-shared": self._take_shared,
            "finish-receiving": self._finish_receiving,
        }
        if word not in steps:
            raise MalformedInput(f"word: {word!r:.40}, expected one of {', '.join(steps)}", field="word")
        return steps[word](message)

    def _start_sending(self, message: Message) -> tuple[Message, GuestState | None]:
        travel = self._travel()
        self._settle()
        parts = (wire.octets(message, name) for name in ("pdh", "chain", "authorities"))
        self._leaving = travel.start_sending(*parts)
        counts = {"vcpus": len(self._leaving.vcpus), "shared": len(self._leaving.shared)}
        return {"session": self._leaving.session.hex(), **counts}, GuestState.SENDING

    def _states(self, message: Message) -> tuple[Message, GuestState | None]:
        first = wire.whole(message, "from")
        return {"states": [one.hex() for one in self._leaving.vcpus[first : first + STATES]]}, None

    def _shared_runs(self, message: Message) -> tuple[Message, GuestState | None]:
        first = wire.whole(message, "from")
        return {"runs": [list(run) for run in self._leaving.shared[first : first + RUNS]]}, None

    def _send(self, message: Message, fds: Sequence[int]) -> tuple[Message, GuestState | None]:
        fd = _only(fds)
        most = min(wire.whole(message, "most"), pages.MOST)
        carried, following = self._travel().send(wire.whole(message, "position"), most)
        return {"pages": pages.put(fd, carried), "next": following}, None

    def _cancel(self, message: Message) -> tuple[Message, GuestState | None]:
        del message
        self._travel().cancel()
        return {}, GuestState.READY

    def _finish_sending(self, message: Message) -> tuple[Message, GuestState | None]:
        del message
        self._travel().finish_sending()
        return {}, GuestState.STOPPED

    def _start_receiving(self, message: Message) -> tuple[Message, GuestState | None]:
        departure = Departure(wire.whole(message, "policy"), wire.octets(message, "session"))
        self._travel().start_receiving(departure, wire.octets(message, "pdh"))
        return {}, GuestState.RECEIVING

    def _receive(self, message: Message, fds: Sequence[int]) -> tuple[Message, GuestState | None]:
        self._travel().receive(pages.get(_only(fds), message))
        return {}, None

    def _take_states(self, message: Message) -> tuple[Message, GuestState | None]:
        if wire.whole(message, "from") != len(self._vcpus):
            self._vcpus.clear()
        self._vcpus += texts(message, "states")
        return {}, None

    def _take_shared(self, message: Message) -> tuple[Message, GuestState | None]:
        if wire.whole(message, "from") != len(self._shared):
            self._shared.clear()
        self._shared += ((gpa, size) for gpa, size in wire.runs(message, "runs", 2))
        return {}, None

    def _finish_receiving(self, message: Message) -> tuple[Message, GuestState | None]:
        del message
        states, self._vcpus = self._vcpus, []
        shared, self._shared = self._shared, []
        self._travel().finish_receiving(states, shared)
        return {}, GuestState.READY


def texts(message: Message, name: str) -> list[bytes]:
    """A list of bytes of a message, which are hexadecimal text there. Raises MalformedInput."""
    found = message.get(name)
    if not isinstance(found, list):
        raise MalformedInput(f"{name}: expected a list of texts", field=name)
    return [wire.octets({name: one}, name) for one in found]


def _only(fds: Sequence[int]) -> int:
    if len(fds) != 1:
        raise MalformedInput(f"travel: {len(fds)} descriptors, expected memory for the pages", field="travel")
    return fds[0]
