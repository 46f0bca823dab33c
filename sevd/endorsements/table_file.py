"""The certificate table as a file that VMMs read: one inode for ever, written in place under a lock.

A VMM holds a shared lock of the open file description (OFD) while a guest's report is made, so that table and report
fit together; whoever changes what reports show holds the exclusive one. A rename would make a new inode, which the
readers' locks do not cover, so the file is written in place. A reader may hold its lock for ever: waiting is bounded.

A lock goes with the process that held it. So at no moment of a change does the file hold a table that may not fit: it
is emptied before what it depends on changes, and its first entry, without which there are none, is written last. Who is
killed in between leaves an empty table.

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
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from sev.errors import KernelError, NotNow

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

WAIT_SECONDS = 5.0
"""Seconds to wait for readers."""

POLL_SECONDS = 0.002
"""Seconds between two looks at the lock; there is no bounded wait in the kernel's interface.

The kernel lets readers overtake a writer that waits: between many readers it finds a gap only if it looks often.
"""

_ENTRY = 24
"""Bytes of a table's entry. A table whose first entry is zero is empty (GHCB specification, certificate data)."""

_BIGGEST = 1 << 20
"""Bytes that are read of a table; a real one has some thousands."""

_HELD = (errno.EAGAIN, errno.EACCES)


class TableFile:
    """The file and its lock. `exclusive` keeps others out; `clear` and `write` change the content while it is held.

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

    @asynccontextmanager
    async def shared(self) -> AsyncIterator[Callable[[], bytes]]:
        """Holds a read lock, as a VMM does; what it gives reads the content. Of a file that is not there: empty.

        Raises:
            NotNow: It is being changed for longer than the wait.
            KernelError: The file cannot be opened or locked.
        """
        deadline = time.monotonic() + self._wait
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            yield lambda: b""
            return
        except OSError as error:
            raise KernelError(error.errno or 0, command=f"open {self.path}") from error
        try:
            while not self._lock(fcntl.F_RDLCK, fd):
                if time.monotonic() >= deadline:
                    raise NotNow(
                        f"{self.path} is being changed: its lock was not free within {self._wait:g} s",
                        remedy="A command that changes the platform is under way; try again.",
                        metadata={"path": str(self.path)},
                    )
                await asyncio.sleep(POLL_SECONDS)
            yield lambda: os.pread(fd, _BIGGEST, 0)
        finally:
            os.close(fd)  # and with it the lock goes

    def clear(self) -> None:
        """Makes it an empty table; the lock must be held. Raises KernelError: the old content stays."""
        assert self._held, "clear without the lock"
        try:
            self._clear()
        except OSError as error:
            raise KernelError(error.errno or 0, command=f"empty {self.path}") from error

    def write(self, table: bytes) -> None:
        """Replaces the content in place; the lock must be held. Raises KernelError: the table is empty then."""
        assert self._held, "write without the lock"
        try:
            self._clear()
            done = _ENTRY
            while done < len(table):
                done += os.pwrite(self._fd, table[done:], done)
            os.ftruncate(self._fd, len(table))
            if os.pwrite(self._fd, table[:_ENTRY], 0) != min(_ENTRY, len(table)):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._fd, 0)
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

    def _clear(self) -> None:
        if os.fstat(self._fd).st_size and os.pwrite(self._fd, bytes(_ENTRY), 0) != _ENTRY:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        os.ftruncate(self._fd, _ENTRY)  # an entry of zeros, also of a file that had none

    def _lock(self, kind: int, fd: int | None = None) -> bool:
        """F_OFD_SETLK over the whole file; False if somebody else holds it."""
        request = struct.pack("hhqqi4x", kind, os.SEEK_SET, 0, 0, 0)
        try:
            fcntl.fcntl(self._fd if fd is None else fd, fcntl.F_OFD_SETLK, request)
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
