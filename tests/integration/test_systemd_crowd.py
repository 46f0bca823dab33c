"""Twenty clients that call without pause, while the service is restarted and killed under them: no call fails."""

from __future__ import annotations

import time

import pytest

from tests.support.booted import Booted
from tests.support.booted_service import PYTHON, UNITS, active, crash, main_pid, prepared
from tests.support.crowd import crowd

PATIENCE_SECONDS = 5.0
"""What a wait may be at most on whatever machine this runs; the figures are printed."""

CLIENTS = (("sync", PYTHON), ("aio", PYTHON), ("sync", PYTHON), ("aio", PYTHON))


@pytest.mark.parametrize("rounds", [1, pytest.param(25, marks=pytest.mark.long)])
def test_twenty_clients_lose_no_call_through_restarts_and_crashes(booted: Booted, rounds: int) -> None:
    for system in prepared(booted, plain_user=False):
        with crowd(system, *CLIENTS) as clients:
            time.sleep(0.5)
            for _ in range(rounds):
                before = main_pid(system)
                with clients.during("restart"):
                    system.run("systemctl", "restart", "sevd.service")
                assert main_pid(system) != before
                with clients.during("kill -9"):
                    crash(system)
            clients.end()
        print(clients.report())
        assert clients.failed == []
        assert clients.calls > 50 * rounds
        assert clients.longest("restart") < PATIENCE_SECONDS
        assert clients.longest("kill -9") < PATIENCE_SECONDS
        assert active(system)
        assert all(system.show(unit, "ActiveState") == "active" for unit in UNITS)
