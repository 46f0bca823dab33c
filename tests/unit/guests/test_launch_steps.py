"""The launch over the real driver and the simulated host: the straight way, every wrong order, and how it ends."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from sev import status
from sev.errors import FirmwareError, NotFound, NotPermitted, SevError, UsageError, WrongState
from sev.measurement import digest as chain
from sev.measurement import vmm
from sevd.guests import Guest, GuestState, KeyRequest, PageType, Region
from sevd.guests.states import AFTER, Step
from tests.support.hosting import (
    ALICE,
    FIRMWARE,
    FIRMWARE_GPA,
    PAGES,
    POLICY,
    REGIONS,
    ROOT,
    Hosting,
    firmware,
    hosting,
    request,
)

S = GuestState


async def test_a_launch_from_end_to_end(tmp_path: Path) -> None:
    async with hosting(tmp_path) as it:
        created = await it.created(vcpu_count=2, ap_reset_address=0x80B004, label="first")
        assert (created.state, created.owner, created.label, created.simulated) == (
            S.CREATED,
            "uid:1001",
            "first",
            True,
        )
        assert (created.asid, it.in_use()) == (1, 1)
        loader = await it.guests.load(ALICE, created.guest_id)
        assert loader.write(FIRMWARE_GPA, firmware()[:100]) == 100
        assert loader.write(FIRMWARE_GPA + 100, firmware()[100:]) == FIRMWARE
        launching = await it.guests.start(ALICE, created.guest_id, POLICY)
        assert (launching.state, launching.policy) == (S.LAUNCHING, POLICY)
        updated = await it.guests.update(ALICE, created.guest_id, REGIONS)
        assert updated.updated_pages == PAGES
        ready = await it.guests.finish(ALICE, created.guest_id, host_data=b"h" * 32)
        assert ready.state is S.READY
        assert ready.launch_digest == expected_digest(2)
        report = await it.guests.guest_report(ALICE, created.guest_id, b"r" * 64, vmpl=1)
        assert len(report) == 1184
        assert report[0x90:0xC0] == ready.launch_digest
        assert report[0xC0:0xE0] == b"h" * 32
        assert report[0x50:0x90] == b"r" * 64
        assert await it.guests.guest_key(ALICE, created.guest_id, KeyRequest()) != bytes(32)
        await it.guests.delete(ALICE, created.guest_id)
        assert it.held() == (0, 0, 0)
        assert it.kinds() == ["guest.created", "guest.launching", "guest.ready", "guest.deleted"]
        assert {event.owner for event in it.told} == {"uid:1001"}


def expected_digest(vcpus: int, regions: Sequence[Region] = REGIONS) -> bytes:
    """What the owner reckons from the pages alone."""
    digest = bytes(48)
    for region in regions:
        if region.page_type == PageType.NORMAL:
            digest = chain.add_pages(digest, region.gpa, firmware())
        else:
            digest = chain.add_run(digest, region.page_type, region.gpa, region.size)
    qemu = vmm.by_name("qemu")
    pages = [vmm.save_area(qemu, vmm.BOOT_ADDRESS, 0xA10F10, 1)]
    pages += [vmm.save_area(qemu, 0x80B004, 0xA10F10, 1)] * (vcpus - 1)
    return chain.add_vmsas(digest, pages)


async def test_a_real_host_reckons_the_digest_itself(tmp_path: Path) -> None:
    """Without the model's view the daemon computes the digest: the same one."""
    async with hosting(tmp_path, observer=lambda _: None) as it:
        ready = await it.ready(vcpu_count=3, ap_reset_address=0x80B004)
        assert ready.launch_digest == expected_digest(3)
        assert ready.asid == 0
        assert not ready.simulated
        with pytest.raises(SevError) as refused:
            await it.guests.guest_report(ALICE, ready.guest_id, bytes(64))
        assert refused.value.exit_code == 6
        assert "sev attest report" in refused.value.remedy


async def take(it: Hosting, guest: Guest, step: Step) -> object:
    """One step with arguments that are right."""
    match step:
        case Step.LOAD:
            return (await it.guests.load(ALICE, guest.guest_id)).write(0x100000, b"data")
        case Step.START:
            return await it.guests.start(ALICE, guest.guest_id, POLICY)
        case Step.UPDATE:
            return await it.guests.update(ALICE, guest.guest_id, [Region(0x200000, 4096, PageType.ZERO)])
        case Step.FINISH:
            return await it.guests.finish(ALICE, guest.guest_id)
        case Step.PLAY:
            return await it.guests.guest_report(ALICE, guest.guest_id, bytes(64))
        case Step.DELETE:
            await it.guests.delete(ALICE, guest.guest_id)
            return None
        case _:
            raise AssertionError(f"nothing executes here: {step}")


async def brought_to(it: Hosting, state: GuestState) -> Guest:
    """A guest in this state, by the ways that exist."""
    match state:
        case S.CREATED:
            return await it.created()
        case S.LAUNCHING:
            return await it.launching()
        case S.READY:
            return await it.ready()
        case S.FAILED:
            guest = await it.launching()
            with pytest.raises(FirmwareError):
                await it.guests.finish(ALICE, guest.guest_id, id_block=bytes(96), id_auth=bytes(4096))
            return it.guests.get(ALICE, guest.guest_id)
        case _:
            guest = await it.created()
            await it.guests.lose("somebody pulled the plug")
            return it.guests.get(ALICE, guest.guest_id)


STATES = [S.CREATED, S.LAUNCHING, S.READY, S.FAILED, S.LOST]


HERE = [Step.LOAD, Step.START, Step.UPDATE, Step.FINISH, Step.PLAY, Step.DELETE]
"""The steps that an SNP guest of the daemon's own simulator can take: it does not execute."""


@pytest.mark.parametrize("step", HERE, ids=lambda step: step.value)
@pytest.mark.parametrize("state", STATES, ids=lambda state: state.name)
async def test_every_step_in_every_state(tmp_path: Path, state: GuestState, step: Step) -> None:
    async with hosting(tmp_path) as it:
        guest = await brought_to(it, state)
        assert guest.state is state
        if step in AFTER[state]:
            await take(it, guest, step)
            if step is Step.DELETE:
                with pytest.raises(NotFound):
                    it.guests.get(ALICE, guest.guest_id)
            else:
                assert it.guests.get(ALICE, guest.guest_id).state is AFTER[state][step]
        else:
            with pytest.raises(WrongState, match=f"{step} is not possible while the guest is {state.name}") as refused:
                await take(it, guest, step)
            assert refused.value.metadata["state"] == state.name
            assert set(refused.value.metadata["allowed"].split(",")) == set(AFTER[state])
            assert refused.value.remedy
            assert it.guests.get(ALICE, guest.guest_id) == guest


async def test_a_failed_finish_is_final(tmp_path: Path) -> None:
    async with hosting(tmp_path) as it:
        guest = await it.launching()
        with pytest.raises(FirmwareError) as refused:
            await it.guests.finish(ALICE, guest.guest_id, id_block=os.urandom(96), id_auth=bytes(4096))
        assert refused.value.firmware_status == status.BAD_MEASUREMENT
        failed = it.guests.get(ALICE, guest.guest_id)
        assert failed.state is S.FAILED
        assert "BAD_MEASUREMENT" in failed.failure
        assert failed.launch_digest == b""
        assert it.kinds()[-1] == "guest.failed"
        assert it.in_use() == 1
        await it.guests.delete(ALICE, guest.guest_id)
        assert it.held() == (0, 0, 0)


async def test_pages_accepted_before_a_refusal_stay(tmp_path: Path) -> None:
    """The firmware refuses the third page of a region: two are in, the rest may be given again."""
    async with hosting(tmp_path, observer=lambda _: None) as it:
        guest = await it.launching()
        bad = Region(0x400000, 0x3000, PageType.CPUID)
        (await it.guests.load(ALICE, guest.guest_id)).write(bad.gpa + 0x2000, b"\xff" * 4096)
        with pytest.raises(FirmwareError) as refused:
            await it.guests.update(ALICE, guest.guest_id, [*REGIONS[:2], bad, REGIONS[4]])
        assert refused.value.firmware_status == status.INVALID_PARAM
        assert refused.value.metadata["region"] == "2"
        assert refused.value.metadata["gpa"] == "0x402000"
        now = it.guests.get(ALICE, guest.guest_id)
        assert now.state is S.LAUNCHING
        assert now.updated_pages == (REGIONS[0].size + REGIONS[1].size) // 4096 + 2
        with pytest.raises(UsageError, match="part of the launch already"):
            await it.guests.update(ALICE, guest.guest_id, [Region(0x401000, 0x2000, PageType.ZERO)])
        rest = [Region(0x402000, 0x1000, PageType.ZERO), REGIONS[4]]
        await it.guests.update(ALICE, guest.guest_id, rest)
        measured = [*REGIONS[:2], Region(bad.gpa, 0x2000, PageType.CPUID), *rest]
        assert (await it.guests.finish(ALICE, guest.guest_id)).launch_digest == expected_digest(1, measured)


async def test_validate_only_changes_nothing(tmp_path: Path) -> None:
    async with hosting(tmp_path) as it:
        would_be = await it.guests.create(ALICE, request(), validate_only=True)
        assert (would_be.state, would_be.owner, would_be.memory_bytes) == (S.CREATED, "uid:1001", 16 << 20)
        assert it.held() == (0, 0, 0)
        guest = await it.created()
        assert await it.guests.start(ALICE, guest.guest_id, POLICY, validate_only=True) == guest
        launching = await it.launching()
        assert await it.guests.update(ALICE, launching.guest_id, REGIONS, validate_only=True) == launching
        assert await it.guests.finish(ALICE, launching.guest_id, validate_only=True) == launching
        await it.guests.delete(ALICE, launching.guest_id, validate_only=True)
        assert it.guests.get(ALICE, launching.guest_id) == launching
        assert (await it.guests.update(ALICE, launching.guest_id, REGIONS)).updated_pages == PAGES


async def test_an_administrator_sees_but_does_not_play(tmp_path: Path) -> None:
    async with hosting(tmp_path) as it:
        guest = await it.ready()
        assert it.guests.get(ROOT, guest.guest_id) == guest
        with pytest.raises(NotPermitted):
            await it.guests.guest_report(ROOT, guest.guest_id, bytes(64))
        with pytest.raises(NotPermitted):
            await it.guests.guest_key(ROOT, guest.guest_id, KeyRequest())
        await it.guests.delete(ROOT, guest.guest_id)
