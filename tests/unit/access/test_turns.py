"""Nobody waits alone; with others, whoever costs much waits for his turn."""

from __future__ import annotations

import asyncio

import pytest

from sevd.access import turns as module
from sevd.access.accounts import Account
from sevd.access.turns import BURST_SECONDS, LONE_BURST_SECONDS, OTHERS_SECONDS, SHARE, Turns
from tests.support.clock import Clock


def may(turns: Turns, account: Account) -> bool:
    """Whether it may begin something; what it has begun has arrived."""
    account.arrived = account.begun
    return min(turns.allowance(account)) > 0


def busy(turns: Turns, clock: Clock, accounts: list[Account], seconds: float, cost: float) -> dict[str, float]:
    """What each gets that always wants more."""
    got = dict.fromkeys((one.owner for one in accounts), 0.0)
    wake = {one.owner: clock.now for one in accounts}
    until = clock.now + seconds
    while clock.now < until:
        for account in accounts:
            if wake[account.owner] <= clock.now:
                if may(turns, account):
                    turns.charge(account, cost, 1)
                    got[account.owner] += cost
                else:
                    wake[account.owner] = clock.now + turns.wait(account)
        clock.now += 1e-4
    return got


def test_alone_nobody_waits() -> None:
    clock = Clock()
    turns, one = Turns(clock, lambda: 0.0), Account("uid:1")
    for _ in range(1000):
        one.arrived = one.begun
        assert turns.allowance(one)[0] > BURST_SECONDS
        turns.charge(one, 0.01, 1)


def test_debt_of_one_that_was_alone_is_bounded() -> None:
    clock = Clock()
    turns, one, other = Turns(clock, lambda: 0.0), Account("uid:1"), Account("uid:2")
    for _ in range(1000):
        turns.allowance(one)
        turns.charge(one, 1.0, 1)
    turns.allowance(other)
    assert not may(turns, one)
    assert turns.wait(one) <= LONE_BURST_SECONDS / SHARE + 0.01


def test_with_others_debt_has_to_be_paid() -> None:
    clock = Clock()
    turns, one, other = Turns(clock, lambda: 0.0), Account("uid:1"), Account("uid:2")
    turns.allowance(other)
    assert turns.allowance(one)[0] == pytest.approx(BURST_SECONDS)
    turns.charge(one, 3 * BURST_SECONDS, 1)
    assert not may(turns, one)
    assert may(turns, other)
    clock.now += turns.wait(one)
    turns.allowance(other)
    assert may(turns, one)


def test_one_that_wants_everything_gets_its_share() -> None:
    clock = Clock()
    turns, greedy, modest = Turns(clock, lambda: 0.0), Account("uid:1"), Account("uid:2")
    turns.allowance(modest)
    got = 0.0
    for _ in range(10):
        got += busy(turns, clock, [greedy], 0.1, 0.4e-3)["uid:1"]
        assert may(turns, modest)
    assert 0.5 * SHARE < got < 1.2 * SHARE


def test_two_that_want_everything_get_the_same() -> None:
    clock = Clock()
    turns, one, two = Turns(clock, lambda: 0.0), Account("uid:1"), Account("uid:2")
    busy(turns, clock, [one, two], 0.5, 0.4e-3)
    got = busy(turns, clock, [one, two], 2.0, 0.4e-3)
    assert got["uid:1"] == pytest.approx(got["uid:2"], rel=0.2)
    assert sum(got.values()) / 2 < 1.3 * SHARE


def test_others_are_forgotten() -> None:
    clock = Clock()
    turns, one, other = Turns(clock, lambda: 0.0), Account("uid:1"), Account("uid:2")
    turns.allowance(other)
    turns.allowance(one)
    turns.charge(one, 0.05, 1)
    assert not may(turns, one)
    clock.now += OTHERS_SECONDS + 0.1
    turns.charge(one, 0.05, 1)
    assert may(turns, one)


@pytest.mark.parametrize(("each", "expected"), [(1e-3, 1e-3), (1.0, module._MOST), (0.0, module._LEAST)])
def test_what_a_call_costs_is_measured(each: float, expected: float) -> None:
    used = [0.0]
    turns, one = Turns(Clock(), lambda: used[0]), Account("uid:1")
    for _ in range(20 * module.CALLS_MEASURED):
        used[0] += each
        turns.charge(one, 0.0, 1)
    assert turns.call_seconds == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("alone", [True, False])
def test_few_calls_are_on_their_way(alone: bool) -> None:
    clock = Clock()
    turns, one = Turns(clock, lambda: 0.0), Account("uid:1")
    if not alone:
        turns.allowance(Account("uid:2"))
    most = module.LONE_CALLS if alone else module.CALLS
    assert turns.allowance(one)[1] == most
    turns.charge(one, 0.0, most)
    assert turns.allowance(one)[1] == 0
    assert turns.wait(one) == module.PENDING_SECONDS
    one.arrived += 2
    assert turns.allowance(one)[1] == 2
    clock.now += module.LOST_SECONDS / 2
    assert turns.allowance(one)[1] == 2
    clock.now += module.LOST_SECONDS  # the server has refused the others by itself
    assert turns.allowance(one)[1] == most
    one.arrived += 10  # or has not
    assert turns.allowance(one)[1] == most


def test_an_identity_that_comes_again_is_no_other_one() -> None:
    clock = Clock()
    turns = Turns(clock, lambda: 0.0)
    for _ in range(3):  # its account was forgotten with its last connection
        assert turns.allowance(Account("uid:1")) == (LONE_BURST_SECONDS, module.LONE_CALLS)
        clock.now += 0.1


class Connection:
    """One that waits, costs something when its turn comes, and says so."""

    def __init__(self, name: str, turns: Turns, account: Account, went: list[str], last: asyncio.Event) -> None:
        self.waiting = True
        self._do = turns, account, went, name
        self._last = last

    def turn(self) -> None:
        turns, account, went, name = self._do
        assert min(turns.allowance(account)) > 0
        self.waiting = False
        went.append(name)
        turns.charge(account, BURST_SECONDS * 2, 0)
        if name == "d":
            self._last.set()


async def test_those_who_wait_go_in_their_order_and_those_who_left_do_not() -> None:
    turns, one, went = Turns(), Account("uid:1"), list[str]()
    turns.allowance(Account("uid:2"))
    turns.allowance(one)
    turns.charge(one, BURST_SECONDS * 2, 0)
    last = asyncio.Event()
    line = [Connection(name, turns, one, went, last) for name in "abcd"]
    for each in line:
        turns.line_up(one, each)
    line[1].waiting = False  # hung up
    assert went == []
    async with asyncio.timeout(10):
        await last.wait()
    await asyncio.sleep(0)
    assert went == ["a", "c", "d"]
    assert not one.awaited
