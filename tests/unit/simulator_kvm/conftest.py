"""A simulated host, and a process on it; nothing may be held when the test is over."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sev.abi import kvm
from sevd.simulator import Simulator, kernel_era
from sevd.simulator.process import Process
from tests.support.caller import Machine
from tests.support.device_fixtures import fd, reader
from tests.support.simulated import simulated_host

__all__ = ["fd", "reader"]


@pytest.fixture
def era() -> str:
    """The kernel of a test's host; a module that is about every kernel has its own."""
    return kernel_era.DEFAULT


@pytest.fixture
def host(tmp_path: Path, era: str) -> Iterator[Simulator]:
    with simulated_host(tmp_path, era=era) as simulator:
        yield simulator


@pytest.fixture
def process(host: Simulator) -> Iterator[Process]:
    """Afterwards the host must be as it was: no ASID and no context may outlive the process."""
    before = host.asids(), host.guest_count()
    made = host.process()
    yield made
    made.exit()
    host.faults = lambda _command: None
    assert (host.asids(), host.guest_count()) == before


@pytest.fixture
def machine(process: Process) -> Machine:
    """A VM of an SNP guest, without vCPUs."""
    return Machine.make(process)


@pytest.fixture
def plain(process: Process) -> Machine:
    """A VM without SEV."""
    return Machine.make(process, kvm.VM_TYPE_DEFAULT)
