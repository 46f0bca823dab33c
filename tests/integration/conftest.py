"""Fixtures of the tests that run real processes: simulated daemons to share, and a host's state to start others from."""

from __future__ import annotations

from pathlib import Path

import pytest

from sev.measurement.sample import sample_firmware
from tests.support.booted_fixtures import as_root, booted, system
from tests.support.daemon import daemon, daemons
from tests.support.running import copy_state, make_template
from tests.support.two_hosts import daemons_two, hosts, services

__all__ = [
    "as_root",
    "booted",
    "daemon",
    "daemons",
    "daemons_two",
    "firmware",
    "host_folder",
    "hosts",
    "services",
    "simulated_state",
    "system",
]


@pytest.fixture(scope="session")
def simulated_state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the state of a simulated Genoa host that ran once."""
    return make_template(tmp_path_factory.mktemp("template"))


@pytest.fixture
def host_folder(simulated_state: Path, tmp_path: Path) -> Path:
    """A folder with a copy of that state, for one daemon."""
    copy_state(simulated_state, tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def firmware(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image that can be launched, not to be changed."""
    path = tmp_path_factory.mktemp("firmware") / "sample.fd"
    path.write_bytes(sample_firmware())
    return path
