"""The platform of SEV and SEV-ES and the guests that must not be there, or not come, while its keys change."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from sev.errors import NotNow
from sev.launch import Snp
from sevd.devices import Quiet
from sevd.platform.occupancy import Occupancy
from sevd.platform.sev import SevPlatform
from sevd.platform.views import SevState
from tests.support.sev_platform import CHECKED, DISRUPTIVE, ROOT, Owner, rig


async def begun(quiet: Quiet) -> None:
    """Waits until a command that no guest may meet has announced itself."""
    for _ in range(500):
        if quiet._alone:
            return
        await asyncio.sleep(0.01)
    pytest.fail("no command came")


@pytest.mark.parametrize("command", [*DISRUPTIVE])
async def test_what_takes_keys_away_names_the_guests_that_are_there(tmp_path: Path, command: str) -> None:
    async with rig(tmp_path) as it:
        before = await it.pdh()
        it.occupants = [f"the guest web-{number} of uid:1000 (SNP, ready)" for number in range(10)]
        for steps in (CHECKED, DISRUPTIVE):
            with pytest.raises(NotNow, match=r"web-0 of uid:1000 \(SNP, ready\), .* 2 more") as refused:
                await steps[command](it.platform, Owner())
            assert refused.value.command == command
            assert refused.value.metadata["occupants"].splitlines() == it.occupants
        assert await it.pdh() == before
        it.occupants = []
        await DISRUPTIVE[command](it.platform, Owner())
        assert await it.pdh(confirm=True) != before


@pytest.mark.parametrize("command", [*DISRUPTIVE])
async def test_guests_of_others_count_too(tmp_path: Path, command: str) -> None:
    async with rig(tmp_path) as it:
        guest = Snp(it.simulator.process())
        guest.create(1 << 20, 4096, 1, 0x00A00F11, 0, 1)
        try:
            for steps in (CHECKED, DISRUPTIVE):
                with pytest.raises(NotNow, match="1 SEV-ES and SEV-SNP ASID of another program"):
                    await steps[command](it.platform, Owner())
        finally:
            guest.close()
        await DISRUPTIVE[command](it.platform, Owner())


async def test_guests_that_only_the_firmware_knows(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        blind = SevPlatform(it.device, it.events, occupancy=Occupancy(it.simulator.product))
        guest = Snp(it.simulator.process())
        guest.create(1 << 20, 4096, 1, 0x00A00F11, 0, 1)
        guest.start(0x30000, bytes(16))
        try:
            for validate_only in (True, False):
                with pytest.raises(NotNow, match="1 SEV-SNP guest of another program"):
                    await blind.reset(ROOT, True, validate_only=validate_only)
        finally:
            guest.close()
        assert (await blind.reset(ROOT, True)).state is SevState.UNINIT


async def test_a_pdh_is_made_while_guests_run(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        it.occupants = ["the guest web of uid:1000 (SNP, running)"]
        before = await it.pdh()
        assert (await it.platform.generate_pdh(ROOT, validate_only=True)).state is SevState.INIT
        assert await it.pdh() == before
        await it.platform.generate_pdh(ROOT)
        assert await it.pdh() != before
        assert it.kinds == ["platform.pdh_generated"]
        it.occupants = []
        await it.platform.reset(ROOT, True)
        it.occupants = ["the guest web of uid:1000 (SNP, running)"]
        for validate_only in (True, False):
            with pytest.raises(NotNow, match="the guest web"):
                await it.platform.generate_pdh(ROOT, confirm=True, validate_only=validate_only)
        with pytest.raises(NotNow, match="the guest web"):
            await it.platform.export(ROOT, confirm=True)
        assert (await it.platform.status()).snp_initialized


async def test_no_guest_is_made_meanwhile(tmp_path: Path) -> None:
    quiet = Quiet(wait_seconds=2)
    async with rig(tmp_path, quiet=quiet) as it:
        await quiet.begin("a launch")
        reset = asyncio.ensure_future(it.platform.reset(ROOT, True))
        await begun(quiet)
        created = asyncio.ensure_future(quiet.admit())
        await asyncio.sleep(0.05)
        assert not reset.done()
        assert not created.done()
        quiet.end("a launch")
        assert (await reset).state is SevState.UNINIT
        await created


async def test_whoever_comes_while_it_waits_is_seen(tmp_path: Path) -> None:
    quiet = Quiet(wait_seconds=2)
    async with rig(tmp_path, quiet=quiet) as it:
        await quiet.begin("a launch")
        reset = asyncio.ensure_future(it.platform.reset(ROOT, True))
        await begun(quiet)
        it.occupants = ["the guest late of uid:1000 (SNP, created)"]
        quiet.end("a launch")
        with pytest.raises(NotNow, match="the guest late"):
            await reset
        assert (await it.platform.status()).state is SevState.INIT


async def test_launches_in_flight_are_waited_for_and_then_told(tmp_path: Path) -> None:
    quiet = Quiet(wait_seconds=0.05)
    async with rig(tmp_path, quiet=quiet) as it:
        await quiet.begin("a launch")
        with pytest.raises(NotNow, match="FACTORY_RESET needs a quiet platform, and 1 launch is in flight"):
            await it.platform.reset(ROOT, True)
        await quiet.admit()
