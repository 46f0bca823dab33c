"""A simulated process: its descriptor table and address space over the one simulated kernel (sev.launch.seam.Kernel).

Descriptors are the lowest free numbers, counted references to open files, as in Linux. A file may stand in several
processes' tables (`receive`, as over SCM_RIGHTS); what it means there is the file's own affair.
"""

from __future__ import annotations

import errno
import heapq
import os
import threading
from collections.abc import Callable, Mapping, Sequence

from sevd.simulator.address_space import AddressSpace
from sevd.simulator.errnos import fail, until_refused

NOFILE = 1 << 16
"""Descriptors a process may have open."""

_references = threading.Lock()


class File:
    """An open file: what descriptors refer to. Released when the last reference goes.

    Args:
        flags: Flags of open(2).
    """

    def __init__(self, flags: int = os.O_RDWR) -> None:
        self._count = 0
        self.path_only = bool(flags & os.O_PATH)
        self.writable = flags & os.O_ACCMODE in (os.O_WRONLY, os.O_RDWR)

    def hold(self) -> None:
        """One more reference."""
        with _references:
            self._count += 1

    def drop(self) -> None:
        """One reference less; the last one releases the file."""
        with _references:
            self._count -= 1
            last = self._count == 0
        if last:
            self.released()

    def released(self) -> None:
        """The last reference is gone."""

    def discard(self, offset: int, size: int) -> None:
        """fallocate(2) with PUNCH_HOLE. Raises OSError; files that hold nothing answer ENODEV."""
        del offset, size
        fail(errno.ENODEV)

    def ioctl(self, process: Process, request: int, argument: int) -> int:
        """An ioctl from this process. Raises OSError; files without any answer ENOTTY."""
        del process, request, argument
        return fail(errno.ENOTTY)


class Process:
    """One process.

    Args:
        devices: Devices by path: what opens them, given the flags of open(2).
        ended: Called once after `exit`.
        memlock: Bytes of memory that it may lock; None: any number.
    """

    FIRST = 0
    """The lowest descriptor number."""

    SHARES_MEMORY = False
    """Guest memory is made so that it can be handed to whoever stands behind this process."""

    def __init__(
        self,
        devices: Mapping[str, Callable[[int], File]],
        ended: Callable[[Process], None] | None = None,
        *,
        memlock: int | None = None,
    ) -> None:
        self.memory: AddressSpace = AddressSpace()
        self._memlock = memlock
        self._devices = devices
        self._ended = ended
        self._files: dict[int, File] = {}
        self._free: list[int] = []
        self._top = self.FIRST
        self._lock = threading.Lock()
        self._exited = False

    def open(self, path: str, flags: int) -> int:
        """open(2).

        Raises:
            OSError: ENOENT: no such device; EEXIST, ENOTDIR: flags that no device takes; EMFILE: too many.
        """
        if path not in self._devices:
            fail(errno.ENOENT)
        if flags & os.O_CREAT and flags & os.O_EXCL:
            fail(errno.EEXIST)
        if flags & os.O_DIRECTORY:
            fail(errno.ENOTDIR)
        return self.install(self._devices[path](flags))

    def close(self, fd: int) -> None:
        """close(2). Raises OSError(EBADF)."""
        with self._lock:
            file = self._files.pop(fd, None)
            if file is None:
                fail(errno.EBADF)
            heapq.heappush(self._free, fd)
        file.drop()

    def ioctl(self, fd: int, request: int, argument: int = 0) -> int:
        """ioctl(2). Raises OSError with the kernel's errno."""
        file = self.take(fd)
        try:
            if file.path_only:
                fail(errno.EBADF)
            return file.ioctl(self, request & 0xFFFF_FFFF, argument & 0xFFFF_FFFF_FFFF_FFFF)
        finally:
            file.drop()

    def ioctls(self, fd: int, request: int, arguments: Sequence[int]) -> tuple[int, int]:
        """The same ioctl(2) again and again, until one fails: (how many succeeded, errno or 0)."""
        return until_refused(lambda argument: self.ioctl(fd, request, argument), arguments)

    def map(self, fd: int, size: int) -> memoryview:
        """No file of the model has memory to map: nothing executes in it. Raises OSError(EBADF, EOPNOTSUPP)."""
        self.take(fd).drop()
        return fail(errno.EOPNOTSUPP)

    def unmap(self, view: memoryview) -> None:
        """There is nothing to give back."""

    def lockable(self) -> int | None:
        """Bytes of memory that it may lock (RLIMIT_MEMLOCK); None: any number, as with CAP_IPC_LOCK."""
        return self._memlock

    def discard(self, fd: int, offset: int, size: int) -> None:
        """fallocate(2) that frees whole pages of a guest_memfd. Raises OSError: EBADF; EINVAL; ENODEV: another file."""
        file = self.take(fd)
        try:
            file.discard(offset, size)
        finally:
            file.drop()

    def install(self, file: File) -> int:
        """Gives a file the lowest free descriptor. Raises OSError(EMFILE); the file is not held then."""
        file.hold()
        try:
            with self._lock:
                if self._exited:
                    fail(errno.ESRCH)
                if not self._free and self._top >= self.FIRST + NOFILE:
                    fail(errno.EMFILE)
                fd = heapq.heappop(self._free) if self._free else self._top
                self._top = max(self._top, fd + 1)
                self._files[fd] = file
                return fd
        except OSError:
            file.drop()
            raise

    def take(self, fd: int) -> File:
        """The file behind a descriptor, with a reference that the caller must drop. Raises OSError(EBADF)."""
        with self._lock:
            file = self._files.get(fd)
            if file is None:
                fail(errno.EBADF)
            file.hold()
            return file

    def dup(self, fd: int) -> int:
        """dup(2). Raises OSError(EBADF, EMFILE)."""
        return self.receive(self, fd)

    def receive(self, sender: Process, fd: int) -> int:
        """A descriptor for another process's open file, as SCM_RIGHTS gives it. Raises OSError(EBADF, EMFILE)."""
        file = sender.take(fd)
        try:
            return self.install(file)
        finally:
            file.drop()

    def descriptors(self) -> list[int]:
        """The open descriptors in order."""
        with self._lock:
            return sorted(self._files)

    def exit(self) -> None:
        """The process ends: every descriptor is closed, its memory is gone; once more does nothing."""
        with self._lock:
            if self._exited:
                return
            self._exited = True
            files = list(self._files.values())
            self._files.clear()
        for file in files:
            file.drop()
        self.memory.clear()
        if self._ended is not None:
            self._ended(self)
