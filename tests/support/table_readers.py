"""Readers of the certificate table as VMMs are: under a shared lock, as the kernel's documentation has it."""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path


def read_locked(path: Path) -> int:
    """A descriptor with the lock, which goes with it. Raises BlockingIOError while the table is being changed."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0))
    except BaseException:
        os.close(fd)
        raise
    return fd
