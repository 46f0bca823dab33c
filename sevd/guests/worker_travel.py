"""An SEV guest's way to another host, or from one, where its machine is a worker's (sevd.guests.port.Travel)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sevd.guests.sev_travel import Carried, Leaving
from sevd.worker import wire
from sevd.worker.travel import PAGES, STATES, pages_from, texts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sev.launch.sev_migration import Departure


class WorkerTravel:
    """One guest's way.

    Args:
        call: Asks the worker.
    """

    def __init__(self, call: Callable[[dict[str, object]], dict[str, object]]) -> None:
        self._call = call

    def start_sending(self, pdh: bytes, chain: bytes, authorities: bytes) -> Leaving:
        """SEND_START."""
        parts = {"pdh": pdh.hex(), "chain": chain.hex(), "authorities": authorities.hex()}
        answer = self._ask("start-sending", **parts)
        states: list[bytes] = []
        while len(states) < wire.whole(answer, "vcpus"):
            states += texts(self._ask("vcpus", **{"from": len(states)}), "states")
        return Leaving(wire.octets(answer, "session"), tuple(states))

    def send(self, position: int, most: int) -> tuple[list[Carried], int]:
        """SEND_UPDATE_DATA, so many at a time as fit in an answer."""
        out: list[Carried] = []
        while True:
            answer = self._ask("send", position=position)
            out += pages_from(answer)
            position = wire.whole(answer, "next")
            if not position or len(out) + PAGES > most:
                return out, position

    def cancel(self) -> None:
        """SEND_CANCEL."""
        self._ask("cancel")

    def finish_sending(self) -> None:
        """SEND_FINISH."""
        self._ask("finish-sending")

    def start_receiving(self, departure: Departure, pdh: bytes) -> None:
        """RECEIVE_START."""
        session = departure.session.hex()
        self._ask("start-receiving", policy=departure.policy, session=session, pdh=pdh.hex())

    def receive(self, pages: Sequence[Carried]) -> None:
        """RECEIVE_UPDATE_DATA."""
        for at in range(0, len(pages), PAGES):
            rows = [[one.gpa, one.header.hex(), one.data.hex()] for one in pages[at : at + PAGES]]
            self._ask("receive", pages=rows)

    def finish_receiving(self, vcpus: Sequence[bytes]) -> None:
        """RECEIVE_FINISH."""
        for at in range(0, len(vcpus), STATES):
            states = [one.hex() for one in vcpus[at : at + STATES]]
            self._ask("give-vcpus", **{"from": at, "states": states})
        self._ask("finish-receiving")

    def _ask(self, word: str, **more: object) -> dict[str, object]:
        return self._call({"op": "travel", "word": word, **more})
