"""SEV and SEV-ES guests of a daemon over the simulated host: their launch with an owner, and what is refused."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from sev import status
from sev.abi.legacy_report import LegacyReport
from sev.abi.sev_certificate import SevCertificate
from sev.abi.sev_device import PlatformStatus
from sev.errors import FirmwareError, MalformedInput, NotFound, NotOffered, NotPermitted, SevError, UsageError
from sev.launch import SevDevice
from sev.measurement import vmm
from sev.session import Session, measurement, secret
from sevd.guests import GuestState, GuestType, PageType, Region
from tests.support.hosting import ALICE, BOB, FIRMWARE, FIRMWARE_GPA, ROOT, Hosting, firmware, hosting
from tests.support.sev_hosting import KINDS, POLICIES, WHOLE, created, launching, measured, ready
from tests.support.simulated import refuse

S = GuestState
OPEN = {GuestType.SEV: 0x0, GuestType.SEV_ES: 0x4}
"""Policies that allow debugging."""
CPU = 0xA10F10
RESET = 0x80B004
TABLE = Region(0x810C00, 176, PageType.NORMAL)


def platform(it: Hosting) -> tuple[SevCertificate, tuple[int, int, int]]:
    """The platform's PDH and firmware version, as anybody asks for them."""
    process = it.simulator.process()
    try:
        with SevDevice(process, "/dev/sev") as device:
            now = PlatformStatus.decode(device.platform_status())
            return SevCertificate.read(device.pdh_export()[0]), (now.api_major, now.api_minor, now.build)
    finally:
        process.exit()


def expected_digest(kind: GuestType, vcpus: int = 1, more: bytes = b"") -> bytes:
    """What the owner reckons from what it gave."""
    out = sha256(firmware() + more)
    qemu = vmm.by_name("qemu")
    for number in range(vcpus if kind is GuestType.SEV_ES else 0):
        out.update(vmm.save_area(qemu, RESET if number else vmm.BOOT_ADDRESS, CPU, 0))
    return out.digest()


@pytest.mark.parametrize("kind", KINDS)
async def test_the_whole_story(tmp_path: Path, kind: GuestType) -> None:
    async with hosting(tmp_path, product="rome") as it:
        pdh, version = platform(it)
        session = Session.create(POLICIES[kind])
        start = session.start_unverified(pdh)
        guest = await created(it, kind, vcpu_count=2, ap_reset_address=RESET)
        loader = await it.guests.load(ALICE, guest.guest_id)
        loader.write(FIRMWARE_GPA, firmware())
        loader.write(TABLE.gpa, b"h" * 176)
        await it.guests.start(ALICE, guest.guest_id, start.policy, certificate=start.certificate, session=start.session)
        updated = await it.guests.update(ALICE, guest.guest_id, [*WHOLE, TABLE])
        assert updated.updated_pages == FIRMWARE // 4096 + 1
        with pytest.raises(UsageError, match="part of the launch already"):
            loader.write(TABLE.gpa, b"later")
        measure = await it.guests.sev.measure(ALICE, guest.guest_id)
        digest = expected_digest(kind, 2, b"h" * 176)
        assert (measure.state, measure.launch_digest, len(measure.measurement)) == (S.MEASURED, digest, 48)
        launch = measurement.Launch(digest, start.policy, *version)
        key = measurement.check(session.keys.tik, measure.measurement, launch)
        packet = secret.seal(session.keys, secret.table([(secret.DISK_PASSPHRASE, b"open sesame")]), key)
        other = secret.seal(session.keys, b"x" * 32, bytes(32))
        with pytest.raises(FirmwareError) as refused:
            await it.guests.sev.inject(ALICE, guest.guest_id, 0x80F000, other.header, other.payload)
        assert refused.value.firmware_status == status.BAD_MEASUREMENT
        took = await it.guests.sev.inject(ALICE, guest.guest_id, 0x80F000, packet.header, packet.payload)
        assert took.state is S.MEASURED
        done = await it.guests.finish(ALICE, guest.guest_id)
        assert (done.state, done.launch_digest, done.measurement) == (S.READY, digest, measure.measurement)
        report = LegacyReport.parse(await it.guests.sev.report(ALICE, guest.guest_id, b"n" * 16))
        assert (report.mnonce, report.launch_digest, report.policy.raw) == (b"n" * 16, digest, start.policy)
        assert it.kinds() == [
            "guest.created",
            "guest.launching",
            "guest.measured",
            "guest.secret",
            "guest.ready",
        ]
        assert b"sesame" not in repr(it.told).encode()
        await it.guests.delete(ALICE, guest.guest_id)
        assert it.held() == (0, 0, 0)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_real_host_reckons_the_digest_itself(tmp_path: Path, kind: GuestType) -> None:
    async with hosting(tmp_path, product="rome", observer=lambda _: None) as it:
        guest = await created(it, kind, vcpu_count=3, ap_reset_address=RESET)
        (await it.guests.load(ALICE, guest.guest_id)).write(FIRMWARE_GPA, firmware())
        await it.guests.start(ALICE, guest.guest_id, POLICIES[kind])
        await it.guests.update(ALICE, guest.guest_id, WHOLE)
        measure = await it.guests.sev.measure(ALICE, guest.guest_id)
        assert measure.launch_digest == expected_digest(kind, 3)


@pytest.mark.parametrize("kind", KINDS)
async def test_debugging_where_the_policy_allows_it(tmp_path: Path, kind: GuestType) -> None:
    async with hosting(tmp_path, product="rome") as it:
        guest = await ready(it, kind, OPEN[kind])
        read, write, name = it.guests.sev.read, it.guests.sev.write, guest.guest_id
        assert await read(ALICE, name, FIRMWARE_GPA + 10, 5000) == firmware()[10:5010]
        await write(ALICE, name, FIRMWARE_GPA + 3, b"changed")
        assert await read(ALICE, name, FIRMWARE_GPA, 10) == firmware()[:3] + b"changed"
        assert await read(ALICE, name, FIRMWARE_GPA, 10, validate_only=True) == b""
        await write(ALICE, name, FIRMWARE_GPA, b"never written", validate_only=True)
        assert (await read(ALICE, name, FIRMWARE_GPA, 3)) == firmware()[:3]
        for caller, error in ((ROOT, NotPermitted), (BOB, NotFound)):
            with pytest.raises(error):
                await read(caller, name, FIRMWARE_GPA, 16)
            with pytest.raises(error):
                await write(caller, name, FIRMWARE_GPA, b"x")
        for gpa, size in ((FIRMWARE_GPA, 0), (FIRMWARE_GPA, (1 << 20) + 1), (FIRMWARE_GPA - 1, 16), (1 << 40, 1)):
            with pytest.raises(UsageError):
                await read(ALICE, name, gpa, size)


@pytest.mark.parametrize("kind", KINDS)
async def test_no_debugging_where_it_forbids_it(tmp_path: Path, kind: GuestType) -> None:
    async with hosting(tmp_path, product="rome") as it:
        guest = await ready(it, kind)
        for refused in (
            it.guests.sev.read(ALICE, guest.guest_id, FIRMWARE_GPA, 16),
            it.guests.sev.write(ALICE, guest.guest_id, FIRMWARE_GPA, b"x"),
        ):
            with pytest.raises(FirmwareError) as caught:
                await refused
            assert caught.value.firmware_status == status.POLICY_FAILURE


async def test_a_refused_finish_leaves_the_guest_measured(tmp_path: Path) -> None:
    async with hosting(tmp_path, product="rome") as it:
        guest = await measured(it, GuestType.SEV)
        refuse(it.simulator, "LAUNCH_FINISH")
        with pytest.raises(FirmwareError):
            await it.guests.finish(ALICE, guest.guest_id)
        it.simulator.faults = lambda command: None
        assert it.guests.get(ALICE, guest.guest_id).state is S.MEASURED
        assert (await it.guests.finish(ALICE, guest.guest_id)).state is S.READY


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("policy", {"policy": 1 << 32 | 1}),
        ("policy", {"policy": 0x5}),
        ("gosvw", {"gosvw": b"g" * 16}),
        ("session", {"certificate": bytes(2084)}),
        ("owner_certificate", {"session": bytes(128)}),
        ("owner_certificate", {"certificate": bytes(2083), "session": bytes(128)}),
        ("session", {"certificate": bytes(2084), "session": bytes(127)}),
    ],
)
async def test_what_no_start_can_be_given(tmp_path: Path, field: str, arguments: dict[str, Any]) -> None:
    async with hosting(tmp_path, product="rome") as it:
        guest = await created(it, GuestType.SEV)
        with pytest.raises(SevError) as refused:
            await it.guests.start(ALICE, guest.guest_id, **{"policy": 1, **arguments})
        assert isinstance(refused.value, UsageError | MalformedInput)
        assert refused.value.field == field
        assert it.guests.get(ALICE, guest.guest_id).state is S.CREATED


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("header", (0x1000, bytes(51), bytes(16))),
        ("payload", (0x1000, bytes(52), b"")),
        ("payload", (0x1000, bytes(52), bytes(17))),
        ("payload", (0x1000, bytes(52), bytes((16 << 10) + 16))),
        ("gpa", (0x1008, bytes(52), bytes(16))),
        ("gpa", (1 << 40, bytes(52), bytes(16))),
    ],
)
async def test_what_no_secret_can_be(tmp_path: Path, field: str, arguments: tuple[int, bytes, bytes]) -> None:
    async with hosting(tmp_path, product="rome") as it:
        guest = await measured(it, GuestType.SEV)
        with pytest.raises(SevError) as refused:
            await it.guests.sev.inject(ALICE, guest.guest_id, *arguments)
        assert isinstance(refused.value, UsageError | MalformedInput)
        assert refused.value.field == field


@pytest.mark.parametrize(
    ("region", "field"),
    [
        (Region(0x1008, 16, PageType.NORMAL), "regions[0].gpa"),
        (Region(0x1000, 8, PageType.NORMAL), "regions[0].size_bytes"),
        (Region(0x1000, 0, PageType.NORMAL), "regions[0].size_bytes"),
        (Region(0x1000, 4096, PageType.ZERO), "regions[0].page_type"),
        (Region(0x1000, 4096, PageType.SECRETS), "regions[0].page_type"),
    ],
)
async def test_what_no_region_can_be(tmp_path: Path, region: Region, field: str) -> None:
    async with hosting(tmp_path, product="rome") as it:
        guest = await launching(it, GuestType.SEV)
        with pytest.raises(UsageError) as refused:
            await it.guests.update(ALICE, guest.guest_id, [region])
        assert refused.value.field == field


async def test_nothing_of_the_kind_for_other_types(tmp_path: Path) -> None:
    async with hosting(tmp_path) as it:
        sev, guest = it.guests.sev, await it.launching()
        for step in (
            sev.measure(ALICE, guest.guest_id),
            sev.inject(ALICE, guest.guest_id, 0x1000, bytes(52), bytes(16)),
            sev.report(ALICE, guest.guest_id, bytes(16)),
            sev.read(ALICE, guest.guest_id, 0, 16),
            sev.write(ALICE, guest.guest_id, 0, b"x"),
        ):
            with pytest.raises(NotOffered, match="of type SNP"):
                await step
        other = await it.created()
        with pytest.raises(UsageError, match="only SEV and SEV-ES"):
            await it.guests.start(ALICE, other.guest_id, 0x30000, certificate=bytes(2084), session=bytes(128))
        legacy = await measured(it, GuestType.SEV)
        with pytest.raises(NotOffered, match="nothing of the kind") as refused:
            await it.guests.guest_report(ALICE, legacy.guest_id, bytes(64))
        assert "sev guest report" in refused.value.remedy
        for finish in (
            {"host_data": b"h" * 32},
            {"id_block": bytes(96), "id_auth": bytes(4096)},
            {"vcek_disabled": True},
        ):
            with pytest.raises(UsageError, match="only SNP guests"):
                await it.guests.finish(ALICE, legacy.guest_id, **finish)


async def test_others_see_nothing_of_it(tmp_path: Path) -> None:
    async with hosting(tmp_path, product="rome") as it:
        guest, sev = await measured(it, GuestType.SEV), it.guests.sev
        for step in (
            sev.measure(BOB, guest.guest_id),
            sev.inject(BOB, guest.guest_id, 0x1000, bytes(52), bytes(16)),
            sev.report(BOB, guest.guest_id, bytes(16)),
        ):
            with pytest.raises(NotFound):
                await step
        assert len(await sev.report(ROOT, guest.guest_id, bytes(16))) == 208


async def test_nothing_changes_that_is_only_checked(tmp_path: Path) -> None:
    async with hosting(tmp_path, product="rome") as it:
        guest = await launching(it, GuestType.SEV)
        checked = await it.guests.sev.measure(ALICE, guest.guest_id, validate_only=True)
        assert (checked.state, checked.measurement) == (S.LAUNCHING, b"")
        await it.guests.sev.measure(ALICE, guest.guest_id)
        await it.guests.sev.inject(ALICE, guest.guest_id, 0x1000, bytes(52), bytes(16), validate_only=True)
        assert (await it.guests.finish(ALICE, guest.guest_id, validate_only=True)).state is S.MEASURED


async def test_technologies_that_are_left_out(tmp_path: Path) -> None:
    async with hosting(tmp_path, technologies=("sev",)) as it:
        await created(it, GuestType.SEV)
        for kind in (GuestType.SNP, GuestType.SEV_ES):
            with pytest.raises(NotOffered, match=r"guests\.technologies"):
                await created(it, kind)


async def test_a_plain_save_area_is_not_for_sev(tmp_path: Path) -> None:
    async with hosting(tmp_path, product="rome") as it:
        with pytest.raises(UsageError, match="no VMSA"):
            await created(it, GuestType.SEV, vmsa_features=1)
        with pytest.raises(UsageError, match="hosted here"):
            await created(it, GuestType.UNSPECIFIED)
