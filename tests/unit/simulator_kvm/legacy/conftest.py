"""A Rome host of any kernel era, and an SEV guest on it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from sevd.simulator import Simulator
from sevd.simulator.process import Process
from tests.support.legacy_machine import LegacyMachine
from tests.support.simulated import template


@pytest.fixture
def host(tmp_path: Path, era: str) -> Iterator[Simulator]:
    """Rome: SEV and SEV-ES, without SNP."""
    shutil.copytree(template("rome"), tmp_path, dirs_exist_ok=True)
    simulator = Simulator.open(tmp_path, product="rome", seed=1, kernel_era_name=era)
    yield simulator
    simulator.close()


@pytest.fixture
def guest(process: Process) -> LegacyMachine:
    """An SEV guest, initialised."""
    return LegacyMachine(process)


@pytest.fixture
def started(guest: LegacyMachine) -> LegacyMachine:
    assert guest.start(0).name == "ok"
    return guest
