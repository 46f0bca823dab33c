"""A simulated host to launch on; it must be as it was when a test is over."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sevd.simulator import Simulator
from sevd.simulator.process import Process
from tests.support.simulated import simulated_host


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Simulator]:
    with simulated_host(tmp_path) as simulator:
        yield simulator


@pytest.fixture
def process(host: Simulator) -> Iterator[Process]:
    before = host.asids(), host.guest_count()
    made = host.process()
    yield made
    made.exit()
    host.faults = lambda _command: None
    assert (host.asids(), host.guest_count()) == before
