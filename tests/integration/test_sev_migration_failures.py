"""Whatever call of a migration fails, before it acted or after it: the guest is whole at one of the two hosts alone."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

from sev.certs.sev_roots import SevRoots
from sev.client import Host
from sev.errors import Unreachable, WrongState
from sev.migration import migrate
from tests.support.two_hosts import Between, launched, roots

MEMORY = 2 << 20
CONTENT = b"".join(bytes([page & 0xFF]) * 4096 for page in range(MEMORY // 4096))


@pytest.fixture
def guest(hosts: tuple[Host, Host]) -> str:
    return launched(hosts[0], CONTENT)


class Breaking(Between):
    """A host to which the line breaks once, at the n-th call of a method, before or after the daemon acted.

    `gone` breaks it for good.
    """

    def __init__(self, host: Host, method: str, *, number: int = 1, after: bool = False, gone: bool = False) -> None:
        super().__init__(host)
        self._method = method
        self._left = number
        self._after = after
        self._gone = gone

    def hand_on(self, call: Any) -> Generator[Any, Any, Any]:
        self._left -= call.method == f"GuestService/{self._method}" or self._left <= 0
        broken = self._left == 0 or (self._gone and self._left < 0)
        if broken and not self._after:
            raise Unreachable("the line broke")
        answer = yield call
        if broken:
            raise Unreachable("the line broke")
        return answer


def at(host: Host, guest: str) -> bool:
    """It is there, whole."""
    found = [one for one in host.guests() if one.guest_id == guest]
    if found:
        assert found[0].state in ("ready", "paused")
        assert host.read_guest_memory(guest, 0, MEMORY) == CONTENT
    return bool(found)


SOURCE, TARGET = 0, 1
CALLS = [
    (SOURCE, "StartSendingGuest", 1),
    (TARGET, "CreateGuest", 1),
    (TARGET, "StartReceivingGuest", 1),
    (SOURCE, "SendGuestPages", 1),
    (SOURCE, "SendGuestPages", 2),
    (TARGET, "ReceiveGuestPages", 1),
    (TARGET, "ReceiveGuestPages", 2),
    (TARGET, "FinishReceivingGuest", 1),
    (SOURCE, "FinishSendingGuest", 1),
]


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(("side", "method", "number"), CALLS)
def test_one_call_fails(hosts: tuple[Host, Host], guest: str, side: int, method: str, number: int, after: bool) -> None:
    pair: list[Any] = list(hosts)
    pair[side] = Breaking(hosts[side], method, number=number, after=after)
    trusted = roots(hosts[1])
    if (method, after) == ("FinishSendingGuest", True):
        # It is away all the same, and that is found out.
        assert migrate(pair[0], pair[1], guest, roots=trusted).state == "ready"
        assert (at(hosts[0], guest), at(hosts[1], guest)) == (False, True)
        return
    with pytest.raises(Unreachable, match="the line broke"):
        migrate(pair[0], pair[1], guest, roots=trusted)
    if (method, after) == ("CreateGuest", True):
        # Nobody was told that it was made, and it may have been somebody else's: it is deleted by hand.
        assert hosts[1].guest(guest).state == "created"
        hosts[1].delete_guest(guest)
    assert (at(hosts[0], guest), at(hosts[1], guest)) == (True, False)
    # And it goes yet.
    assert migrate(*hosts, guest, roots=trusted).state == "ready"
    assert (at(hosts[0], guest), at(hosts[1], guest)) == (False, True)


def test_a_source_that_is_not_heard_of_again(hosts: tuple[Host, Host], guest: str) -> None:
    """The guest is at the target; what may be left at the source does not run by itself."""
    source: Any = Breaking(hosts[0], "FinishSendingGuest", gone=True)
    with pytest.raises(Unreachable) as error:
        migrate(source, hosts[1], guest, roots=roots(hosts[1]))
    assert "is ready at the target" in error.value.remedy
    assert at(hosts[1], guest)
    assert hosts[0].guest(guest).state == "sending"


def test_one_that_somebody_else_sends_is_left_alone(hosts: tuple[Host, Host], guest: str) -> None:
    theirs = hosts[1].export_platform()
    hosts[0].start_sending(
        guest, pdh=theirs.pdh, chain=theirs.pek + theirs.oca + theirs.signed_cek, authorities=theirs.authorities
    )
    with pytest.raises(WrongState):
        migrate(*hosts, guest, roots=SevRoots.of(theirs.authorities))
    assert hosts[0].guest(guest).state == "sending"
