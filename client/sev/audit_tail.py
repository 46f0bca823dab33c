"""Records of an audit file as they are added, without the daemon: the file is looked at again and again."""

from __future__ import annotations

import os
from time import sleep
from typing import TYPE_CHECKING

from sev.audit_trail import LINE_BYTES, AuditRecord

if TYPE_CHECKING:
    from collections.abc import Iterator

LOOK_SECONDS = 0.25
"""Pause between two looks."""


def tail(path: str, after: int) -> Iterator[AuditRecord]:
    """Records whose number is above `after`, without end; goes on in the new file when this one is put aside.

    Raises:
        OSError: The file cannot be read.
    """
    while True:
        with open(path, "rb") as file:
            for one in _to_its_end(path, file.fileno()):
                if one.sequence > after:
                    after = one.sequence
                    yield one


def _to_its_end(path: str, file: int) -> Iterator[AuditRecord]:
    """The lines of a file until another one has its name, and this one was read."""
    rest, replaced = b"", False
    while True:
        data = os.read(file, LINE_BYTES)
        if data:
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                yield AuditRecord.decode(line)
            rest = rest[-LINE_BYTES:]
        elif replaced:
            return
        else:
            replaced = _is_replaced(path, file)
            if not replaced:
                sleep(LOOK_SECONDS)


def _is_replaced(path: str, file: int) -> bool:
    try:
        there = os.stat(path)
    except FileNotFoundError:
        return False  # moved away, and the new one is yet to come
    mine = os.fstat(file)
    return (there.st_dev, there.st_ino) != (mine.st_dev, mine.st_ino)
