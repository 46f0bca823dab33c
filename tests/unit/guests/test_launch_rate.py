"""Launches per minute, and what one identity's own limits change."""

from __future__ import annotations

import pytest

from sev.errors import LimitReached
from sevd.access.identity import Caller
from sevd.access.limits import IdentityLimits
from sevd.access.roles import Role
from sevd.guests import launch_rate
from sevd.guests.admission import Ledger
from sevd.guests.launch_rate import LaunchRate
from sevd.guests.limits import Limits
from sevd.guests.memory import MAX_WRITE, MemoryLoader, MemoryMap
from sevd.guests.model import CreateGuest, GuestType
from tests.support.clock import Clock


def test_a_minute_s_worth_at_once_and_then_one_at_a_time() -> None:
    clock = Clock()
    rate = LaunchRate(clock)
    for _ in range(3):
        rate.take("uid:1", 3)
    with pytest.raises(LimitReached) as caught:
        rate.take("uid:1", 3)
    assert caught.value.retry_after == pytest.approx(20)
    assert caught.value.metadata == {"limit": "launches_per_minute", "value": "3"}
    rate.take("uid:2", 3)  # others are not meant
    clock.now += 19.9
    with pytest.raises(LimitReached) as caught:
        rate.take("uid:1", 3)
    assert caught.value.retry_after == pytest.approx(0.1)
    clock.now += caught.value.retry_after or 0
    rate.take("uid:1", 3)


def test_the_time_that_is_told_is_enough() -> None:
    clock = Clock()
    rate = LaunchRate(clock)
    for _ in range(7):
        rate.take("uid:1", 7)
    for _ in range(50):
        with pytest.raises(LimitReached) as caught:
            rate.take("uid:1", 7)
        clock.now += (caught.value.retry_after or 0) + 1e-6
        rate.take("uid:1", 7)


def test_an_upload_without_an_end() -> None:
    size = 1 << 20
    loader = MemoryLoader("guest", MemoryMap(size, 0), lambda gpa, size: memoryview(bytearray(size)))
    most = 2 * size + MAX_WRITE
    for _ in range(most // (1 << 16)):
        loader.take(1 << 16)
        loader.write(0, bytes(1 << 16))
    with pytest.raises(LimitReached) as caught:
        loader.take(0)
    assert caught.value.metadata == {"limit": "upload_bytes", "value": str(most)}


def test_none_at_all() -> None:
    with pytest.raises(LimitReached, match="may create no guests"):
        LaunchRate().take("uid:1", 0)


def test_a_bucket_never_holds_more_than_a_minute_s_worth() -> None:
    clock = Clock()
    rate = LaunchRate(clock)
    rate.take("uid:1", 2)
    clock.now += 3600
    rate.take("uid:1", 2)
    rate.take("uid:1", 2)
    with pytest.raises(LimitReached):
        rate.take("uid:1", 2)


def test_full_buckets_are_dropped() -> None:
    clock = Clock()
    rate = LaunchRate(clock)
    for number in range(launch_rate.BUCKETS + 1):
        clock.now += 0.1
        rate.take(f"uid:{number}", 60)
    assert len(rate._buckets) < launch_rate.BUCKETS


REQUEST = CreateGuest(memory_bytes=1 << 20, firmware_bytes=0, vcpu_count=1, cpuid_signature=1, type=GuestType.SNP)


def caller(role: Role, **limits: int) -> Caller:
    return Caller.local(1, 1, 1, role, limits=IdentityLimits(**limits))


@pytest.mark.parametrize(
    ("who", "limit"),
    [
        pytest.param(caller(Role.LAUNCHER), "", id="as everybody"),
        pytest.param(caller(Role.LAUNCHER, guests=1), "guests", id="fewer guests"),
        pytest.param(caller(Role.LAUNCHER, guest_memory=1 << 20), "memory_bytes", id="less memory"),
        pytest.param(caller(Role.ADMIN), "", id="an administrator"),
        pytest.param(caller(Role.ADMIN, guests=1), "guests", id="an administrator with a limit"),
        pytest.param(caller(Role.ADMIN, guests=0), "guests", id="an administrator without guests"),
    ],
)
def test_limits_of_its_own_go_before(who: Caller, limit: str) -> None:
    ledger = Ledger(Limits(guests=2, memory_bytes=2 << 20))
    found = ""
    try:
        for _ in range(2):
            ledger.check(who, REQUEST)
            ledger.take(who.owner, REQUEST)
    except LimitReached as error:
        found = error.metadata["limit"]
    assert found == limit


def test_more_than_everybody() -> None:
    ledger = Ledger(Limits(guests=1, watches=0, launches_per_minute=1))
    who = caller(Role.LAUNCHER, guests=2, watches=1, launches_per_minute=2)
    for _ in range(2):
        ledger.check(who, REQUEST)
        ledger.launch(who)
        ledger.take(who.owner, REQUEST)
    ledger.take_watch(who)
    with pytest.raises(LimitReached):
        ledger.check(who, REQUEST)
    with pytest.raises(LimitReached):
        ledger.launch(who)
    with pytest.raises(LimitReached):
        ledger.take_watch(who)


def test_limits_can_be_replaced() -> None:
    ledger = Ledger(Limits(guests=1))
    who = caller(Role.LAUNCHER)
    ledger.take(who.owner, REQUEST)
    with pytest.raises(LimitReached):
        ledger.check(who, REQUEST)
    ledger.limits = Limits(guests=2)
    ledger.check(who, REQUEST)


def test_administrators_launch_as_often_as_they_like() -> None:
    ledger = Ledger(Limits(launches_per_minute=1))
    for _ in range(5):
        ledger.launch(caller(Role.ADMIN))
