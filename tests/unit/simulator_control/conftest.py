"""A simulated host with its control socket; a plain file stands for the served `sev`. Nothing may be held afterwards."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sevd.simulator import Simulator
from sevd.simulator.control import ControlServer
from sevd.simulator.faults import CLEAR, Fault
from sevd.simulator.overlay import OverlayKernel
from sevd.simulator.process import Process
from tests.support.control import Served
from tests.support.simulated import simulated_host


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    folder = tmp_path / "dev"
    folder.mkdir()
    (folder / "sev").touch()
    found = os.stat(folder / "sev")
    with simulated_host(tmp_path / "state") as simulator:
        server = ControlServer(simulator, folder / "control.sock", (found.st_dev, found.st_ino))
        server.start()
        it = Served(simulator, server, folder)
        try:
            yield it
        finally:
            server.close()
            assert server.join(10)
        assert it.in_use() == (0, 0)
        assert not (folder / "control.sock").exists()


@pytest.fixture
def kernel(served: Served) -> Iterator[OverlayKernel]:
    """A process on the host."""
    made = served.kernel()
    yield made
    made.exit()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Simulator]:
    with simulated_host(tmp_path) as simulator:
        yield simulator


@pytest.fixture
def process(host: Simulator) -> Iterator[Process]:
    """Afterwards no ASID and no context may be left."""
    made = host.process()
    yield made
    made.exit()
    host.inject(Fault("", CLEAR))
    assert (host.asids()["sev_es"][1], host.guest_count()) == (0, 0)
