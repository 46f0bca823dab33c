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

from sev import status
from sevd.simulator import Simulator, kernel_era
from sevd.simulator.firmware_status import FirmwareStatus

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


def refuse(host: Simulator, *commands: str, code: int = status.HWERROR_UNSAFE, after: int = 0) -> None:
    """Makes firmware commands fail, but for the first `after` of them."""
    calls = 0

    def hook(name: str) -> None:
        nonlocal calls
        if name in commands:
            calls += 1
            if calls > after:
                raise FirmwareStatus(code)

    host.faults = hook
