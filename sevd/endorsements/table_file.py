"""The certificate table as a file that VMMs read: one inode for ever, written in place under a lock.

A VMM holds a shared lock of the open file description (OFD) while a guest's report is made, so that table and report
fit together; whoever changes what reports show holds the exclusive one. A rename would make a new inode, which the
readers' locks do not cover, so the file is written in place. A reader may hold its lock for ever: waiting is bounded.

Source: KVM's documentation of KVM_EXIT_SNP_REQ_CERTS; fcntl(2), open file description locks.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import stat
import struct
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sev.errors import KernelError, NotNow

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

WAIT_SECONDS = 5.0
"""Seconds to wait for readers."""

POLL_SECONDS = 0.02
"""Seconds between two looks at the lock; there is no bounded wait in the kernel's interface."""

_HELD = (errno.EAGAIN, errno.EACCES)


class TableFile:
    """The file and its lock. `exclusive` keeps others out; `write` replaces the content while it is held.

    Args:
        path: The file; made, with mode 0644, if it is not there.
        wait_seconds: How long to wait for readers.
    """

    def __init__(self, path: Path, *, wait_seconds: float = WAIT_SECONDS) -> None:
        self.path = path
        self._wait = wait_seconds
        self._mutex = asyncio.Lock()
        self._fd = -1
        self._held = False

    @asynccontextmanager
    async def exclusive(self) -> AsyncIterator[None]:
        """Holds the write lock.

        Raises:
            NotNow: Readers held it for longer than the wait.
            KernelError: The file cannot be opened or locked.
        """
        deadline = time.monotonic() + self._wait
        try:
            async with asyncio.timeout(self._wait):
                await self._mutex.acquire()
        except TimeoutError:
            raise self._busy() from None
        try:
            self._open()
            while not self._lock(fcntl.F_WRLCK):
                if time.monotonic() >= deadline:
                    raise self._busy()
                await asyncio.sleep(POLL_SECONDS)
            self._held = True
            try:
                yield
            finally:
                self._held = False
                self._lock(fcntl.F_UNLCK)
        finally:
            self._mutex.release()

    def write(self, table: bytes) -> None:
        """Replaces the content in place; the lock must be held. Raises KernelError."""
        assert self._held, "write without the lock"
        try:
            done = 0
            while done < len(table):
                done += os.pwrite(self._fd, table[done:], done)
            os.ftruncate(self._fd, len(table))
        except OSError as error:
            raise KernelError(error.errno or 0, command=f"write {self.path}") from error

    def close(self) -> None:
        """Closes the file, and with it gives up the lock."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def _open(self) -> None:
        """Opens the file, again if the path has come to mean another one."""
        try:
            if self._fd >= 0:
                mine = os.fstat(self._fd)
                try:
                    there = os.stat(self.path, follow_symlinks=False)
                except FileNotFoundError:
                    there = None
                if there is not None and (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino):
                    return
                self.close()
            self.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            self._fd = os.open(self.path, flags, 0o644)
            if not stat.S_ISREG(os.fstat(self._fd).st_mode):
                self.close()
                raise KernelError(errno.EINVAL, command=f"open {self.path}", message=f"{self.path} is no regular file")
        except OSError as error:
            raise KernelError(error.errno or 0, command=f"open {self.path}") from error

    def _lock(self, kind: int) -> bool:
        """F_OFD_SETLK over the whole file; False if somebody else holds it."""
        request = struct.pack("hhqqi4x", kind, os.SEEK_SET, 0, 0, 0)
        try:
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, request)
        except OSError as error:
            if error.errno in _HELD:
                return False
            raise KernelError(error.errno or 0, command=f"lock {self.path}") from error
        return True

    def _busy(self) -> NotNow:
        return NotNow(
            f"{self.path} is being read: its lock was not free within {self._wait:g} s",
            remedy="A guest's report is under way; try again. A VMM that hangs may hold the lock: see lslocks.",
            metadata={"path": str(self.path)},
        )
