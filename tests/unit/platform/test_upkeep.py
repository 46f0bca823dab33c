"""The desired state of the platform, over the simulated firmware: applied, kept, told; and changes by others."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from sev import products, status
from sev.abi.tcb import TcbVersion
from sev.errors import FirmwareError, SevError
from sevd.devices import Scheduler
from sevd.events import Events
from sevd.platform import PlatformDevice, SnpPlatform
from sevd.platform.desired import Desired
from sevd.platform.upkeep import Upkeep
from sevd.platform.views import DesiredView
from sevd.platform.watch import PlatformWatch
from sevd.simulator.firmware_update import update
from tests.support.simulated import refuse, simulated_host
from tests.support.table_readers import read_locked
from tests.unit.platform.test_snp_platform import Rig, rig

NEVER = 3600.0


class Kept:
    """A platform that is kept."""

    def __init__(self, it: Rig, desired: Desired, *, offered: bool = True, look_seconds: float = NEVER) -> None:
        self.rig = it
        self.records: list[Mapping[str, object]] = []
        self.upkeep = Upkeep(
            it.platform,
            it.events,
            desired,
            follow=it.table.update,
            mend=self._mend,
            record=self.records.append,
            changed=lambda: None,
            offered=offered,
            look_seconds=look_seconds,
            retries=(0.02,),
        )

    async def _mend(self) -> None:
        if self.rig.table.stale:
            await self.rig.table.update()

    @property
    def view(self) -> DesiredView:
        found = self.upkeep.view()
        assert found is not None
        return found

    @property
    def commands(self) -> list[tuple[str, object]]:
        return [(str(one["method"]).rpartition("/")[2], one["result"]) for one in self.records]

    @property
    def drifts(self) -> list[str]:
        return [event.message for event in self.rig.told if event.kind == "platform.drift"]

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110  # there is nothing that would set an event
                await asyncio.sleep(0.01)

    async def settled(self) -> DesiredView:
        """What is seen when nothing happens any more."""
        await self.until(lambda: self.view.actual is not None or "not looked" not in " ".join(self.view.drift))
        await asyncio.sleep(0.1)
        return self.view


@asynccontextmanager
async def kept(folder: Path, desired: Desired, **more: Any) -> AsyncIterator[Kept]:
    async with rig(folder) as it:
        found = Kept(it, desired, **more)
        found.upkeep.start()
        try:
            yield found
        finally:
            await found.upkeep.close()


async def test_it_is_applied_at_start_and_put_on_record(tmp_path: Path) -> None:
    async with kept(tmp_path, Desired("snp=3", mask_chip_id=True)) as it:
        assert it.view.drift == ("The platform was not looked at yet.",)
        view = await it.settled()
        assert view.actual is not None
        assert (view.actual.reported_tcb.snp, view.actual.mask_chip_id, view.drift) == (3, True, ())
        assert view.applied_at is not None
        assert it.rig.vcek() == view.actual.reported_tcb
        assert it.commands == [("SetSnpConfig", "done")]
        assert it.drifts == []


async def test_what_is_right_is_left_alone(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        reported = (await it.platform.status()).reported_tcb
        for text in ("committed", f"snp={reported.snp}", f"{reported.raw:016x}"):
            found = Kept(it, Desired(text, mask_chip_key=False))
            found.upkeep.start()
            view = await found.settled()
            assert (view.drift, view.applied_at, found.records) == ((), None, [])
            await found.upkeep.close()
        nothing = Kept(it, Desired())
        nothing.upkeep.start()
        await asyncio.sleep(0.05)
        assert nothing.upkeep.view() is None
        await nothing.upkeep.close()


async def test_after_a_commit_that_forgot_it_it_is_applied_again_and_never_commits_itself(tmp_path: Path) -> None:
    async with kept(tmp_path, Desired("snp=27,microcode=80")) as it:
        await it.settled()
        update(it.rig.simulator, "1.55.50", "snp=30,microcode=90")
        committed = it.rig.simulator.firmware.committed_version
        await it.rig.platform.commit(True)
        await it.until(lambda: len(it.records) == 2)
        view = await it.settled()
        assert view.actual is not None
        assert (view.actual.reported_tcb.snp, view.actual.reported_tcb.microcode, view.drift) == (27, 80, ())
        assert committed == (1, 55, 49)
        assert it.rig.vcek() == view.actual.reported_tcb


async def test_above_the_committed_tcb_it_is_drift_with_the_reason_until_a_commit(tmp_path: Path) -> None:
    async with kept(tmp_path, Desired("snp=28", mask_chip_id=True)) as it:
        view = await it.settled()
        assert view.actual is not None
        assert view.actual.mask_chip_id  # what can be done is done
        assert len(view.drift) == 2
        assert "snp is 27, wanted is 28" in view.drift[0]
        assert "may not exceed the committed one: snp 28 > 27" in view.drift[1]
        assert it.commands == [("SetSnpConfig", "refused"), ("SetSnpConfig", "done")]
        assert it.records[0]["firmware_status"] == status.INVALID_PARAM
        assert len(it.drifts) == 1
        await asyncio.sleep(0.2)
        assert len(it.records) == 2  # nobody asks in a loop what was refused
        await it.rig.platform.update_firmware("1.55.50", "", commit=False)
        await it.until(lambda: len(it.records) == 3)
        update(it.rig.simulator, "1.55.50", "snp=28")
        await it.rig.platform.commit(True)
        await it.until(lambda: not it.view.drift)
        assert it.drifts[-1] == "the platform is as the configuration wants it"


async def test_what_an_administrator_sets_is_drift_and_stays_until_the_next_event(tmp_path: Path) -> None:
    async with kept(tmp_path, Desired("snp=23")) as it:
        await it.settled()
        await it.rig.platform.set_config(reported_tcb={"snp": 20})
        await it.until(lambda: bool(it.view.drift))
        await asyncio.sleep(0.1)
        assert it.view.drift == ("The reported TCB is not the wanted one: snp is 20, wanted is 23.",)
        assert len(it.records) == 1
        it.upkeep.reload(Desired("snp=23"))
        await it.until(lambda: not it.view.drift)
        assert len(it.records) == 2
        it.upkeep.reload(Desired("committed"))
        await it.until(lambda: len(it.records) == 3)
        view = await it.settled()
        assert view.actual is not None
        assert view.actual.reported_tcb == view.actual.committed_tcb


async def test_a_reader_that_hangs_is_waited_for_and_it_is_tried_again(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        fd = read_locked(it.path)
        found = Kept(it, Desired("snp=23"))
        found.upkeep.start()
        await found.until(lambda: len(found.records) >= 2)
        assert any("is being read" in sentence for sentence in found.view.drift)
        os.close(fd)
        await found.until(lambda: not found.view.drift)
        assert found.commands[-1] == ("SetSnpConfig", "done")
        await found.upkeep.close()


async def test_a_vlek_is_loaded_replaced_and_reported_where_it_does_not_fit(tmp_path: Path) -> None:
    stick = tmp_path / "stick.bin"
    async with kept(tmp_path, Desired("snp=23", vlek=stick)) as it:
        view = await it.settled()
        assert [sentence for sentence in view.drift if "cannot be read" in sentence]
        wanted = view.actual
        assert wanted is not None
        stick.write_bytes(it.rig.simulator.firmware.vlek_hashstick())
        it.upkeep.appeared()
        await it.until(lambda: not it.view.drift)
        assert it.commands[-1] == ("LoadVlek", "done")
        # Another stick for the same TCB: replaced.
        stick.write_bytes(it.rig.simulator.firmware.vlek_hashstick())
        it.upkeep.reload(Desired("snp=23", vlek=stick))
        await it.until(lambda: len(it.records) == 3)
        await it.until(lambda: not it.view.drift)
        # The TCB moves away from it: nothing fits what it signs, and it cannot be loaded again.
        await it.rig.platform.set_config(reported_tcb={"snp": 22})
        await it.until(lambda: len(it.view.drift) == 2)
        assert "is for the TCB" in it.view.drift[1]
        # A commit forgets the TCB, and both come back.
        await it.rig.platform.commit(True)
        await it.until(lambda: not it.view.drift)


async def test_a_vlek_of_another_chip_is_told(tmp_path: Path) -> None:
    stick = tmp_path / "stick.bin"
    async with rig(tmp_path) as it:
        damaged = bytearray(it.simulator.firmware.vlek_hashstick())
        damaged[0x20] ^= 1
        stick.write_bytes(damaged)
        found = Kept(it, Desired(vlek=stick))
        found.upkeep.start()
        view = await found.settled()
        assert "No VLEK is loaded" in view.drift[0]
        assert "BAD_MEASUREMENT" in view.drift[1]
        await found.upkeep.close()


async def test_others_who_change_the_platform_are_noticed_and_the_table_follows(tmp_path: Path) -> None:
    async with kept(tmp_path, Desired(mask_chip_id=False), look_seconds=0.05) as it:
        await it.settled()
        firmware = it.rig.simulator.firmware
        before = (await it.rig.platform.status()).reported_tcb
        firmware.snp_config(before.replace(snp=3).encode() + (1).to_bytes(4, "little") + bytes(52))
        await it.until(lambda: "platform.changed" in [event.kind for event in it.rig.told])
        await it.until(lambda: bool(it.view.drift))
        assert it.rig.vcek() == before.replace(snp=3)
        assert it.records == []  # it was configured by somebody: drift, and left alone
        # SNP was shut down and comes up again: whatever was configured may be lost.
        it.rig.simulator.ccp.power_cycle()
        await asyncio.sleep(0.15)
        firmware.snp_init()
        await it.until(lambda: not it.view.drift)
        await it.until(lambda: it.rig.vcek() == before)


async def test_a_change_between_two_looks_of_this_daemons_own_is_no_news(tmp_path: Path) -> None:
    async with kept(tmp_path, Desired("snp=23"), look_seconds=0.02) as it:
        await it.settled()
        for snp in (5, 6, 7):
            await it.rig.platform.set_config(reported_tcb={"snp": snp})
            await asyncio.sleep(0.05)
        assert "platform.changed" not in [event.kind for event in it.rig.told]


async def test_without_snp_it_says_so(tmp_path: Path) -> None:
    async with kept(tmp_path, Desired("snp=3"), offered=False) as it:
        view = await it.settled()
        assert view.drift == ("SEV-SNP is not offered here (guests.technologies).",)
        assert (view.actual, it.records) == (None, [])


@pytest.mark.parametrize("product", [products.ROME, products.GENOA], ids=["no SNP", "no device"])
async def test_without_a_device_it_says_so(product: products.Product) -> None:
    scheduler, events = Scheduler(), Events()
    device = PlatformDevice(None, scheduler, missing=lambda: ["There is no /dev/sev."])
    platform = SnpPlatform(device, events, product=product)
    asked: list[object] = []

    async def nothing() -> None:
        asked.append(1)

    upkeep = Upkeep(
        platform, events, Desired("snp=3"), follow=nothing, mend=nothing, record=asked.append, changed=lambda: None
    )
    upkeep.start()
    await asyncio.sleep(0.05)
    view = upkeep.view()
    assert view is not None
    assert view.drift[0].startswith("The platform does not tell its status: there is no SEV platform here.")
    assert asked == []
    await upkeep.close()
    await device.close()
    scheduler.close()


async def test_on_a_real_host_the_committed_tcb_is_asked_for_by_setting_it(tmp_path: Path) -> None:
    """SNP_PLATFORM_STATUS does not tell it: what follows it can only be set, and is known from then on."""
    async with rig(tmp_path) as it:
        it.platform._committed_tcb = lambda: None
        committed = TcbVersion.from_int(it.simulator.firmware.committed_tcb, products.GENOA)
        await it.platform.set_config(reported_tcb={"snp": 20})
        found = Kept(it, Desired("committed"))
        found.upkeep.start()
        view = await found.settled()
        assert view.actual is not None
        assert (view.actual.reported_tcb, view.drift) == (committed, ())
        assert found.commands == [("SetSnpConfig", "done")]
        await it.platform.set_config(reported_tcb={"snp": 20})
        await found.until(lambda: bool(found.view.drift))
        assert f"committed is {committed}" in found.view.drift[0]
        await found.upkeep.close()


async def test_a_platform_that_fails_for_a_while_is_kept_afterwards(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        refuse(it.simulator, "SNP_CONFIG", code=status.HWERROR_PLATFORM)
        found = Kept(it, Desired("snp=23"))
        found.upkeep.start()
        view = await found.settled()
        assert "HWERROR_PLATFORM" in view.drift[-1]
        assert found.commands == [("SetSnpConfig", "refused")]
        with pytest.raises(FirmwareError):
            await it.platform.set_config(mask_chip_id=True)
        it.simulator.faults = lambda _command: None
        found.upkeep.appeared()
        await found.until(lambda: not found.view.drift)
        await found.upkeep.close()


async def test_it_ends_at_once_whatever_it_waits_for(tmp_path: Path) -> None:
    """Device work that is taken back is no reason to go on."""
    async with rig(tmp_path) as it:
        release = threading.Event()

        def hold(command: str) -> None:
            release.wait(10)

        it.simulator.faults = hold
        found = Kept(it, Desired("snp=23"), look_seconds=0.01)
        found.upkeep.start()
        busy = asyncio.ensure_future(it.platform.status())
        await asyncio.sleep(0.1)
        async with asyncio.timeout(5):
            await found.upkeep.close()
        release.set()
        await busy
        assert found.records == []


@pytest.mark.parametrize("era", ["A", "B", "B2", "C"])
async def test_looking_never_initialises_snp(tmp_path: Path, era: str) -> None:
    """Kernels of generation B initialise it for the status alone, and shut it down again."""
    with simulated_host(tmp_path / "host", era=era) as simulator:
        scheduler, events = Scheduler(), Events()
        device = PlatformDevice(simulator.process(), scheduler)
        platform = SnpPlatform(device, events, product=products.GENOA)
        asked: list[str] = []

        async def nothing() -> None: ...

        watch = PlatformWatch(platform, events, follow=nothing, mend=nothing, gently=lambda: era not in ("A", "C"))
        await watch.look()
        assert platform.last is not None
        simulator.ccp.shut_down()
        simulator.faults = asked.append
        with contextlib.suppress(SevError):
            await watch.look()
        assert "SNP_INIT" not in asked
        await device.close()
        scheduler.close()
