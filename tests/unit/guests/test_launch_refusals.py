"""What a launch over the real driver and the simulated host is refused, by the daemon, KVM and the firmware."""

from __future__ import annotations

from pathlib import Path

import pytest

from sev import status
from sev.errors import FirmwareError, KernelError, LimitReached, MalformedInput, SevError, UsageError
from sevd.guests import GuestState, KeyRequest, PageType, Region
from tests.support.hosting import ALICE, FIRMWARE_GPA, POLICY, ROOT, hosting

UPDATES = [
    ("no regions", (), "regions"),
    ("no type", (Region(0, 4096, 0),), "regions[0].page_type"),
    ("VMSA, which is KVM's", (Region(0, 4096, 2),), "regions[0].page_type"),
    ("type 7", (Region(0x1000, 4096, 3), Region(0, 4096, 7)), "regions[1].page_type"),
    ("address off a page", (Region(0x800, 4096, 1),), "regions[0].gpa"),
    ("size off a page", (Region(0, 4097, 1),), "regions[0].size_bytes"),
    ("size zero", (Region(0, 0, 1),), "regions[0].size_bytes"),
    ("beyond memory", (Region((16 << 20) - 4096, 8192, 1),), "regions[0].gpa"),
    ("in the hole", (Region(1 << 31, 4096, 1),), "regions[0].gpa"),
    ("below the firmware", (Region(FIRMWARE_GPA - 4096, 8192, 1),), "regions[0].gpa"),
    ("at the end of all", (Region((1 << 64) - 4096, 4096, 1),), "regions[0].gpa"),
    ("one page twice", (Region(0, 8192, 1), Region(4096, 4096, 1)), "regions[1].gpa"),
    ("measured before", (Region(0x800000, 4096, 1),), "regions[0].gpa"),
]


@pytest.mark.parametrize(("regions", "field"), [case[1:] for case in UPDATES], ids=[case[0] for case in UPDATES])
async def test_an_update_that_cannot_be_meant(tmp_path: Path, regions: tuple[Region, ...], field: str) -> None:
    async with hosting(tmp_path) as it:
        guest = await it.launching()
        before = await it.guests.update(ALICE, guest.guest_id, [Region(0x800000, 4096, PageType.ZERO)])
        for validate_only in (True, False):
            with pytest.raises(UsageError) as refused:
                await it.guests.update(ALICE, guest.guest_id, regions, validate_only=validate_only)
            assert refused.value.field == field
        assert it.guests.get(ALICE, guest.guest_id) == before


CREATES = [
    ("type", {"type": 0}, "type"),
    ("short id", {"guest_id": "short"}, "guest_id"),
    ("id in capitals", {"guest_id": "MY-GUEST-1"}, "guest_id"),
    ("id with a slash", {"guest_id": "uid:0/guest"}, "guest_id"),
    ("long id", {"guest_id": "a" * 37}, "guest_id"),
    ("id with a line", {"guest_id": "abcdefgh\n"}, "guest_id"),
    ("no memory", {"memory_bytes": 0}, "memory_bytes"),
    ("memory off a page", {"memory_bytes": 4097}, "memory_bytes"),
    ("memory without end", {"memory_bytes": 1 << 60}, "memory_bytes"),
    ("firmware off a page", {"firmware_bytes": 100}, "firmware_bytes"),
    ("firmware too large", {"firmware_bytes": (16 << 20) + 4096}, "firmware_bytes"),
    ("no vCPU", {"vcpu_count": 0}, "vcpu_count"),
    ("vCPUs without an address", {"vcpu_count": 2}, "ap_reset_address"),
    ("address above 4 GiB", {"ap_reset_address": 1 << 32}, "ap_reset_address"),
    ("signature", {"cpuid_signature": 1 << 32}, "cpuid_signature"),
    ("features", {"vmsa_features": 1 << 64}, "vmsa_features"),
    ("long label", {"label": "x" * 65}, "label"),
    ("label with control characters", {"label": "a\x1b[2J"}, "label"),
]


@pytest.mark.parametrize(("changes", "field"), [case[1:] for case in CREATES], ids=[case[0] for case in CREATES])
async def test_a_guest_that_cannot_be_meant(tmp_path: Path, changes: dict[str, object], field: str) -> None:
    async with hosting(tmp_path) as it:
        with pytest.raises(UsageError) as refused:
            await it.created(ALICE, **changes)
        assert refused.value.field == field
        assert it.held() == (0, 0, 0)
        assert it.told == []


async def test_refusals_of_kvm_come_through_at_creation(tmp_path: Path) -> None:
    async with hosting(tmp_path) as it:
        with pytest.raises(SevError) as refused:
            await it.created(vmsa_features=1 << 40)
        assert refused.value.exit_code == 6
        assert it.held() == (0, 0, 0)


STARTS = [
    ("newer ABI", 0x3FFFF, FirmwareError, status.POLICY_FAILURE, 5),
    ("bit 17 clear", 0x10000, KernelError, None, 22),
    ("a bit that nobody knows", 1 << 40 | POLICY, KernelError, None, 22),
]


@pytest.mark.parametrize(
    ("policy", "kind", "code", "errno"), [case[1:] for case in STARTS], ids=[case[0] for case in STARTS]
)
async def test_a_refused_start_can_be_repeated(
    tmp_path: Path, policy: int, kind: type[SevError], code: int | None, errno: int
) -> None:
    async with hosting(tmp_path) as it:
        guest = await it.created()
        with pytest.raises(kind) as refused:
            await it.guests.start(ALICE, guest.guest_id, policy)
        assert (refused.value.firmware_status, refused.value.errno) == (code, errno)
        assert refused.value.command == "SNP_LAUNCH_START"
        assert refused.value.remedy
        assert it.guests.get(ALICE, guest.guest_id) == guest
        assert (await it.guests.start(ALICE, guest.guest_id, POLICY)).state is GuestState.LAUNCHING


FINISHES: list[tuple[str, dict[str, object], type[SevError], str]] = [
    ("ID block of 95 bytes", {"id_block": bytes(95), "id_auth": bytes(4096)}, MalformedInput, "id_block"),
    ("ID auth of a page less one", {"id_block": bytes(96), "id_auth": bytes(4095)}, MalformedInput, "id_auth"),
    ("host data of 31 bytes", {"host_data": bytes(31)}, MalformedInput, "host_data"),
    ("ID block alone", {"id_block": bytes(96)}, UsageError, "id_auth"),
    ("ID auth alone", {"id_auth": bytes(4096)}, UsageError, "id_block"),
    ("author key of nothing", {"author_key_enabled": True}, UsageError, "author_key_enabled"),
]


@pytest.mark.parametrize(
    ("arguments", "kind", "field"), [case[1:] for case in FINISHES], ids=[case[0] for case in FINISHES]
)
async def test_a_finish_that_cannot_be_meant_harms_nothing(
    tmp_path: Path, arguments: dict[str, object], kind: type[SevError], field: str
) -> None:
    async with hosting(tmp_path) as it:
        guest = await it.launching()
        with pytest.raises(kind) as refused:
            await it.guests.finish(ALICE, guest.guest_id, **arguments)  # type: ignore[arg-type]
        assert refused.value.field == field
        assert (await it.guests.finish(ALICE, guest.guest_id)).state is GuestState.READY


async def test_a_malformed_cpuid_page_says_why(tmp_path: Path) -> None:
    async with hosting(tmp_path) as it:
        guest = await it.launching()
        (await it.guests.load(ALICE, guest.guest_id)).write(0x400000, b"\1\0\0\0" + b"\xff" * 4092)
        with pytest.raises(FirmwareError) as refused:
            await it.guests.update(ALICE, guest.guest_id, [Region(0x400000, 0x1000, PageType.CPUID)])
        assert refused.value.firmware_status == status.INVALID_PARAM
        assert "reserved" in refused.value.metadata["corrections"]


@pytest.mark.parametrize(
    "arguments",
    [{"policy": 1 << 64}, {"policy": -1}, {"policy": POLICY, "gosvw": bytes(15)}],
    ids=["65 bits", "negative", "gosvw of 15 bytes"],
)
async def test_a_start_that_cannot_be_meant(tmp_path: Path, arguments: dict[str, object]) -> None:
    async with hosting(tmp_path) as it:
        guest = await it.created()
        with pytest.raises((UsageError, MalformedInput)):
            await it.guests.start(ALICE, guest.guest_id, **arguments)  # type: ignore[arg-type]
        assert it.guests.get(ALICE, guest.guest_id).state is GuestState.CREATED


async def test_all_asids_in_use_is_the_kernels_answer(tmp_path: Path) -> None:
    async with hosting(tmp_path) as it:
        total = it.simulator.asids()["sev_es"][0]
        for _ in range(total):
            await it.created(ROOT)
        with pytest.raises(LimitReached) as refused:
            await it.created(ROOT)
        assert refused.value.errno == 16
        assert refused.value.command == "SEV_INIT2"
        assert refused.value.remedy
        guests, following = it.guests.list(ROOT, 1000)
        assert (len(guests), following, it.in_use()) == (total, "", total)
        await it.guests.delete(ROOT, guests[0].guest_id)
        await it.created(ROOT)


@pytest.mark.parametrize("size", [0, 63, 65])
async def test_report_data_of_another_length(tmp_path: Path, size: int) -> None:
    async with hosting(tmp_path) as it:
        guest = await it.ready()
        with pytest.raises(MalformedInput):
            await it.guests.guest_report(ALICE, guest.guest_id, bytes(size))


async def test_requests_of_a_guest_get_the_firmwares_answer(tmp_path: Path) -> None:
    async with hosting(tmp_path) as it:
        guest = await it.ready()
        with pytest.raises(FirmwareError) as refused:
            await it.guests.guest_report(ALICE, guest.guest_id, bytes(64), key_selection=2)
        assert refused.value.firmware_status == status.INVALID_KEY
        with pytest.raises(FirmwareError):
            await it.guests.guest_key(ALICE, guest.guest_id, KeyRequest(guest_field_select=1 << 20))
