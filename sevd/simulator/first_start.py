"""First start of a simulated chip: made beside its place, moved there when it is complete."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path

from sev.products import Product
from sevd import durable
from sevd.simulator.ca import CertificateAuthority, Progress
from sevd.simulator.chip import Chip
from sevd.simulator.entropy import Entropy
from sevd.simulator.firmware_platform import Platform
from sevd.simulator.versions import Version


def make(
    home: Path,
    product: Product,
    version: Version,
    entropy: Entropy,
    *,
    progress: Progress | None,
    clock: Callable[[], float],
) -> None:
    """Makes a chip in a directory of its own and gives it its name when it is complete."""
    import shutil  # only a first start needs it

    durable.make_directories(home.parent, 0o700)
    prefix = f".{home.name}.new-"
    for leftover in home.parent.glob(f"{prefix}*"):
        shutil.rmtree(leftover)  # an interrupted first start: never had its name, so nothing was ever made with it
    growing = home.with_name(f"{prefix}{secrets.token_hex(4)}")
    durable.disk.make_directory(growing, 0o700)
    try:
        chip = Chip.make(product, entropy)
        chip.save(growing)
        CertificateAuthority.make(product, chip, growing, progress, clock)
        Platform.store_new(product, growing, version)
        durable.disk.rename(growing, home)
    except BaseException:
        shutil.rmtree(growing, ignore_errors=True)
        raise
    durable.sync_directory(home.parent)
