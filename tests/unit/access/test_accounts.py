"""Accounts: what an identity uses, and beyond what it is refused."""

from __future__ import annotations

import pytest

from sev.errors import LimitReached
from sevd.access.accounts import Accounts, CallLimits, GateLimits
from sevd.access.identity import Caller
from sevd.access.limits import IdentityLimits
from sevd.access.roles import Role


def caller(**limits: int) -> Caller:
    return Caller.local(7, 7, 1, Role.LAUNCHER, limits=IdentityLimits(**limits))


@pytest.mark.parametrize(("who", "most"), [(caller(), 2), (caller(connections=1), 1), (caller(connections=3), 3)])
def test_connections(who: Caller, most: int) -> None:
    account = Accounts().of(who.owner)
    for _ in range(most):
        account.admit_connection(who, GateLimits(100, 2))
    with pytest.raises(LimitReached) as caught:
        account.admit_connection(who, GateLimits(100, 2))
    assert caught.value.metadata == {"limit": "connections_per_identity", "value": str(most)}
    assert (caught.value.retry_after, account.connections) == (1.0, most)


@pytest.mark.parametrize(("who", "most"), [(caller(), 2), (caller(calls=1), 1)])
def test_calls(who: Caller, most: int) -> None:
    account = Accounts().of(who.owner)
    for _ in range(most):
        account.admit_call(who, CallLimits(2))
    with pytest.raises(LimitReached) as caught:
        account.admit_call(who, CallLimits(2))
    assert caught.value.metadata == {"limit": "calls_per_identity", "value": str(most)}


def test_bytes() -> None:
    who = caller(bytes_in_flight=100)
    account = Accounts().of(who.owner)
    account.hold(60, who, CallLimits())
    with pytest.raises(LimitReached) as caught:
        account.hold(41, who, CallLimits())
    assert caught.value.metadata == {"limit": "bytes_in_flight", "value": "100"}
    assert account.held == 60
    account.hold(40, who, CallLimits())


def test_accounts_are_forgotten_when_nothing_is_in_use() -> None:
    accounts = Accounts()
    account = accounts.of("uid:7")
    assert accounts.of("uid:7") is account
    account.connections = 1
    accounts.settle(account)
    assert len(accounts) == 1
    account.connections, account.calls = 0, 1
    accounts.settle(account)
    assert list(accounts) == [account]
    account.calls = 0
    accounts.settle(account)
    assert len(accounts) == 0


def test_what_moves_to_another_identity() -> None:
    accounts = Accounts()
    before, after = accounts.of("uid:7"), accounts.of("unit:a.service")
    before.connections, before.calls, before.held = 1, 2, 30
    accounts.move(1, 2, 30, before, after)
    assert [(one.owner, one.connections, one.calls, one.held) for one in accounts] == [("unit:a.service", 1, 2, 30)]
