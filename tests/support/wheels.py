"""Wheels of the project: of the tree as it is, and of commits that landed, as people have them installed."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
from functools import cache
from pathlib import Path

from tests.support.needs import lacking

ROOT = Path(__file__).resolve().parents[2]

BEFORE_SERVICE = "0d6be17"
"""The last commit before the service's units, identities and remote port were worked on."""


def sources(commit: str, folder: Path) -> Path:
    """The files of a commit, in a new folder."""
    found = subprocess.run(
        ["git", "-C", ROOT, "cat-file", "-e", f"{commit}^{{commit}}"], capture_output=True, text=True, check=False
    )
    if found.returncode:
        lacking(f"commit {commit} is not in this clone (a shallow one?): git fetch --unshallow; {found.stderr.strip()}")
    packed = subprocess.run(["git", "-C", ROOT, "archive", commit], capture_output=True, check=True)
    with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


def wheel(tree: Path, folder: Path) -> Path:
    """Builds the wheel of a source tree, without a network."""
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder],
        cwd=tree,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lacking(f"cannot build a wheel of {tree}: {done.stderr.strip()[-400:]}")
    (built,) = folder.glob("*.whl")
    return built


@cache
def _kept(commit: str, folder: Path) -> Path:
    return wheel(sources(commit, folder / f"{commit}.tree"), folder / f"{commit}.wheel")


def wheel_of(commit: str, folder: Path) -> Path:
    """The wheel of a commit, built below `folder` once."""
    return _kept(commit, folder)
