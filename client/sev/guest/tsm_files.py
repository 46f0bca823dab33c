"""The files of configfs that a report takes, as a small protocol, and their Linux form.

One attribute is read or written by one open: configfs takes what was written when the file is closed, and one
descriptor may not do both.
"""

from __future__ import annotations

import errno
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class Files(Protocol):
        """Directories and small files below one folder; names have no slash but between entry and attribute."""

        def mkdir(self, name: str) -> None:
            """Makes an entry. Raises OSError."""

        def rmdir(self, name: str) -> None:
            """Removes an entry. Raises OSError."""

        def names(self, name: str = "") -> list[str]:
            """What is in an entry, or in the folder. Raises OSError."""

        def read(self, name: str, limit: int) -> bytes:
            """A whole attribute. Raises OSError; EFBIG if it is longer than `limit` bytes."""

        def write(self, name: str, data: bytes) -> None:
            """Writes an attribute and closes it. Raises OSError."""


class LinuxFiles:
    """The files below a folder of this machine (Files)."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def mkdir(self, name: str) -> None:
        """mkdir(2)."""
        os.mkdir(self._path(name), 0o700)

    def rmdir(self, name: str) -> None:
        """rmdir(2)."""
        os.rmdir(self._path(name))

    def names(self, name: str = "") -> list[str]:
        """The names in a directory."""
        return os.listdir(self._path(name))

    def read(self, name: str, limit: int) -> bytes:
        """A whole file."""
        fd = os.open(self._path(name), os.O_RDONLY | os.O_CLOEXEC)
        try:
            out = bytearray()
            while chunk := os.read(fd, 1 << 16):
                out += chunk
                if len(out) > limit:
                    raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), name)
            return bytes(out)
        finally:
            os.close(fd)

    def write(self, name: str, data: bytes) -> None:
        """One write, one close: what close(2) answers counts."""
        fd = os.open(self._path(name), os.O_WRONLY | os.O_CLOEXEC)
        try:
            written = os.write(fd, data)
        finally:
            os.close(fd)
        if written != len(data):
            raise OSError(errno.EIO, "short write", name)

    def _path(self, name: str) -> str:
        return os.path.join(self._folder, name)
