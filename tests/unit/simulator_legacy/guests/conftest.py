"""The firmware of one chip, as it was before after each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sevd.simulator.firmware import Firmware
from tests.support.simulated import simulated_host


@pytest.fixture(scope="module")
def chip(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Firmware]:
    with simulated_host(tmp_path_factory.mktemp("chip")) as host:
        yield host.firmware


@pytest.fixture
def firmware(chip: Firmware) -> Iterator[Firmware]:
    platform = chip._platform
    before = platform.version, platform.random, platform.legacy._identity
    yield chip
    platform.version, platform.random, platform.legacy._identity = before
    chip.shutdown()
    chip.init()
    chip.df_flush()
