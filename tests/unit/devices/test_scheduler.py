"""The one worker: order within a lane, fairness between lanes, cancellation, bounds, proof of life."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator

import pytest

from sev.errors import LimitReached, NotNow
from sevd.devices.scheduler import Scheduler


@pytest.fixture
def scheduler() -> Iterator[Scheduler]:
    it = Scheduler(queue_jobs=64, lane_jobs=40)
    yield it
    assert it.close()


class Gate:
    """A job that keeps the worker until it is opened, so that everything after it queues up."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._open = threading.Event()
        self._running = threading.Event()
        self.job = scheduler.submit("gate", self._hold)
        assert self._running.wait(5)

    def _hold(self) -> None:
        self._running.set()
        assert self._open.wait(10)

    def open(self) -> None:
        self._open.set()


async def test_a_lane_keeps_its_order(scheduler: Scheduler) -> None:
    seen: list[int] = []
    await asyncio.gather(*(scheduler.run("a", seen.append, number) for number in range(30)))
    assert seen == list(range(30))


async def test_a_long_lane_delays_a_short_one_by_one_piece(scheduler: Scheduler) -> None:
    gate = Gate(scheduler)
    seen: list[str] = []
    jobs = [scheduler.submit("big", seen.append, f"big {n}") for n in range(30)]
    jobs.append(scheduler.submit("small", seen.append, "small"))
    jobs += [scheduler.submit("third", seen.append, f"third {n}") for n in range(2)]
    gate.open()
    await asyncio.gather(*(job.done() for job in jobs))
    assert seen[:6] == ["big 0", "small", "third 0", "big 1", "third 1", "big 2"]


async def test_answers_and_errors_reach_the_caller(scheduler: Scheduler) -> None:
    assert await scheduler.run("a", divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await scheduler.run("a", divmod, 1, 0)
    assert await scheduler.run("a", len, b"abc") == 3


async def test_cancelled_before_issue_is_never_issued(scheduler: Scheduler) -> None:
    gate = Gate(scheduler)
    seen: list[str] = []
    waiting = asyncio.create_task(scheduler.run("a", seen.append, "cancelled"))
    after = asyncio.create_task(scheduler.run("a", seen.append, "after"))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    gate.open()
    await after
    assert seen == ["after"]


async def test_cancelled_after_issue_runs_to_its_end(scheduler: Scheduler) -> None:
    gate = Gate(scheduler)
    assert gate.job.cancel() is False
    gate.open()
    await gate.job.done()


async def test_the_queue_and_a_lane_are_bounded(scheduler: Scheduler) -> None:
    gate = Gate(scheduler)
    jobs = [scheduler.submit("a", time.monotonic) for _ in range(40)]
    with pytest.raises(LimitReached) as lane_full:
        scheduler.submit("a", time.monotonic)
    assert lane_full.value.metadata == {"limit": "device_queue"}
    jobs += [scheduler.submit("b", time.monotonic) for _ in range(24)]
    assert scheduler.waiting == 64
    with pytest.raises(LimitReached):
        scheduler.submit("c", time.monotonic)
    gate.open()
    await asyncio.gather(*(job.done() for job in jobs))
    assert await scheduler.run("c", len, b"room again") == 10


async def test_a_hung_command_shows(scheduler: Scheduler) -> None:
    assert scheduler.busy_for() == 0
    assert time.monotonic() - scheduler.progress < 0.1
    gate = Gate(scheduler)
    await asyncio.sleep(0.05)
    assert scheduler.busy_for() >= 0.05
    assert time.monotonic() - scheduler.progress >= 0.05
    gate.open()
    await gate.job.done()
    await asyncio.sleep(0.01)
    assert scheduler.busy_for() == 0


async def test_close_cancels_what_waits_and_refuses_more() -> None:
    scheduler = Scheduler()
    gate = Gate(scheduler)
    seen: list[str] = []
    waiting = scheduler.submit("a", seen.append, "never")
    assert scheduler.close(timeout=0.05) is False  # one command hangs: said, not waited for
    with pytest.raises(NotNow):
        scheduler.submit("a", seen.append, "refused")
    gate.open()
    assert scheduler.close()
    assert waiting.future.cancelled()
    assert seen == []
