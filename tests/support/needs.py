"""What a test needs from the machine: skipped with a reason where it is not there, failed where CI promises it.

With CI=true in the environment nothing may be skipped in silence: the machine that judges a change has all of it.
"""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest


def lacking(reason: str) -> NoReturn:
    """Skips the test for this reason; fails it with CI=true in the environment."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{reason} (CI=true: this machine must have it)")
    pytest.skip(reason)


def need_root() -> None:
    """The test acts as root."""
    if os.geteuid() != 0:
        lacking("needs root")


def need_kvm() -> None:
    """The test runs guests on the real /dev/kvm."""
    _need_device("/dev/kvm")


def need_fuse() -> None:
    """The test mounts files over FUSE: /dev/fuse, and the right to mount."""
    _need_device("/dev/fuse")
    need_root()


def need_program(name: str) -> str:
    """The test runs a program of the system, such as gcc; its path."""
    path = shutil.which(name)
    if path is None:
        lacking(f"needs {name}")
    return path


def _need_device(path: str) -> None:
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        lacking(f"needs {path}: {os.strerror(error.errno or 0)}")
