"""The file of the audit trail: lines that are only ever added, through rotation by anybody and through crashes.

Opened for appending (O_APPEND), so that it works on a file that the kernel holds to that (chattr +a): then nothing is
put aside here, which is said once. A file that somebody else moved away, removed or cut short is noticed before the
next line, and a new one begun where that is needed. A line that a crash left unfinished is ended before the next one.
"""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

from sev.audit_trail import AuditRecord

TAIL_BYTES = 256 << 10
"""How far back the last record is looked for; a record is shorter by far."""

log = logging.getLogger("sevd.audit")


class TrailFile:
    """An audit file. Not thread-safe.

    Attributes:
        last: The last line, without its line break; empty if there is none.
        sequence: The sequence number of the last record; 0 if there is none.
    """

    def __init__(self, path: Path, *, file_bytes: int, files: int) -> None:
        """Opens the file, or begins it, and finds its end.

        Raises:
            OSError: It cannot be written, is no file, or belongs to another user.
        """
        self._path = path
        self._file_bytes = file_bytes
        self._files = max(1, files)
        self._file = -1
        self._size = 0
        self._torn = False
        self._fixed = False
        self.last, self.sequence = b"", 0
        self._open()
        self._find_end()

    def end(self) -> tuple[list[AuditRecord], bool]:
        """The last records, oldest first, as far as TAIL_BYTES go back; and whether these are all that there are."""
        size = os.fstat(self._file).st_size if self._file >= 0 else 0
        if not size:
            return [], not self._aside(1).exists()
        start = max(0, size - TAIL_BYTES)
        lines = os.pread(self._file, TAIL_BYTES, start).split(b"\n")
        found = [AuditRecord.decode(line) for line in lines[bool(start) :]]
        return [one for one in found if one.facts], not start and not self._aside(1).exists()

    def look(self) -> str:
        """What somebody else did to the file since the last line: "renamed", "removed", "truncated", or nothing.

        A new file is begun where that is needed.

        Raises:
            OSError: It cannot be.
        """
        if self._file < 0:
            self._open()
            return ""
        mine = os.fstat(self._file)
        if mine.st_size < self._size:
            self._size, self._torn = mine.st_size, False
            return "truncated"
        try:
            there = os.stat(self._path, follow_symlinks=False)
        except FileNotFoundError:
            there = None
        if there is not None and (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino):
            return ""
        self.close()
        self._open()
        return "renamed" if mine.st_nlink else "removed"

    def append(self, line: bytes) -> None:
        """Adds a line; puts the file aside before, if it would become too large.

        Raises:
            OSError: It could not be written whole.
        """
        data = line + b"\n"
        if self._size + len(data) > self._file_bytes and self._size and not self._fixed:
            self._put_aside()
        if self._torn:
            data = b"\n" + data
        written = os.write(self._file, data)
        self._size += written
        if written < len(data):
            self._torn, self.last = True, data[:written].lstrip(b"\n")
            raise OSError(28, os.strerror(28), os.fspath(self._path))
        self._torn, self.last = False, line

    def close(self) -> None:
        """Closes the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _open(self) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        file = os.open(self._path, flags, 0o600)
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode) or found.st_uid not in (0, os.geteuid()):
            os.close(file)
            raise PermissionError(1, "not a file of this user", os.fspath(self._path))
        self._file, self._size, self._fixed = file, found.st_size, False
        self._torn = bool(self._size) and os.pread(file, 1, self._size - 1) != b"\n"

    def _find_end(self) -> None:
        """Where the trail goes on: after the last line of this file, or of the one that was put aside last."""
        tail = os.pread(self._file, TAIL_BYTES, max(0, self._size - TAIL_BYTES))
        if not tail:
            try:
                with self._aside(1).open("rb") as file:
                    file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
                    tail = file.read(TAIL_BYTES)
            except OSError:
                return
        lines = [line for line in tail.split(b"\n") if line]
        self.last = lines[-1] if lines else b""
        numbers = (AuditRecord.decode(line).sequence for line in reversed(lines))
        self.sequence = next((number for number in numbers if number > 0), 0)

    def _aside(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")

    def _put_aside(self) -> None:
        """This file becomes .1, that .2, and so on; the oldest goes. What cannot be moved stays and grows."""
        names = [self._path, *(self._aside(number) for number in range(1, self._files))]
        try:
            for older, newer in zip(reversed(names[1:]), reversed(names[:-1]), strict=True):
                if newer.exists():
                    os.replace(newer, older)
            if self._files == 1:
                os.unlink(self._path)
        except OSError as error:
            self._fixed = True
            log.warning("the audit file cannot be put aside and grows: %s", os.strerror(error.errno or 0))
            return
        self.close()
        self._open()
