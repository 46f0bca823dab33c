"""Fixtures of the tests that run real processes: simulated daemons to share, and a host's state to start others from."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.booted_fixtures import as_root, booted, system
from tests.support.daemon import daemon, daemons
from tests.support.running import copy_state, make_template

__all__ = ["as_root", "booted", "daemon", "daemons", "host_folder", "simulated_state", "system"]


@pytest.fixture(scope="session")
def simulated_state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the state of a simulated Genoa host that ran once."""
    return make_template(tmp_path_factory.mktemp("template"))


@pytest.fixture
def host_folder(simulated_state: Path, tmp_path: Path) -> Path:
    """A folder with a copy of that state, for one daemon."""
    copy_state(simulated_state, tmp_path)
    return tmp_path
