"""Two simulated chips of one line: different ones, whose certificates go up to the same ARK."""

from __future__ import annotations

import shutil
from pathlib import Path

from sevd.simulator import Simulator, store
from tests.support.simulated import template


def sibling(directory: Path, product: str) -> None:
    """Makes the state of a host in an empty directory: the authority is that of `template`, the chip another one."""
    shutil.copytree(template(product), directory, dirs_exist_ok=True)
    other = directory / "other"
    Simulator.open(other, product=product, seed=77).close()
    home = directory / product
    for name in ("chip.json", "platform.json"):
        (other / product / name).replace(home / name)
    shutil.rmtree(other)
    listed = store.read_document(home / "authority.json")
    files, leaves = listed["files"], listed["leaves"]
    assert isinstance(files, dict)
    assert isinstance(leaves, list)
    for name in (*leaves, "cek.cert"):
        files.pop(name, None)
        (home / name).unlink(missing_ok=True)
    leaves.clear()
    store.write_document(home / "authority.json", listed)
