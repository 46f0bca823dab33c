"""Several callers: what each sees, what nobody learns, and what each may have."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from sev.errors import LimitReached, NotFound, SevError, UsageError
from sevd.access.identity import Caller
from sevd.access.roles import Role
from sevd.guests import Guest, KeyRequest, Limits, PageType, Region
from sevd.guests.admission import GUEST_ID, new_guest_id
from tests.support.hosting import ALICE, BOB, FIRMWARE, POLICY, ROOT, Hosting, hosting, request

ABSENT = "g-00000000000000000000"


def test_made_ids_are_unguessable_and_well_formed() -> None:
    made = {new_guest_id() for _ in range(1000)}
    assert len(made) == 1000
    assert all(GUEST_ID.fullmatch(each) for each in made)


async def refusals(it: Hosting, caller: Caller, guest_id: str) -> dict[str, SevError]:
    """What every method answers to this caller about this id."""
    calls: dict[str, Callable[[], object]] = {
        "get": lambda: it.guests.get(caller, guest_id),
        "watch": lambda: it.guests.watch(caller, guest_id),
        "load": lambda: it.guests.load(caller, guest_id),
        "start": lambda: it.guests.start(caller, guest_id, POLICY),
        "update": lambda: it.guests.update(caller, guest_id, [Region(0, 4096, PageType.ZERO)]),
        "finish": lambda: it.guests.finish(caller, guest_id),
        "delete": lambda: it.guests.delete(caller, guest_id),
        "report": lambda: it.guests.guest_report(caller, guest_id, bytes(64)),
        "key": lambda: it.guests.guest_key(caller, guest_id, KeyRequest()),
        "start, validate_only": lambda: it.guests.start(caller, guest_id, POLICY, validate_only=True),
        "delete, validate_only": lambda: it.guests.delete(caller, guest_id, validate_only=True),
    }
    out = {}
    for name, call in calls.items():
        try:
            answer = call()
            if inspect.isawaitable(answer):
                await answer
        except SevError as error:
            out[name] = error
        else:
            pytest.fail(f"{name} was not refused")
    return out


@pytest.mark.parametrize("role", [Role.VIEWER, Role.LAUNCHER], ids=["viewer", "launcher"])
async def test_somebody_elses_guest_and_no_guest_look_the_same(tmp_path: Path, role: Role) -> None:
    bob = Caller.local(1002, 1002, 1, role)
    async with hosting(tmp_path) as it:
        guest = await it.ready()
        foreign, absent = await refusals(it, bob, guest.guest_id), await refusals(it, bob, ABSENT)
        for name, error in foreign.items():
            assert type(error) is NotFound, name
            ghost = absent[name]
            assert error.message.replace(guest.guest_id, ABSENT) == ghost.message, name
            assert (error.remedy, error.metadata, error.field) == (ghost.remedy, ghost.metadata, ghost.field), name
        assert it.guests.list(bob) == ([], "")
        assert it.guests.get(ALICE, guest.guest_id) == guest


async def test_the_same_id_of_two_owners(tmp_path: Path) -> None:
    """A taken id is not refused to others: the refusal would tell that the guest exists."""
    async with hosting(tmp_path) as it:
        mine = await it.created(ALICE, guest_id="my-guest-1")
        his = await it.created(BOB, guest_id="my-guest-1")
        with pytest.raises(UsageError) as refused:
            await it.created(ALICE, guest_id="my-guest-1")
        assert refused.value.field == "guest_id"
        with pytest.raises(UsageError):
            await it.guests.create(ALICE, request(guest_id="my-guest-1"), validate_only=True)
        assert it.guests.get(ALICE, "my-guest-1") == mine
        assert it.guests.get(BOB, "my-guest-1") == his
        with pytest.raises(UsageError, match=re.escape("several owners")):
            it.guests.get(ROOT, "my-guest-1")
        assert it.guests.get(ROOT, "uid:1002/my-guest-1") == his
        with pytest.raises(NotFound):
            it.guests.get(ALICE, "uid:1002/my-guest-1")
        await it.guests.delete(ROOT, "uid:1001/my-guest-1")
        assert it.guests.get(ROOT, "my-guest-1") == his
        assert it.in_use() == 1


async def test_pages_of_the_list(tmp_path: Path) -> None:
    async with hosting(tmp_path) as it:
        made: list[Guest] = []
        for number in range(5):
            made.append(await it.created(ALICE, label=str(number)))
            await it.created(BOB)
        first, token = it.guests.list(ALICE, 2)
        second, after = it.guests.list(ALICE, 2, token)
        await it.guests.delete(ALICE, made[2].guest_id)
        again, _ = it.guests.list(ALICE, 2, token)
        last, end = it.guests.list(ALICE, 2, after)
        assert [guest.label for guest in (*first, *second, *last)] == ["0", "1", "2", "3", "4"]
        assert end == ""
        assert [guest.label for guest in again] == ["3", "4"]
        everything, none = it.guests.list(ROOT, 0)
        assert (len(everything), none) == (9, "")
        for page_size, wrong in ((-1, ""), (1, "-1"), (1, "0x10"), (1, "g"), (1, "1" * 17), (1, "1\n")):
            with pytest.raises(UsageError):
                it.guests.list(ALICE, page_size, wrong)


async def test_limits_of_one_identity(tmp_path: Path) -> None:
    limits = Limits(guests=3, memory_bytes=3 * (16 << 20) + 3 * FIRMWARE, vcpus_per_guest=4)
    async with hosting(tmp_path, limits=limits) as it:
        guests = [await it.created(ALICE) for _ in range(3)]
        with pytest.raises(LimitReached) as refused:
            await it.created(ALICE)
        assert refused.value.metadata == {"limit": "guests", "value": "3", "in_use": "3"}
        assert refused.value.errno is None
        await it.created(BOB)
        await it.guests.delete(ALICE, guests[0].guest_id)
        with pytest.raises(LimitReached) as refused:
            await it.created(ALICE, memory_bytes=32 << 20)
        assert refused.value.metadata["limit"] == "memory_bytes"
        with pytest.raises(LimitReached) as refused:
            await it.created(ALICE, vcpu_count=5, ap_reset_address=0x80B004)
        assert refused.value.metadata == {"limit": "vcpus_per_guest", "value": "4"}
        await it.created(ALICE, vcpu_count=4, ap_reset_address=0x80B004)
        for _ in range(4):
            await it.created(ROOT)  # the host's own limits are the administrator's
        assert it.guests._ledger.held("uid:1001")[0] == 3


async def test_a_refused_creation_counts_nothing(tmp_path: Path) -> None:
    async with hosting(tmp_path, limits=Limits(guests=1)) as it:
        for _ in range(3):
            with pytest.raises(SevError):
                await it.created(ALICE, vmsa_features=1 << 40, guest_id="my-guest-1")
        assert it.guests._ledger.held("uid:1001") == (0, 0, 0)
        await it.created(ALICE, guest_id="my-guest-1")


async def test_updates_are_limited_in_number(tmp_path: Path) -> None:
    async with hosting(tmp_path, limits=Limits(regions_per_update=2)) as it:
        guest = await it.launching()
        regions = [Region(page * 4096, 4096, PageType.ZERO) for page in range(3)]
        with pytest.raises(UsageError, match="expected 1 to 2"):
            await it.guests.update(ALICE, guest.guest_id, regions)
        await it.guests.update(ALICE, guest.guest_id, regions[:2])
