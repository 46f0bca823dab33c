"""Pages of a guest on its way, between daemon and worker: whole, or refused."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sev.errors import MalformedInput
from sev.launch.sev_migration import Departure
from sevd.guests.model import PAGE, GuestState
from sevd.guests.sev_travel import Carried, Leaving, SevTravel
from sevd.guests.worker_travel import WorkerTravel
from sevd.worker import pages
from sevd.worker.travel import RUNS, STATES, TravelSteps


@contextlib.contextmanager
def memory() -> Iterator[int]:
    fd = os.memfd_create("pages")
    try:
        yield fd
    finally:
        os.close(fd)


def page(number: int, header: bytes = b"") -> Carried:
    return Carried(number * PAGE, header, bytes([number & 0xFF]) * PAGE)


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 1 << 40), st.sampled_from([b"", b"h" * 52, b"h" * 64])), max_size=20))
def test_what_is_put_is_got(rows: list[tuple[int, bytes]]) -> None:
    carried = [page(number, header) for number, header in rows]
    with memory() as fd:
        assert pages.get(fd, {"pages": pages.put(fd, carried)}) == carried


def test_more_than_one_system_call_takes() -> None:
    carried = [page(number, b"h" * 52) for number in range(pages.MOST)]
    with memory() as fd:
        assert pages.get(fd, {"pages": pages.put(fd, carried)}) == carried


@pytest.mark.parametrize(
    "rows",
    [
        [[0, 52], [PAGE, 52]],  # one more than there is
        [[0, 65]],
        [[0, -1]],
        [[-PAGE, 0]],
        [[0, 0]] * (pages.MOST + 1),
        [[0]],
        [["0", 0]],
        "all",
        None,
    ],
    ids=str,
)
def test_rows_that_are_none(rows: object) -> None:
    with memory() as fd:
        pages.put(fd, [page(0, b"h" * 52)])
        with pytest.raises(MalformedInput):
            pages.get(fd, {"pages": rows})


class Way(SevTravel):
    """A guest's way that does nothing but remember."""

    def __init__(self) -> None:
        self.leaving = Leaving(
            b"s" * 128, tuple(bytes([n]) * 900 for n in range(STATES * 2 + 1)),
            tuple((n * 8192, 4096) for n in range(RUNS * 2 + 1)),
        )  # fmt: skip
        self.told: list[object] = []

    def start_sending(self, pdh: bytes, chain: bytes, authorities: bytes) -> Leaving:
        self.told.append((pdh, chain, authorities))
        return self.leaving

    def send(self, position: int, most: int) -> tuple[list[Carried], int]:
        self.told.append((position, most))
        return [page(n, b"h" * 52 if n % 2 else b"") for n in range(position, position + most)], position + most

    def cancel(self) -> None:
        self.told.append("cancel")

    def start_receiving(self, departure: Departure, pdh: bytes) -> None:
        self.told.append((departure, pdh))

    def receive(self, carried: Sequence[Carried]) -> None:
        self.told.append(list(carried))

    def finish_receiving(self, vcpus: Sequence[bytes], shared: Sequence[tuple[int, int]]) -> None:
        self.told.append((tuple(vcpus), tuple(shared)))


def test_a_daemon_and_a_worker_understand_each_other() -> None:
    way, settled, states = Way(), list[int](), list[GuestState | None]()
    steps = TravelSteps(lambda: way, lambda: settled.append(1))

    def ask(message: dict[str, object], fds: tuple[int, ...] = ()) -> dict[str, object]:
        answer, state = steps.step(str(message["word"]), message, fds)
        states.append(state)
        return answer

    travel = WorkerTravel(ask)
    assert travel.start_sending(b"pdh", b"chain", b"both") == way.leaving
    assert (way.told.pop(), settled) == ((b"pdh", b"chain", b"both"), [1])
    carried, following = travel.send(5, 7)
    assert (carried, following) == ([page(n, b"h" * 52 if n % 2 else b"") for n in range(5, 12)], 12)
    assert way.told.pop() == (5, 7)
    travel.cancel()
    assert way.told.pop() == "cancel"
    travel.start_receiving(Departure(3, b"session"), b"pdh")
    assert way.told.pop() == (Departure(3, b"session"), b"pdh")
    travel.receive(carried)
    assert way.told.pop() == carried
    for _ in range(2):  # what one call left behind does not come into the next
        travel.finish_receiving(way.leaving.vcpus, way.leaving.shared)
        assert way.told.pop() == (way.leaving.vcpus, way.leaving.shared)
    assert [state for state in states if state is not None] == [
        GuestState.SENDING, GuestState.READY, GuestState.RECEIVING, GuestState.READY, GuestState.READY,
    ]  # fmt: skip


@pytest.mark.parametrize("counts", [{"vcpus": 1, "shared": 0}, {"vcpus": 0, "shared": 1}])
def test_a_worker_that_never_sends_what_it_promises_is_not_asked_for_ever(counts: dict[str, object]) -> None:
    answers: list[dict[str, object]] = [{"session": "00", **counts}, {"states": [], "runs": []}]
    with pytest.raises(MalformedInput, match="0 came of 1"):
        WorkerTravel(lambda message, fds=(): answers.pop(0)).start_sending(b"pdh", b"chain", b"both")


@pytest.mark.parametrize("word", ["send", "receive"])
@pytest.mark.parametrize("count", [0, 2])
def test_pages_need_memory_to_be_in(word: str, count: int) -> None:
    steps = TravelSteps(Way, lambda: None)
    with memory() as fd, pytest.raises(MalformedInput, match="descriptors"):
        steps.step(word, {"position": 0, "most": 1, "pages": []}, [fd] * count)


def test_other_words_are_none() -> None:
    with pytest.raises(MalformedInput, match="expected one of"):
        TravelSteps(Way, lambda: None).step("fly", {}, ())
