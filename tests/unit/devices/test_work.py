"""Steps that outlive their callers."""

from __future__ import annotations

import asyncio
import threading

import pytest

from sev.errors import NotNow, UsageError
from sevd.devices.scheduler import Scheduler
from sevd.devices.work import Steps, Withdrawn, Work


async def test_a_step_goes_on_without_its_caller() -> None:
    scheduler, steps = Scheduler(), Steps()
    work = Work(scheduler, "lane")
    running, go, seen = threading.Event(), threading.Event(), list[str]()

    def piece() -> None:
        running.set()
        assert go.wait(10)
        seen.append("piece")

    async def step() -> None:
        await work.do(piece)
        seen.append("recorded")
        await work.do(seen.append, "never")

    caller = asyncio.create_task(steps.run(step(), work))
    await asyncio.to_thread(running.wait, 10)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    go.set()
    await steps.drain(10)
    assert seen == ["piece", "recorded"]
    assert work.withdrawn
    with pytest.raises(Withdrawn):
        work.check()
    scheduler.close()


async def test_issued_tells_whether_the_device_was_reached() -> None:
    scheduler = Scheduler()
    work = Work(scheduler, "lane")

    def refuse() -> None:
        raise UsageError("no")

    with pytest.raises(UsageError):
        await work.do(refuse)
    assert work.issued
    scheduler.close()
    with pytest.raises(NotNow):
        await work.do(refuse)
    assert not work.issued


async def test_a_worker_that_ends_says_so_to_whoever_waits() -> None:
    scheduler = Scheduler()
    gate = threading.Event()
    scheduler.submit("gate", gate.wait, 10)
    work = Work(scheduler, "lane")
    waiting = asyncio.create_task(work.do(len, b""))
    await asyncio.sleep(0.01)
    scheduler.close(timeout=0.01)
    with pytest.raises(NotNow, match="stopping"):
        await waiting
    assert not work.issued
    gate.set()
    assert scheduler.close()


async def test_what_gives_back_is_taken_however_full_the_queue_is() -> None:
    scheduler = Scheduler(queue_jobs=1, lane_jobs=1)
    running, gate = threading.Event(), threading.Event()

    def hold() -> None:
        running.set()
        assert gate.wait(10)

    blocking = scheduler.submit("gate", hold)
    await asyncio.to_thread(running.wait, 10)
    scheduler.submit("lane", len, b"")
    with pytest.raises(NotNow):
        scheduler.submit("lane", len, b"")
    given_back = scheduler.release("lane", len, b"12")
    gate.set()
    await blocking.done()
    assert await given_back.done() == 2
    scheduler.close()


async def test_a_cancelled_waiter_is_cancelled_and_not_told_that_the_daemon_stops() -> None:
    scheduler = Scheduler()
    go = threading.Event()
    blocker = scheduler.submit("a/1", go.wait)
    waiting = asyncio.ensure_future(Work(scheduler, "platform").do(lambda: None))
    await asyncio.sleep(0.01)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    go.set()
    await blocker.done()
    scheduler.close()
