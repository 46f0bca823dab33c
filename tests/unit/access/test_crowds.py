"""Users with too many connections are refused without being looked at, until they have room again."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from sev.errors import LimitReached, NotPermitted
from sevd.access.accounts import Accounts, reached
from sevd.access.crowds import Crowds
from sevd.access.refusals import RECORDED, Refusals

ME = os.geteuid()
TOO_MANY = reached("connections_per_identity", 3, "3 connections", "Fewer.")


@pytest.fixture
def client() -> Iterator[socket.socket]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours


@pytest.fixture
def full() -> tuple[Crowds, Accounts]:
    """A user with 3 connections, the next of which was refused, so often that no more is recorded."""
    accounts, refusals = Accounts(), Refusals(lambda *facts: None)
    accounts.of(f"uid:{ME}").connections = 3
    crowds = Crowds(accounts, refusals)
    crowds.note(ME, TOO_MANY)
    for _ in range(RECORDED):
        refusals.record(f"uid:{ME}", LimitReached.reason)
    return crowds, accounts


def test_one_more_is_not_looked_at(full: tuple[Crowds, Accounts], client: socket.socket) -> None:
    assert full[0].full(client, units=False)


def test_until_there_is_room(full: tuple[Crowds, Accounts], client: socket.socket) -> None:
    crowds, accounts = full
    accounts.of(f"uid:{ME}").connections = 2
    assert not crowds.full(client, units=False)
    accounts.of(f"uid:{ME}").connections = 3
    assert not crowds.full(client, units=False)  # not before one was refused again


def test_where_a_user_may_be_several_each_is_looked_at(full: tuple[Crowds, Accounts], client: socket.socket) -> None:
    assert not full[0].full(client, units=True)


def test_other_limits(full: tuple[Crowds, Accounts], client: socket.socket) -> None:
    full[0].clear()
    assert not full[0].full(client, units=False)


def test_what_can_be_recorded_is_looked_at(client: socket.socket) -> None:
    accounts = Accounts()
    accounts.of(f"uid:{ME}").connections = 3
    crowds = Crowds(accounts, Refusals(lambda *facts: None))
    crowds.note(ME, TOO_MANY)
    assert not crowds.full(client, units=False)


@pytest.mark.parametrize("error", [NotPermitted("no role"), LimitReached("in all", metadata={"limit": "connections"})])
def test_other_refusals_make_no_crowd(error: NotPermitted | LimitReached, client: socket.socket) -> None:
    crowds = Crowds(Accounts(), Refusals(lambda *facts: None))
    crowds.note(ME, error)
    assert crowds._most == {}
    assert not crowds.full(client, units=False)
