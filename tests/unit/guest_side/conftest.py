"""A simulated host with a guest that runs; the library's two ways to its firmware, inside that guest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sev.guest.device import PATH, SevGuestDevice
from sev.guest.patience import Patience
from sev.guest.tsm import ConfigfsTsm
from sevd.simulator import Simulator
from sevd.simulator.guest_device import SevGuestDevice as Driver
from sevd.simulator.guest_device import certificate_table
from sevd.simulator.guest_ref import GuestRef
from sevd.simulator.process import Process
from sevd.simulator.tsm_nodes import ReportFolder
from tests.support.guest_program import running_guest
from tests.support.node_files import NodeFiles
from tests.support.simulated import simulated_host


class FakeTime:
    """A clock that only moves when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pauses: list[float] = []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


@pytest.fixture
def time() -> FakeTime:
    return FakeTime()


@pytest.fixture
def patience(time: FakeTime) -> Patience:
    """Ten seconds of patience that take no time."""
    return Patience(10, clock=time.clock, sleep=time.sleep)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Simulator]:
    with simulated_host(tmp_path / "host") as simulator:
        yield simulator


@pytest.fixture
def guest(host: Simulator) -> Iterator[GuestRef]:
    with running_guest(host) as ref:
        yield ref


@pytest.fixture
def table(host: Simulator) -> bytes:
    """The certificate table that the host gives its guests."""
    return certificate_table(host.endorsements())


@pytest.fixture
def driver(guest: GuestRef, table: bytes) -> Driver:
    return Driver(guest, lambda: table)


@pytest.fixture
def open_device(patience: Patience) -> Callable[[Driver], SevGuestDevice]:
    """Opens a guest's device in a process of its own."""

    def opened(driver: Driver) -> SevGuestDevice:
        return SevGuestDevice(kernel=Process({PATH: driver.open}), patience=patience)

    return opened


@pytest.fixture
def device(open_device: Callable[[Driver], SevGuestDevice], driver: Driver) -> Iterator[SevGuestDevice]:
    with open_device(driver) as platform:
        yield platform


@pytest.fixture
def files(driver: Driver) -> NodeFiles:
    return NodeFiles(ReportFolder(driver))


@pytest.fixture
def tsm(files: NodeFiles, patience: Patience) -> ConfigfsTsm:
    return ConfigfsTsm("report", files=files, patience=patience)
