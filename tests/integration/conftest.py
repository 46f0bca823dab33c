"""A simulated host's state, made once for all tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.running import copy_state, make_template


@pytest.fixture(scope="session")
def simulated_state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the state of a simulated Genoa host that ran once."""
    return make_template(tmp_path_factory.mktemp("template"))


@pytest.fixture
def host_folder(simulated_state: Path, tmp_path: Path) -> Path:
    """A folder with a copy of that state, for one daemon."""
    copy_state(simulated_state, tmp_path)
    return tmp_path
