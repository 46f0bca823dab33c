"""Messages that never become whole: suspected by their bytes, proved by the memory of the process."""

from __future__ import annotations

import pytest

from sevd.access.accounts import Account
from sevd.access.fullness import resident, too_full

MOST = 1000


@pytest.mark.parametrize(
    ("grown", "full"),
    [pytest.param(0, False, id="nothing waits"), pytest.param(400, True, id="it waits")],
)
def test_the_growth_of_the_process_decides(grown: int, full: bool) -> None:
    account = Account("uid:1")
    account.received = 499
    assert not too_full(account, MOST, lambda: pytest.fail("nothing is to be measured yet"))
    account.received = 600
    assert not too_full(account, MOST, lambda: 5000)
    account.received = 999
    assert not too_full(account, MOST, lambda: pytest.fail("nothing is to be measured yet"))
    account.received = 1100
    assert too_full(account, MOST, lambda: 5000 + grown) is full
    assert account.received == account.delivered  # and counting begins anew
    assert not too_full(account, MOST, lambda: pytest.fail("nothing waits"))


def test_what_is_delivered_does_not_wait() -> None:
    account = Account("uid:1")
    for _ in range(100):
        account.received += 300
        assert not too_full(account, MOST, lambda: pytest.fail("nothing waits"))
        account.delivered += 300


def test_who_has_been_watched_and_delivers() -> None:
    account = Account("uid:1", received=600)
    assert not too_full(account, MOST, lambda: 5000)
    account.delivered = 500
    assert not too_full(account, MOST, lambda: 5000)
    assert account.grown_from == 0


def test_this_process_has_memory() -> None:
    assert resident() > 1 << 20
