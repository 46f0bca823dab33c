"""A Rome host of any kernel era, and an SEV guest on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sevd.simulator import Simulator
from sevd.simulator.process import Process
from tests.support.legacy_machine import LegacyMachine
from tests.support.simulated import simulated_host


@pytest.fixture
def host(tmp_path: Path, era: str) -> Iterator[Simulator]:
    """Rome: SEV and SEV-ES, without SNP."""
    with simulated_host(tmp_path, "rome", era=era) as simulator:
        yield simulator


@pytest.fixture
def guest(process: Process) -> LegacyMachine:
    """An SEV guest, initialised."""
    return LegacyMachine(process)


@pytest.fixture
def started(guest: LegacyMachine) -> LegacyMachine:
    assert guest.start(0).name == "ok"
    return guest
