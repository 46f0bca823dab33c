"""Callers that go away in the middle, guests that are deleted in the middle, the daemon's end, fairness."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sev import status
from sev.errors import (
    DeviceMissing,
    FirmwareError,
    InternalError,
    KernelError,
    NotFound,
    NotNow,
    SevError,
    WrongState,
)
from sevd.devices import Quiet, Scheduler
from sevd.events import Events
from sevd.guests import Guests, GuestState, Limits, PageType, Region
from sevd.guests.machine import OwnMachines
from tests.support.hosting import ALICE, BOB, FIRMWARE_GPA, POLICY, REGIONS, Hosting, hosting, request
from tests.support.simulated import refuse

if TYPE_CHECKING:
    from sev.launch.seam import Kernel

BIG = Region(0, 8 << 20, PageType.NORMAL)


class Hold:
    """Keeps the worker at the next (or the n-th next) firmware command of a name until it is let go."""

    def __init__(self, it: Hosting, command: str, *, after: int = 0) -> None:
        self._command = command
        self._skip = after
        self._reached = threading.Event()
        self._go = threading.Event()
        it.simulator.faults = self._hook

    def _hook(self, command: str) -> None:
        if command.lower() == self._command and not self._reached.is_set():
            if self._skip:
                self._skip -= 1
                return
            self._reached.set()
            assert self._go.wait(10)

    async def reached(self) -> None:
        assert await asyncio.to_thread(self._reached.wait, 10), f"{self._command} was never issued"

    def let_go(self) -> None:
        self._go.set()


async def gone(call: Awaitable[object], hold: Hold) -> None:
    """Makes a call, waits until its command runs, and goes away; the command then ends."""
    task = asyncio.ensure_future(call)
    await hold.reached()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    hold.let_go()


async def settle(it: Hosting) -> None:
    """Waits for steps that outlive their callers."""
    await it.guests._steps.drain(10)


async def test_a_creation_whose_caller_goes_away_leaves_nothing(tmp_path: Path) -> None:
    async with hosting(tmp_path) as it:
        gate = threading.Event()
        blocking = it.scheduler.submit("gate", gate.wait, 10)
        task = asyncio.create_task(it.created())
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.set()
        await blocking.done()
        await settle(it)
        assert it.processes == []  # it was never issued
        assert it.guests._ledger.held("uid:1001") == (0, 0, 0)


async def test_a_creation_that_ran_while_its_caller_went_away_is_undone(tmp_path: Path) -> None:
    async with hosting(tmp_path) as it:
        entered, go = threading.Event(), threading.Event()
        machines = it.guests._machines
        assert isinstance(machines, OwnMachines)
        process = machines._process

        def slow() -> Kernel:
            entered.set()
            assert go.wait(10)
            return process()

        machines._process = slow
        task = asyncio.create_task(it.created(guest_id="my-guest-1"))
        await asyncio.to_thread(entered.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go.set()
        await settle(it)
        assert len(it.processes) == 1
        assert it.held() == (0, 0, 0)
        assert it.guests.list(ALICE) == ([], "")
        machines._process = process
        await it.created(guest_id="my-guest-1")


async def test_a_start_that_was_issued_is_recorded(tmp_path: Path) -> None:
    async with hosting(tmp_path) as it:
        guest = await it.created()
        hold = Hold(it, "snp_launch_start")
        await gone(it.guests.start(ALICE, guest.guest_id, POLICY), hold)
        await settle(it)
        assert it.guests.get(ALICE, guest.guest_id).state is GuestState.LAUNCHING


async def test_an_update_stops_at_the_next_piece(tmp_path: Path) -> None:
    async with hosting(tmp_path, limits=Limits(chunk_bytes=1 << 20)) as it:
        guest = await it.launching()
        hold = Hold(it, "snp_launch_update", after=1)
        await gone(it.guests.update(ALICE, guest.guest_id, [BIG]), hold)
        await settle(it)
        now = it.guests.get(ALICE, guest.guest_id)
        assert (now.state, now.updated_pages) == (GuestState.LAUNCHING, 512)
        # It goes on where it stopped.
        rest = Region(2 << 20, 6 << 20, PageType.NORMAL)
        assert (await it.guests.update(ALICE, guest.guest_id, [rest])).updated_pages == 2048
        assert (await it.guests.finish(ALICE, guest.guest_id)).state is GuestState.READY


async def test_a_finish_that_was_issued_is_recorded(tmp_path: Path) -> None:
    async with hosting(tmp_path) as it:
        guest = await it.launching()
        hold = Hold(it, "snp_launch_finish")
        await gone(it.guests.finish(ALICE, guest.guest_id), hold)
        await settle(it)
        ready = it.guests.get(ALICE, guest.guest_id)
        assert (ready.state, len(ready.launch_digest)) == (GuestState.READY, 48)


async def test_a_finish_that_was_not_issued_changes_nothing(tmp_path: Path) -> None:
    async with hosting(tmp_path) as it:
        guest = await it.launching()
        gate = threading.Event()
        it.scheduler.submit("gate", gate.wait, 10)
        task = asyncio.create_task(it.guests.finish(ALICE, guest.guest_id))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.set()
        await settle(it)
        assert it.guests.get(ALICE, guest.guest_id) == guest
        assert (await it.guests.finish(ALICE, guest.guest_id)).state is GuestState.READY


async def test_a_deletion_goes_on_without_its_caller(tmp_path: Path) -> None:
    async with hosting(tmp_path) as it:
        guest = await it.ready()
        task = asyncio.create_task(it.guests.delete(ALICE, guest.guest_id))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await settle(it)
        assert it.held() == (0, 0, 0)
        assert it.kinds()[-1] == "guest.deleted"


async def test_deleting_cuts_a_running_update(tmp_path: Path) -> None:
    async with hosting(tmp_path, limits=Limits(chunk_bytes=1 << 20)) as it:
        guest = await it.launching()
        hold = Hold(it, "snp_launch_update", after=1)
        update = asyncio.create_task(it.guests.update(ALICE, guest.guest_id, [BIG]))
        await hold.reached()
        deletion = asyncio.create_task(it.guests.delete(ALICE, guest.guest_id))
        await asyncio.sleep(0.01)
        with pytest.raises(NotFound):
            await it.guests.start(ALICE, guest.guest_id, POLICY)
        hold.let_go()
        with pytest.raises(NotFound, match="was deleted"):
            await update
        await deletion
        assert it.held() == (0, 0, 0)


async def test_deleting_twice_at_once(tmp_path: Path) -> None:
    async with hosting(tmp_path) as it:
        guest = await it.created()
        answers = await asyncio.gather(
            *(it.guests.delete(ALICE, guest.guest_id) for _ in range(3)), return_exceptions=True
        )
        assert sorted(type(answer).__name__ for answer in answers) == ["NoneType", "NotFound", "NotFound"]
        assert it.kinds().count("guest.deleted") == 1


async def test_steps_of_one_guest_follow_each_other(tmp_path: Path) -> None:
    async with hosting(tmp_path) as it:
        guest = await it.created()
        first, second = await asyncio.gather(
            it.guests.start(ALICE, guest.guest_id, POLICY),
            it.guests.start(ALICE, guest.guest_id, POLICY),
            return_exceptions=True,
        )
        assert not isinstance(first, BaseException)
        assert isinstance(second, WrongState)
        region = [Region(0, 4096, PageType.ZERO)]
        answers = await asyncio.gather(
            *(it.guests.update(ALICE, guest.guest_id, region) for _ in range(4)), return_exceptions=True
        )
        assert sum(not isinstance(answer, BaseException) for answer in answers) == 1
        ends = await asyncio.gather(
            *(it.guests.finish(ALICE, guest.guest_id) for _ in range(3)), return_exceptions=True
        )
        assert sum(not isinstance(answer, BaseException) for answer in ends) == 1
        assert it.guests.get(ALICE, guest.guest_id).state is GuestState.READY


async def test_a_big_update_does_not_hold_up_a_small_guest(tmp_path: Path) -> None:
    """While 12 MiB of one guest wait for the device in pieces, another guest is launched as a whole."""
    async with hosting(tmp_path, limits=Limits(chunk_bytes=256 << 10)) as it:
        big = await it.launching(ALICE)
        regions = [Region(0, 12 << 20, PageType.NORMAL)]
        update = asyncio.create_task(it.guests.update(ALICE, big.guest_id, regions))
        await asyncio.sleep(0)
        small = await it.ready(BOB)
        assert small.state is GuestState.READY
        assert not update.done(), "the big update was over before the small launch: it shows nothing"
        assert (await update).updated_pages == 3072


async def test_the_loop_stays_free_while_the_device_works(tmp_path: Path) -> None:
    async with hosting(tmp_path) as it:
        guest = await it.launching()
        hold = Hold(it, "snp_launch_finish")
        finish = asyncio.create_task(it.guests.finish(ALICE, guest.guest_id))
        await hold.reached()
        begin = time.monotonic()
        assert it.guests.get(ALICE, guest.guest_id).state is GuestState.LAUNCHING
        assert it.guests.list(ALICE)[0]
        assert time.monotonic() - begin < 0.05
        hold.let_go()
        await finish


async def test_the_daemons_end(tmp_path: Path) -> None:
    async with hosting(tmp_path) as it:
        guests = [await it.created(), await it.launching(), await it.ready()]
        watch = it.guests.watch(ALICE)
        await it.guests.close()
        assert it.held() == (0, 0, 0)
        last = {guest.guest_id: guest async for guest in watch}
        assert [last[guest.guest_id].state for guest in guests] == [GuestState.LOST] * 3
        assert all("daemon ended" in guest.failure for guest in last.values())
        assert it.kinds().count("guest.lost") == 3
        with pytest.raises(NotNow):
            await it.created()
        with pytest.raises(WrongState):
            await it.guests.finish(ALICE, guests[1].guest_id)
        await it.guests.delete(ALICE, guests[0].guest_id)


async def test_a_lost_platform_in_the_middle_of_a_step(tmp_path: Path) -> None:
    async with hosting(tmp_path, limits=Limits(chunk_bytes=1 << 20)) as it:
        guest = await it.launching()
        hold = Hold(it, "snp_launch_update")
        update = asyncio.create_task(it.guests.update(ALICE, guest.guest_id, [BIG]))
        await hold.reached()
        loss = asyncio.create_task(it.guests.lose("power loss"))
        await asyncio.sleep(0.01)
        assert it.guests.get(ALICE, guest.guest_id).state is GuestState.LOST
        hold.let_go()
        with pytest.raises(WrongState, match="LOST"):
            await update
        await loss
        assert it.held() == (0, 0, 0)
        assert it.guests.get(ALICE, guest.guest_id).failure == "power loss"


async def test_a_platform_command_keeps_out_of_a_launch(tmp_path: Path) -> None:
    quiet = Quiet(wait_seconds=5)
    async with hosting(tmp_path, quiet=quiet) as it:
        guest = await it.launching()
        assert len(quiet.in_flight()) == 1
        order: list[str] = []

        async def commit() -> None:
            async with quiet.platform("SNP_COMMIT"):
                order.append("commit")

        task = asyncio.create_task(commit())
        await asyncio.sleep(0.01)
        await it.guests.update(ALICE, guest.guest_id, REGIONS)
        order.append("finish")
        await it.guests.finish(ALICE, guest.guest_id)
        await task
        assert order == ["finish", "commit"]
        for way in ("delete", "fail"):
            guest = await it.launching()
            if way == "delete":
                await it.guests.delete(ALICE, guest.guest_id)
            else:
                with pytest.raises(SevError):
                    await it.guests.finish(ALICE, guest.guest_id, id_block=bytes(96), id_auth=bytes(4096))
            assert quiet.in_flight() == (), way


async def test_asids_are_right_at_once(tmp_path: Path) -> None:
    """Whoever is told of a change sees the ASIDs as they are after it."""
    async with hosting(tmp_path) as it:
        guest = await it.created()
        assert it.changes[-1] == 1
        await it.guests.delete(ALICE, guest.guest_id)
        assert it.changes[-1] == 0


async def test_without_a_device_everything_that_needs_one_says_what_is_missing() -> None:
    scheduler = Scheduler()
    guests = Guests(None, scheduler, Events(), missing=lambda: ["There is no /dev/sev.", "There is no /dev/kvm."])
    for validate_only in (True, False):
        with pytest.raises(DeviceMissing, match=r"There is no /dev/sev\. There is no /dev/kvm\.") as refused:
            await guests.create(ALICE, request(), validate_only=validate_only)
        assert refused.value.metadata["missing"] == "There is no /dev/sev.\nThere is no /dev/kvm."
    assert guests.list(ALICE) == ([], "")
    await guests.close()
    scheduler.close()


async def test_a_secure_processor_that_hangs(tmp_path: Path) -> None:
    """The kernel's own errno comes through, and the guest can still be deleted."""
    async with hosting(tmp_path) as it:
        guest = await it.launching()

        def hang(_command: str) -> None:
            raise TimeoutError

        it.dead, it.simulator.faults = True, hang
        with pytest.raises(KernelError) as refused:
            await it.guests.finish(ALICE, guest.guest_id)
        assert refused.value.errno is not None
        assert it.guests.get(ALICE, guest.guest_id).state is GuestState.FAILED
        await it.guests.delete(ALICE, guest.guest_id)
        it.simulator.faults = lambda _command: None
        assert it.held()[2] == 0


async def test_a_fault_of_the_firmware_comes_through(tmp_path: Path) -> None:
    async with hosting(tmp_path) as it:
        guest = await it.launching()
        refuse(it.simulator, "SNP_LAUNCH_UPDATE")
        with pytest.raises(FirmwareError) as refused:
            await it.guests.update(ALICE, guest.guest_id, [Region(FIRMWARE_GPA, 4096, PageType.NORMAL)])
        assert refused.value.firmware_status == status.HWERROR_UNSAFE
        it.simulator.faults = lambda _command: None
        await it.guests.update(ALICE, guest.guest_id, [Region(FIRMWARE_GPA, 4096, PageType.NORMAL)])


async def test_a_bug_in_the_driver_is_an_internal_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with hosting(tmp_path) as it:
        guest = await it.launching()

        def bug(command: str) -> None:
            if command == "SNP_LAUNCH_FINISH":
                raise ZeroDivisionError

        it.simulator.faults = bug
        with pytest.raises(InternalError):
            await it.guests.finish(ALICE, guest.guest_id)
        assert it.guests.get(ALICE, guest.guest_id).state is GuestState.FAILED
        assert "device work failed" in caplog.text
        it.simulator.faults = lambda _command: None


async def test_a_closed_worker_refuses_and_nothing_is_left(tmp_path: Path) -> None:
    async with hosting(tmp_path) as it:
        guest = await it.ready()
        it.scheduler.close()
        with pytest.raises(NotNow):
            await it.created()
        await it.guests.delete(ALICE, guest.guest_id)
        assert it.held() == (0, 0, 0)
