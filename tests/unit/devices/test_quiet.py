"""Launches and platform commands keep out of each other's way, and nobody starves."""

from __future__ import annotations

import asyncio

import pytest

from sev.errors import NotNow
from sevd.devices.quiet import Quiet


async def test_a_platform_command_waits_for_a_launch() -> None:
    quiet = Quiet(wait_seconds=5)
    await quiet.begin("guest")
    order: list[str] = []

    async def commit() -> None:
        async with quiet.platform("SNP_COMMIT"):
            order.append("commit")

    task = asyncio.create_task(commit())
    await asyncio.sleep(0.02)
    assert order == []
    order.append("finish")
    quiet.end("guest")
    await task
    assert order == ["finish", "commit"]


async def test_it_refuses_when_the_launch_goes_on_too_long() -> None:
    quiet = Quiet(wait_seconds=0.02)
    await quiet.begin("one")
    await quiet.begin("two")
    with pytest.raises(NotNow, match="2 launches are in flight") as caught:
        async with quiet.platform("SNP_COMMIT"):
            pytest.fail("it was not quiet")
    assert caught.value.metadata == {"launches": "2"}
    assert caught.value.command == "SNP_COMMIT"
    # Nothing of the refused command is left behind.
    await asyncio.wait_for(quiet.begin("three"), 1)
    assert quiet.in_flight() == ("one", "two", "three")


async def test_a_launch_that_was_left_alone_does_not_count() -> None:
    now = [0.0]
    quiet = Quiet(idle_seconds=30, wait_seconds=0.05, clock=lambda: now[0])
    await quiet.begin("left")
    await quiet.begin("busy")
    now[0] = 29
    quiet.touch("busy")
    quiet.touch("unknown")
    now[0] = 40
    assert quiet.in_flight() == ("busy",)
    quiet.end("busy")
    async with quiet.platform("SNP_COMMIT"):
        pass
    quiet.touch("left")
    assert quiet.in_flight() == ("left",)


async def test_a_new_launch_waits_behind_a_waiting_platform_command() -> None:
    quiet = Quiet(wait_seconds=5)
    await quiet.begin("first")
    order: list[str] = []

    async def commit() -> None:
        async with quiet.platform("SNP_COMMIT"):
            order.append("commit")
            await asyncio.sleep(0.01)
            order.append("committed")

    async def launch() -> None:
        await quiet.begin("second")
        order.append("second")

    committing = asyncio.create_task(commit())
    await asyncio.sleep(0)
    launching = asyncio.create_task(launch())
    await asyncio.sleep(0.01)
    assert order == []
    quiet.end("first")
    await asyncio.gather(committing, launching)
    assert order == ["commit", "committed", "second"]


async def test_a_cancelled_wait_leaves_nothing_behind() -> None:
    quiet = Quiet(wait_seconds=5)
    await quiet.begin("guest")

    async def commit() -> None:
        async with quiet.platform("SNP_COMMIT"):
            pytest.fail("it was not quiet")

    task = asyncio.create_task(commit())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(quiet.begin("another"), 1)
