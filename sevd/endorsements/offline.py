"""A directory of certificates and lists that somebody fills: by hand, from another machine, from a read-only disk.

Its files are a source like any other: each is checked before anything of it is kept, and they are looked at before any
service is asked. The directory is watched by looking at it: network file systems tell nobody of changes.
"""

from __future__ import annotations

import os
import stat
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from sev.certs.files import load_all
from sev.errors import MalformedInput, SevError
from sevd.endorsements.taking import MAX_CONTENT_BYTES

if TYPE_CHECKING:
    from sev.certs import Certificate, Crl

FILES_MAX = 256
"""Files looked at."""

Fingerprint = tuple[tuple[str, int, int, int], ...]


class Offline:
    """The directory. Blocks on the disk.

    Args:
        directory: Where it is; it may not be there.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def fingerprint(self) -> Fingerprint:
        """Names, sizes, times and inodes: what differs where something changed. Empty where there is no directory."""
        out = []
        for name in self._names():
            try:
                facts = (self.directory / name).stat()
            except OSError:
                out.append((name, -1, 0, 0))
            else:
                out.append((name, facts.st_size, facts.st_mtime_ns, facts.st_ino))
        return tuple(out)

    def read(self) -> tuple[list[Certificate], list[Crl], list[str]]:
        """Certificates, lists, and one sentence about each file that is neither."""
        certificates: list[Certificate] = []
        lists: list[Crl] = []
        problems: list[str] = []
        for name in self._names():
            path = self.directory / name
            if name.startswith("."):
                continue
            try:
                found, crls = load_all(_content(path))
            except OSError as error:
                problems.append(f"{path} cannot be read: {error.strerror}")
            except SevError as error:
                problems.append(f"{path} holds no certificates: {error.message}")
            else:
                certificates += found
                lists += crls
        return certificates, lists, problems

    def _names(self) -> list[str]:
        try:
            with os.scandir(self.directory) as found:
                return sorted(file.name for file in islice(found, FILES_MAX))
        except OSError:
            return []


def _content(path: Path) -> bytes:
    """Raises OSError, MalformedInput."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise MalformedInput("it is no regular file")
        data = file.read(MAX_CONTENT_BYTES + 1)
    if len(data) > MAX_CONTENT_BYTES:
        raise MalformedInput(f"more than {MAX_CONTENT_BYTES} bytes")
    return data
