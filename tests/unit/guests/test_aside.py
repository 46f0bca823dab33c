"""Calls that block for long: on threads of their own, so that they hold up nobody else."""

from __future__ import annotations

import asyncio
import threading

import pytest

from sev.errors import LimitReached
from sevd.guests.aside import aside


async def test_many_that_do_not_end_hold_up_nobody() -> None:
    end = threading.Event()
    stuck = [asyncio.ensure_future(aside(end.wait, 30)) for _ in range(100)]
    try:
        await asyncio.sleep(0)
        assert await asyncio.wait_for(aside(lambda: 5), 5) == 5
        assert await asyncio.wait_for(asyncio.to_thread(lambda: 6), 5) == 6
    finally:
        end.set()
        assert await asyncio.gather(*stuck) == [True] * 100


async def test_what_is_raised_arrives_and_a_cancelled_call_goes_on() -> None:
    with pytest.raises(ZeroDivisionError):
        await aside(lambda: 1 // 0)
    go, done = threading.Event(), threading.Event()

    def slow() -> None:
        go.wait(10)
        done.set()

    call = asyncio.ensure_future(aside(slow))
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    go.set()
    assert await asyncio.to_thread(done.wait, 5)


async def test_without_threads_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("threading.Thread.start", fail)
    with pytest.raises(LimitReached, match="no thread is to be had"):
        await aside(print)
