"""Fixtures of the tests in a booted system: one system for all, the service in it new for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.booted import Booted
from tests.support.booted_service import prepared

USERS = "u member -\nu other -\nm member sev\n"


@pytest.fixture(scope="session")
def booted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Booted]:
    """A system with the service installed as docs/install.md says, and two users."""
    made = Booted(tmp_path_factory.mktemp("systemd"))
    try:
        made.write("/etc/sysusers.d/test.conf", USERS)
        made.run("sevd", "--install-units", "--plain-user")
        made.run("systemd-sysusers")
        made.run("systemd-tmpfiles", "--create", "/etc/tmpfiles.d/sevd.conf")
        yield made
    finally:
        made.close()


@pytest.fixture(params=["root", "plain-user"])
def system(booted: Booted, request: pytest.FixtureRequest) -> Iterator[Booted]:
    """The system with the service new and stopped, as root or as a user of its own; its sockets wait."""
    yield from prepared(booted, plain_user=request.param == "plain-user")


@pytest.fixture
def as_root(booted: Booted) -> Iterator[Booted]:
    """The same, as root."""
    yield from prepared(booted, plain_user=False)
