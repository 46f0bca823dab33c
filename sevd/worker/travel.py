"""The worker's steps for a guest that leaves for another host, or comes from one: `travel` and a word."""

from __future__ import annotations

from sev.errors import MalformedInput
from sev.launch.sev_migration import Departure
from sevd.guests.model import GuestState
from sevd.guests.sev_travel import Carried, Leaving
from sevd.worker import wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from sevd.guests.sev_travel import SevTravel

    Message = dict[str, object]

PAGES = 14
"""Pages in one message: two hexadecimal digits a byte."""

STATES = 8
"""States of vCPUs in one message."""


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

    def step(self, word: str, message: Message) -> tuple[Message, GuestState | None]:
        """One step; the answer, and the state that the guest took.

        Raises:
            MalformedInput: There is no such step, or it lacks something.
            SevError: Refused.
        """
        steps = {
            "start-sending": self._start_sending,
            "vcpus": self._states,
            "send": self._send,
            "cancel": self._cancel,
            "finish-sending": self._finish_sending,
            "start-receiving": self._start_receiving,
            "receive": self._receive,
            "give-vcpus": self._take_states,
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
        return {"session": self._leaving.session.hex(), "vcpus": len(self._leaving.vcpus)}, GuestState.SENDING

    def _states(self, message: Message) -> tuple[Message, GuestState | None]:
        first = wire.whole(message, "from")
        return {"states": [one.hex() for one in self._leaving.vcpus[first : first + STATES]]}, None

    def _send(self, message: Message) -> tuple[Message, GuestState | None]:
        pages, following = self._travel().send(wire.whole(message, "position"), PAGES)
        return {"pages": [[one.gpa, one.header.hex(), one.data.hex()] for one in pages], "next": following}, None

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

    def _receive(self, message: Message) -> tuple[Message, GuestState | None]:
        self._travel().receive(pages_from(message))
        return {}, None

    def _take_states(self, message: Message) -> tuple[Message, GuestState | None]:
        if wire.whole(message, "from") != len(self._vcpus):
            self._vcpus.clear()
        self._vcpus += texts(message, "states")
        return {}, None

    def _finish_receiving(self, message: Message) -> tuple[Message, GuestState | None]:
        del message
        states, self._vcpus = self._vcpus, []
        self._travel().finish_receiving(states)
        return {}, GuestState.READY


def pages_from(message: Message) -> list[Carried]:
    """The pages of a message. Raises MalformedInput."""
    found = message.get("pages")
    out: list[Carried] = []
    for one in found if isinstance(found, list) else [None]:
        if not isinstance(one, list) or len(one) != 3:
            raise MalformedInput("pages: expected lists of an address and two texts", field="pages")
        row: Message = dict(zip(("gpa", "header", "data"), one, strict=True))
        out.append(Carried(wire.whole(row, "gpa"), wire.octets(row, "header"), wire.octets(row, "data")))
    return out


def texts(message: Message, name: str) -> list[bytes]:
    """A list of bytes of a message, which are hexadecimal text there. Raises MalformedInput."""
    found = message.get(name)
    if not isinstance(found, list):
        raise MalformedInput(f"{name}: expected a list of texts", field=name)
    return [wire.octets({name: one}, name) for one in found]
