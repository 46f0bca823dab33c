"""An SEV guest's way to another host, or from one, where its machine is a worker's (sevd.guests.port.Travel)."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from sev.errors import MalformedInput
from sevd.guests.sev_travel import Leaving
from sevd.worker import pages, wire
from sevd.worker.travel import RUNS, STATES, texts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Protocol, TypeVar

    from sev.launch.sev_migration import Departure
    from sevd.guests.sev_travel import Carried

    T = TypeVar("T")

    class Ask(Protocol):
        """Asks the worker."""

        def __call__(self, message: dict[str, object], fds: tuple[int, ...] = ()) -> dict[str, object]: ...


class WorkerTravel:
    """One guest's way.

    Args:
        call: Asks the worker.
    """

    def __init__(self, call: Ask) -> None:
        self._call = call

    def start_sending(self, pdh: bytes, chain: bytes, authorities: bytes) -> Leaving:
        """SEND_START."""
        parts = {"pdh": pdh.hex(), "chain": chain.hex(), "authorities": authorities.hex()}
        answer = self._ask("start-sending", **parts)
        states = self._gather("vcpus", answer, lambda part: texts(part, "states"))
        shared = self._gather("shared", answer, lambda part: wire.runs(part, "runs", 2))
        return Leaving(wire.octets(answer, "session"), tuple(states), tuple((gpa, size) for gpa, size in shared))

    def send(self, position: int, most: int) -> tuple[list[Carried], int]:
        """SEND_UPDATE_DATA."""
        with _memory() as fd:
            answer = self._ask("send", fd, position=position, most=most)
            return pages.get(fd, answer), wire.whole(answer, "next")

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

    def receive(self, carried: Sequence[Carried]) -> None:
        """RECEIVE_UPDATE_DATA."""
        with _memory() as fd:
            self._ask("receive", fd, pages=pages.put(fd, carried))

    def finish_receiving(self, vcpus: Sequence[bytes], shared: Sequence[tuple[int, int]]) -> None:
        """RECEIVE_FINISH."""
        for at in range(0, len(vcpus), STATES):
            states = [one.hex() for one in vcpus[at : at + STATES]]
            self._ask("give-vcpus", **{"from": at, "states": states})
        for at in range(0, len(shared), RUNS):
            self._ask("give-shared", **{"from": at, "runs": [list(run) for run in shared[at : at + RUNS]]})
        self._ask("finish-receiving")

    def _gather(self, word: str, answer: dict[str, object], read: Callable[[dict[str, object]], list[T]]) -> list[T]:
        """What an answer says how many there are of, asked for part by part.

        Raises:
            MalformedInput: They do not come.
        """
        count = wire.whole(answer, word)
        out: list[T] = []
        while len(out) < count:
            part = read(self._ask(word, **{"from": len(out)}))
            if not part:
                raise MalformedInput(f"{word}: {len(out)} came of {count}", field=word)
            out += part
        return out

    def _ask(self, word: str, *fds: int, **more: object) -> dict[str, object]:
        return self._call({"op": "travel", "word": word, **more}, fds)


@contextlib.contextmanager
def _memory() -> Iterator[int]:
    """A memfd for pages."""
    fd = os.memfd_create("pages", os.MFD_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
