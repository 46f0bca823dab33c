"""A simulated host whose legacy platform is looked at."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from sevd.simulator import Simulator, kernel_era
from sevd.simulator.firmware import Firmware
from sevd.simulator.process import Process
from tests.support.device_fixtures import fd, reader
from tests.support.legacy import Boot
from tests.support.simulated import simulated_host, template

__all__ = ["fd", "reader"]


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    """The state directory of this test's hosts."""
    folder = tmp_path / "state"
    shutil.copytree(template("genoa"), folder)
    return folder


@pytest.fixture
def boot(state_dir: Path) -> Iterator[Boot]:
    """Powers the host on; a second time off first."""
    with ExitStack() as stack:

        def power_on(era: str = "C", *, init_ex_path: Path | None = None) -> Simulator:
            stack.close()
            host = Simulator.open(state_dir, product="genoa", seed=1, kernel_era_name=era, init_ex_path=init_ex_path)
            stack.callback(host.close)
            return host

        yield power_on


@pytest.fixture
def era() -> str:
    """The kernel of a test's host; a module that is about every kernel has its own."""
    return kernel_era.DEFAULT


@pytest.fixture
def host(boot: Boot, era: str) -> Simulator:
    """A host that is up."""
    return boot(era)


@pytest.fixture
def firmware(host: Simulator) -> Firmware:
    """The firmware below it, legacy SEV in state INIT."""
    return host.firmware


@pytest.fixture(scope="module")
def chip(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Firmware]:
    """The firmware of one chip for all tests of a module: each leaves it as it was."""
    with simulated_host(tmp_path_factory.mktemp("chip")) as host:
        yield host.firmware


@pytest.fixture
def process(host: Simulator) -> Iterator[Process]:
    made = host.process()
    yield made
    made.exit()


@pytest.fixture
def calls(host: Simulator) -> Callable[[], list[str]]:
    """What the firmware was asked since the last look."""
    seen: list[str] = []
    host.faults = seen.append

    def look() -> list[str]:
        out = list(seen)
        seen.clear()
        return out

    return look
