"""Watch streams: as it is, then as it becomes; bounded; nobody waits for a slow watcher."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from sev.errors import LimitReached
from sevd.guests import Guest, GuestState, Limits, PageType, Region, Watch
from tests.support.hosting import ALICE, BOB, PAGES, POLICY, REGIONS, ROOT, hosting

S = GuestState


async def following(watch: Watch, count: int) -> list[Guest]:
    return [await asyncio.wait_for(anext(watch), 5) for _ in range(count)]


async def test_the_life_of_a_guest(tmp_path: Path) -> None:
    async with hosting(tmp_path) as it:
        guest = await it.created()
        watch = it.guests.watch(ALICE, guest.guest_id)
        seen = await following(watch, 1)
        await it.guests.start(ALICE, guest.guest_id, POLICY)
        seen += await following(watch, 1)
        await it.guests.update(ALICE, guest.guest_id, REGIONS)
        seen += await following(watch, 1)
        await it.created()  # another one: not asked for
        await it.guests.finish(ALICE, guest.guest_id)
        seen += await following(watch, 1)
        await it.guests.delete(ALICE, guest.guest_id)
        seen += [guest async for guest in watch]
        assert [each.state for each in seen] == [S.CREATED, S.LAUNCHING, S.LAUNCHING, S.READY, S.DELETED]
        assert [each.updated_pages for each in seen] == [0, 0, PAGES, PAGES, PAGES]
        assert it.guests._ledger.held("uid:1001")[2] == 0


async def test_others_see_nothing_and_an_administrator_everything(tmp_path: Path) -> None:
    async with hosting(tmp_path) as it:
        his, all_of_them = it.guests.watch(BOB), it.guests.watch(ROOT)
        guest = await it.created(ALICE)
        await it.guests.delete(ALICE, guest.guest_id)
        mine = await it.created(BOB)
        assert (await following(his, 1))[0] == mine
        await it.guests.close()
        assert [each.guest_id async for each in his] == [mine.guest_id]
        assert {each.guest_id async for each in all_of_them} == {guest.guest_id, mine.guest_id}


async def test_a_slow_watcher_misses_steps_but_never_the_last(tmp_path: Path) -> None:
    async with hosting(tmp_path) as it:
        guest = await it.launching()
        watch = it.guests.watch(ALICE)
        for page in range(20):
            await it.guests.update(ALICE, guest.guest_id, [Region(page * 4096, 4096, PageType.ZERO)])
        assert [each.updated_pages for each in await following(watch, 1)] == [20]
        watch.close()
        with pytest.raises(StopAsyncIteration):
            await anext(watch)


async def test_a_watcher_that_reads_nothing_is_ended(tmp_path: Path) -> None:
    async with hosting(tmp_path, limits=Limits(watch_backlog=3)) as it:
        watch = it.guests.watch(ALICE)
        for _ in range(4):
            await it.created()
        with pytest.raises(LimitReached, match="more than 3 guests") as refused:
            await anext(watch)
        assert refused.value.metadata["limit"] == "watch_backlog"
        with pytest.raises(StopAsyncIteration):
            await anext(watch)
        assert len(await following(it.guests.watch(ALICE), 4)) == 4


async def test_streams_are_limited_and_given_back(tmp_path: Path) -> None:
    async with hosting(tmp_path, limits=Limits(watches=2)) as it:
        first, _second = it.guests.watch(ALICE), it.guests.watch(ALICE)
        with pytest.raises(LimitReached) as refused:
            it.guests.watch(ALICE)
        assert refused.value.metadata == {"limit": "watches", "value": "2", "in_use": "2"}
        it.guests.watch(BOB)
        await first.aclose()
        first.close()
        it.guests.watch(ALICE)


async def test_a_waiting_watcher_is_woken(tmp_path: Path) -> None:
    async with hosting(tmp_path) as it:
        watch = it.guests.watch(ALICE)
        waiting = asyncio.create_task(anext(watch))
        await asyncio.sleep(0.01)
        guest = await it.created()
        assert await asyncio.wait_for(waiting, 5) == guest
        ended = asyncio.create_task(anext(watch))
        await asyncio.sleep(0.01)
        watch.close()
        with pytest.raises(StopAsyncIteration):
            await asyncio.wait_for(ended, 5)
