"""The platform's commands and the table of certificates that guests get: at no moment one that does not fit."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from sev import status
from sev.abi import cert_table
from sev.errors import DeviceMissing, FirmwareError, KernelError, NotNow, SevError
from sevd.platform.vlek import VlekMemory
from sevd.simulator.firmware_status import FirmwareStatus
from tests.support.table_readers import read_locked
from tests.unit.platform.test_snp_platform import Rig, rig

EMPTY = cert_table.build(())


def guids(it: Rig) -> list[bytes]:
    return [guid for guid, _ in cert_table.parse(it.path.read_bytes())]


async def test_while_a_command_runs_the_table_is_empty(tmp_path: Path) -> None:
    """So whoever is killed in the middle of it leaves nothing behind that does not fit."""
    async with rig(tmp_path) as it:
        seen: list[tuple[str, bytes]] = []

        def look(command: str) -> None:
            if command in ("SNP_COMMIT", "SNP_CONFIG", "SNP_VLEK_LOAD"):
                seen.append((command, it.path.read_bytes()))

        it.simulator.faults = look
        await it.platform.set_config(reported_tcb={"snp": 3})
        await it.platform.commit(True)
        await it.platform.load_vlek(it.simulator.firmware.vlek_hashstick())
        assert seen == [("SNP_CONFIG", EMPTY), ("SNP_COMMIT", EMPTY), ("SNP_VLEK_LOAD", EMPTY)]
        assert guids(it) == [cert_table.VLEK, cert_table.ASK, cert_table.ARK]


async def test_after_a_refusal_the_table_is_as_before(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        before = it.path.read_bytes()
        reported = (await it.platform.status()).reported_tcb
        with pytest.raises(FirmwareError):
            await it.platform.set_config(reported_tcb={"snp": 255})
        assert it.path.read_bytes() == before
        assert it.vcek() == reported


async def test_a_command_of_which_nobody_knows_whether_it_ran(tmp_path: Path) -> None:
    """It was done, and its answer was lost: the table is made for what the platform says then."""
    async with rig(tmp_path) as it:
        done = False

        def lose(command: str) -> None:
            nonlocal done
            if command == "SNP_CONFIG":
                done = True
            elif done and command == "SNP_PLATFORM_STATUS":
                done = False
                raise FirmwareStatus(status.HWERROR_PLATFORM)

        it.simulator.faults = lose
        with pytest.raises(FirmwareError):
            await it.platform.set_config(reported_tcb={"snp": 3})
        reported = (await it.platform.status()).reported_tcb
        assert reported.snp == 3
        assert it.vcek() == reported


async def test_a_platform_that_does_not_answer_any_more_leaves_the_table_empty(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:

        def die(command: str) -> None:
            if command == "SNP_COMMIT":
                raise TimeoutError

        it.simulator.faults = die
        with pytest.raises(KernelError):
            await it.platform.commit(True)
        assert it.path.read_bytes() == EMPTY
        assert it.table.stale
        assert [event.kind for event in it.told] == ["endorsements.stale"]
        it.simulator.faults = lambda _command: None


async def test_without_certificates_for_the_new_tcb_none_of_the_old_one_stays(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:

        def gone() -> Mapping[str, bytes]:
            raise DeviceMissing("the simulator does not answer")

        it.table._source = gone
        after = await it.platform.set_config(reported_tcb={"snp": 3})
        assert after.reported_tcb.snp == 3
        assert it.path.read_bytes() == EMPTY
        assert [event.kind for event in it.told] == ["endorsements.stale", "platform.configured"]
        it.table._source = it.simulator.endorsements
        await it.table.update()
        assert not it.table.stale
        assert it.vcek() == after.reported_tcb


async def test_a_table_that_cannot_be_emptied_keeps_the_command_from_being_issued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rig(tmp_path) as it:
        before = await it.platform.status(), it.path.read_bytes()

        def fail(*_: object) -> int:
            raise OSError(5, "Input/output error")

        with monkeypatch.context() as patch:
            patch.setattr("sevd.endorsements.table_file.os.pwrite", fail)
            with pytest.raises(KernelError):
                await it.platform.set_config(reported_tcb={"snp": 3})
        assert (await it.platform.status(), it.path.read_bytes()) == before


async def test_who_makes_the_table_anew_asks_the_platform_under_the_lock(tmp_path: Path) -> None:
    """A commit that came in between must not be undone in the table by what was asked before it."""
    async with rig(tmp_path) as it:
        await it.platform.set_config(reported_tcb={"snp": 3})
        async with it.table.exclusive():
            updating = asyncio.ensure_future(it.table.update())
            importing = asyncio.ensure_future(it.table.import_([it.simulator.roots_pem()]))
            await asyncio.sleep(0.05)
            # What another program would do that has the lock.
            it.simulator.firmware.snp_commit()
        await asyncio.gather(updating, importing)
        assert it.vcek() == (await it.platform.status()).reported_tcb


async def test_what_readers_held_up_is_known_to_be_stale(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        fd = read_locked(it.path)
        with pytest.raises(NotNow):
            await it.table.update()
        assert it.table.stale
        os.close(fd)
        await it.table.update()
        assert [event.kind for event in it.told] == ["endorsements.stale"]


async def test_a_vlek_stays_loaded_when_the_reported_tcb_changes_and_then_fits_nothing(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        first = await it.platform.load_vlek(it.simulator.firmware.vlek_hashstick())
        assert first.vlek is not None
        assert (first.vlek.tcb, bool(first.vlek.digest)) == (first.reported_tcb, True)
        assert first.reported_tcb.snp
        lower = await it.platform.set_config(reported_tcb={"snp": first.reported_tcb.snp - 1})
        assert lower.vlek_loaded
        assert lower.vlek == first.vlek
        # Reports show the new TCB and are signed by the old one's VLEK: neither certificate would do.
        assert guids(it) == [cert_table.ASK, cert_table.ARK]
        assert [each for each in it.table.current().missing if each.startswith("The loaded VLEK is for the TCB ")]
        second = await it.platform.load_vlek(it.simulator.firmware.vlek_hashstick())
        assert second.vlek is not None
        assert second.vlek.tcb == second.reported_tcb == lower.reported_tcb
        assert guids(it) == [cert_table.VLEK, cert_table.ASK, cert_table.ARK]
        assert it.table.current().missing == ()
        committed = await it.platform.commit(True)
        assert committed.vlek_loaded
        assert guids(it) == [cert_table.ASK, cert_table.ARK]


async def test_where_the_chips_key_is_masked_guests_get_no_table(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        await it.platform.set_config(mask_chip_key=True)
        assert it.path.read_bytes() == EMPTY
        assert "reports have no signature" in it.table.current().missing[0]
        await it.platform.load_vlek(it.simulator.firmware.vlek_hashstick())  # it signs all the same
        assert guids(it) == [cert_table.VLEK, cert_table.ASK, cert_table.ARK]


async def test_a_hash_stick_for_another_tcb_is_refused_before_the_firmware_is_asked(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        reported = (await it.platform.status()).reported_tcb
        assert reported.snp
        other = reported.replace(snp=reported.snp - 1)
        stick = it.simulator.firmware.vlek_hashstick(other.raw)
        asked: list[str] = []
        it.simulator.faults = asked.append
        for validate_only in (True, False):
            with pytest.raises(FirmwareError) as refused:
                await it.platform.load_vlek(stick, validate_only=validate_only)
            assert refused.value.firmware_status == status.BAD_SVN
            assert refused.value.metadata == {
                "hashstick_tcb": f"{other.raw:016x}",
                "reported_tcb": f"{reported.raw:016x}",
            }
            assert str(other) in refused.value.message
            assert str(reported) in refused.value.message
        assert "SNP_VLEK_LOAD" not in asked


async def test_which_vlek_is_loaded_is_known_after_a_restart(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        it.platform._vlek = VlekMemory(tmp_path / "vlek.json")
        loaded = (await it.platform.load_vlek(it.simulator.firmware.vlek_hashstick())).vlek
        assert loaded is not None
        assert loaded.loaded_at is not None
        await it.platform.set_config(reported_tcb={"snp": 3})
        it.platform._vlek = VlekMemory(tmp_path / "vlek.json")
        assert (await it.platform.status()).vlek == loaded
        # One of an earlier boot was lost with it, and a damaged file says nothing: then it is as it is first seen.
        for memory in (VlekMemory(tmp_path / "vlek.json", boot_id="another"), VlekMemory(tmp_path / "damaged.json")):
            (tmp_path / "damaged.json").write_bytes(b'{"boot_id": [')
            it.platform._vlek = memory
            found = await it.platform.status()
            assert found.vlek is not None
            assert (found.vlek.tcb, found.vlek.digest) == (found.reported_tcb, "")


async def test_a_vlek_that_is_gone_is_forgotten(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        path = tmp_path / "vlek.json"
        it.platform._vlek = VlekMemory(path)
        await it.platform.load_vlek(it.simulator.firmware.vlek_hashstick())
        assert path.exists()
        it.simulator.ccp.shut_down()
        with pytest.raises(SevError):
            await it.platform.load_vlek(bytes(432))
        assert (await it.platform.status()).vlek is None
        assert not path.exists()
