"""Simulated chips for tests: made once per run, copied for each test that wants one of its own."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sev import products
from sevd.simulator import ca, versions
from sevd.simulator.firmware import Firmware
from sevd.simulator.versions import Version
from tests.support.simulated_firmware import SEED, Open


@pytest.fixture(scope="session")
def chips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One directory with a chip of each line, on its lowest known firmware so that any version can be run on it.

    Its authority has smaller RSA keys than real ones, which takes a tenth of the time; test_authority makes full ones.
    """
    directory = tmp_path_factory.mktemp("chips")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ca, "KEY_BITS", 2048)
        for product in (products.MILAN, products.GENOA, products.TURIN):
            lowest = versions.RELEASES[product.name][0].version
            Firmware.open(directory, product=product, version=lowest, seed=SEED).ca.asvk_der()
    return directory


@pytest.fixture
def open_firmware(chips: Path, tmp_path: Path) -> Open:
    state = tmp_path / "state"
    shutil.copytree(chips, state)

    def opened(
        product: str = "genoa",
        version: Version | None = None,
        *,
        seed: int | None = SEED,
        clock: Callable[[], float] | None = None,
    ) -> Firmware:
        line = products.by_name(product)
        firmware = Firmware.open(state, product=line, version=version, seed=seed, clock=clock or time.time)
        if version is None and firmware.version == versions.RELEASES[product][0].version:
            firmware = Firmware.open(
                state, product=line, version=versions.default(line), seed=seed, clock=clock or time.time
            )
            firmware.snp_commit()
        return firmware

    return opened


@pytest.fixture
def firmware(open_firmware: Open) -> Firmware:
    """Genoa on its newest firmware, committed, SNP initialised."""
    opened = open_firmware()
    opened.snp_init()
    opened.snp_df_flush()
    return opened


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Where this test's chips are stored."""
    return tmp_path / "state"
