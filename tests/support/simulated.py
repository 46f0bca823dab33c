"""Simulated hosts for tests: the slow part, a chip's keys, is made once for a run and copied."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest

from sevd.simulator import Simulator, kernel_era

EVERY_ERA = pytest.mark.parametrize("era", ["A", "B", "C"])
"""Runs a test on a host of each kernel generation; B2 differs from B in one command of /dev/sev only."""


@cache
def template(product: str) -> Path:
    """A state directory of this product, with keys. Not to be changed; it goes with the process."""
    folder = Path(tempfile.mkdtemp(prefix=f"sevd-test-{product}-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    Simulator.open(folder, product=product, seed=1).close()
    return folder


@contextmanager
def simulated_host(
    directory: Path, product: str = "genoa", version: str | None = None, *, era: str = kernel_era.DEFAULT
) -> Iterator[Simulator]:
    """A host of its own in `directory`."""
    shutil.copytree(template(product), directory, dirs_exist_ok=True)
    simulator = Simulator.open(directory, product=product, firmware_version=version, seed=1, kernel_era_name=era)
    try:
        yield simulator
    finally:
        simulator.close()
