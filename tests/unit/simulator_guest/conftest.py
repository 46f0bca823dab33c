"""A simulated host with a guest that runs, and the guest's driver."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sevd.simulator import Simulator
from sevd.simulator.guest_device import SevGuestDevice, certificate_table
from sevd.simulator.guest_ref import GuestRef
from tests.support.guest_program import GuestProgram, running_guest
from tests.support.simulated import simulated_host
from tests.support.tsm_tree import Tree


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
def device(guest: GuestRef, table: bytes) -> SevGuestDevice:
    return SevGuestDevice(guest, lambda: table)


@pytest.fixture
def program(device: SevGuestDevice) -> GuestProgram:
    return GuestProgram(device)


@pytest.fixture
def tree(device: SevGuestDevice) -> Tree:
    return Tree(device)


@pytest.fixture
def under_svsm(guest: GuestRef, table: bytes) -> Tree:
    return Tree(SevGuestDevice(guest, lambda: table, svsm=True))
