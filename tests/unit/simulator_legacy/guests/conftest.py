"""The firmware of one chip, as it was before after each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sevd.simulator.firmware import Firmware


@pytest.fixture
def firmware(chip: Firmware) -> Iterator[Firmware]:
    platform = chip._platform
    before = platform.version, platform.random, platform.legacy._identity
    yield chip
    platform.version, platform.random, platform.legacy._identity = before
    chip.shutdown()
    chip.init()
    chip.df_flush()
