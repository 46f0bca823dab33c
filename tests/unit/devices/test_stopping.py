"""What a stop waits for, and what it says meanwhile."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator

import pytest

from sevd.devices.scheduler import Scheduler
from sevd.stopping import FIRMWARE_SECONDS, Stopping


class Clock:
    """A clock that goes on by itself, and is put forward."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead


@pytest.fixture
def scheduler() -> Iterator[Scheduler]:
    it = Scheduler()
    yield it
    it.close()


@pytest.fixture
def command(scheduler: Scheduler) -> Iterator[threading.Event]:
    """A firmware command in flight; it ends when the event is set."""
    begun, end = threading.Event(), threading.Event()

    def commit() -> None:
        begun.set()
        end.wait(20)

    scheduler.submit("platform", commit)
    assert begun.wait(5)
    yield end
    end.set()


async def test_nothing_to_wait_for_is_not_waited_for(scheduler: Scheduler) -> None:
    said: list[str] = []
    await asyncio.wait_for(Stopping(lambda: 0, scheduler, 10, said.append).wait(), 1)
    assert said == []


async def test_calls_are_waited_for_and_it_is_said(scheduler: Scheduler) -> None:
    calls, said = [2], list[str]()
    waiting = asyncio.ensure_future(Stopping(lambda: calls[0], scheduler, 10, said.append).wait())
    await asyncio.sleep(0.05)
    assert said == ["2 calls"]
    assert not waiting.done()
    calls[0] = 0
    await asyncio.wait_for(waiting, 1)


async def test_calls_have_their_time_and_no_more(scheduler: Scheduler) -> None:
    begin = time.monotonic()
    await asyncio.wait_for(Stopping(lambda: 1, scheduler, 0.1, lambda _: None).wait(), 2)
    assert time.monotonic() - begin >= 0.1


async def test_a_command_in_flight_is_finished_whatever_the_time_of_calls(
    scheduler: Scheduler, command: threading.Event
) -> None:
    said: list[str] = []
    behind = scheduler.submit("platform", lambda: None)
    waiting = asyncio.ensure_future(Stopping(lambda: 2, scheduler, 0, said.append).wait())
    await asyncio.sleep(0.1)
    assert not waiting.done()
    assert said[0].startswith("2 calls and the firmware command ")
    assert "commit" in said[0]
    assert behind.future.cancelled(), "what waits behind it is given up"
    command.set()
    await asyncio.wait_for(waiting, 1)


async def test_a_command_that_never_ends_is_left_behind(scheduler: Scheduler, command: threading.Event) -> None:
    clock = Clock()
    stopping = Stopping(lambda: 0, scheduler, 10, lambda _: None, clock=clock)
    waiting = asyncio.ensure_future(stopping.wait())
    clock.ahead = 10 + FIRMWARE_SECONDS - 1
    await asyncio.sleep(0.2)
    assert not waiting.done()
    assert 0 < stopping.left < 1
    clock.ahead += 1
    await asyncio.wait_for(waiting, 1)
    assert stopping.left == 0
    command.set()


async def test_what_changes_is_said_once_a_second_at_most(scheduler: Scheduler) -> None:
    clock, calls, said = Clock(), [3], list[str]()
    waiting = asyncio.ensure_future(Stopping(lambda: calls[0], scheduler, 60, said.append, clock=clock).wait())
    await asyncio.sleep(0.05)
    calls[0] = 2
    await asyncio.sleep(0.2)
    assert said == ["3 calls"]
    clock.ahead = 1
    await asyncio.sleep(0.2)
    assert said == ["3 calls", "2 calls"]
    clock.ahead = 30
    await asyncio.sleep(0.2)
    assert len(said) == 2, "nothing else is waited for"
    calls[0] = 0
    await asyncio.wait_for(waiting, 1)
