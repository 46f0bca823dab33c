"""Callers in other processes: their memory, and their descriptors (process_vm_readv(2), process_vm_writev(2), proc(5)).

`RemoteProcess` is to a caller behind a file or a socket what `Process` is to one in this process: the model's files
take either. What the model writes is in the caller's memory at once, also where the ioctl fails afterwards, as with
copy_to_user.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import os
import signal
import struct
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NoReturn

from sevd.simulator.address_space import AddressSpace
from sevd.simulator.errnos import fail
from sevd.simulator.lent import LentMemory
from sevd.simulator.process import File, Process
from sevd.simulator.rlimit import lockable

log = logging.getLogger(__name__)

FIRST_DESCRIPTOR = 1 << 20
"""Descriptors that the model gives to remote processes start here: below are the caller's own."""

_TRANSFER_MAX = 1 << 30
"""Bytes of one system call; Linux stops below 2 GiB."""


_SCRATCH_DATA = 64
_SCRATCH_SIZE = _SCRATCH_DATA + 4096
_IOVECS = struct.Struct("=QQQQ")
"""struct iovec here, struct iovec there: address and length each."""

_libc = ctypes.CDLL(None, use_errno=True)
_readv = _libc.process_vm_readv
_writev = _libc.process_vm_writev
for _function in (_readv, _writev):
    _function.argtypes = [
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_ulong,
        ctypes.c_void_p,
        ctypes.c_ulong,
        ctypes.c_ulong,
    ]
    _function.restype = ctypes.c_ssize_t
_pread = _libc.pread
_pwrite = _libc.pwrite
for _function in (_pread, _pwrite):
    _function.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64]
    _function.restype = ctypes.c_ssize_t


class _Scratch(threading.local):
    """Memory of each thread at an address that is known: both vectors, and room for what is small."""

    def __init__(self) -> None:
        self.view = memoryview(bytearray(_SCRATCH_SIZE))
        self._first = ctypes.c_char.from_buffer(self.view)
        self.address = ctypes.addressof(self._first)


_scratch = _Scratch()


class RemoteMemory(AddressSpace):
    """The memory of another process, by its own addresses.

    Args:
        pid: A process or thread of it, as this process sees it.
        pidfd: A descriptor that pins the process, so that its number cannot come to mean another one; stays the
            caller's. -1: the process cannot end meanwhile (the caller of a file's ioctl waits in the kernel until it
            is answered, killed or not).
        image: /proc/PID/mem as it was opened; stays the caller's. Then it is that memory which is read and written, and
            never that of a program, with more rights perhaps, that the process has turned into. -1: the process is
            trusted, or cannot do so meanwhile.
    """

    def __init__(self, pid: int, pidfd: int = -1, image: int = -1) -> None:
        super().__init__()
        self.pid = pid
        self._pidfd = pidfd
        self._image = image
        self._lent: LentMemory | None = None

    @contextlib.contextmanager
    def lent(self, ranges: Sequence[tuple[int, int]]) -> Iterator[None]:
        """Works on copies of (address, size) ranges meanwhile (sevd.simulator.lent); what cannot be read, where it is.

        Raises:
            OSError: As `write`, at the end.
        """
        lent = LentMemory(self.write)
        for address, size in ranges:
            with contextlib.suppress(OSError):
                lent.add(address, bytearray(self.read(address, size)))
        self._lent = lent
        try:
            yield
        finally:
            self._lent = None
            lent.give_back()

    def read(self, address: int, size: int) -> bytes:
        """Copies size bytes out.

        Raises:
            OSError: EFAULT: they are not all readable, or the process is gone; EACCES: this process may not look.
        """
        if size <= 0:
            return b"" if not size else fail(errno.EFAULT)
        if self._lent is not None:
            found = self._lent.read(address, size)
            if found is not None:
                return found
            if self._lent.touches(address, size):
                self._lent.give_back()
        scratch = _scratch
        if size <= _SCRATCH_SIZE - _SCRATCH_DATA:
            self._transfer(_readv, scratch.address + _SCRATCH_DATA, address, size)
            return scratch.view[_SCRATCH_DATA : _SCRATCH_DATA + size].tobytes()
        buffer = bytearray(size)
        first = ctypes.c_char.from_buffer(buffer)  # keeps the bytes where they are
        self._transfer(_readv, ctypes.addressof(first), address, size)
        return bytes(buffer)

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Copies data in; what lies before an address that cannot be written may be written.

        Raises:
            OSError: As `read`.
        """
        size = len(data)
        if not size:
            return
        if self._lent is not None:
            if self._lent.write(address, data):
                return
            if self._lent.touches(address, size):
                self._lent.give_back()
        scratch = _scratch
        if size <= _SCRATCH_SIZE - _SCRATCH_DATA:
            scratch.view[_SCRATCH_DATA : _SCRATCH_DATA + size] = data
            self._transfer(_writev, scratch.address + _SCRATCH_DATA, address, size)
            return
        buffer = data if isinstance(data, bytearray) else bytearray(data)
        first = ctypes.c_char.from_buffer(buffer)
        self._transfer(_writev, ctypes.addressof(first), address, size)

    def view(self, address: int, size: int) -> memoryview:
        """A copy of the bytes, not to be written. Raises OSError as `read`."""
        return memoryview(self.read(address, size))

    @contextlib.contextmanager
    def changing(self, address: int, size: int) -> Iterator[memoryview]:
        """A copy of the bytes, which is written back after the block, if that does not raise. Raises OSError."""
        copy = bytearray(self.read(address, size))
        yield memoryview(copy)
        self.write(address, copy)

    def there(self) -> bool:
        """Whether the process's number is still its own."""
        if self._pidfd < 0:
            return True
        try:
            signal.pidfd_send_signal(self._pidfd, 0)
        except PermissionError:
            return True
        except OSError:
            return False
        return True

    def available(self, address: int, *, writable: bool = False) -> int:
        """How many bytes can be read (and written) from this address on, by the process's map; 0 if none can."""
        reached, needed = address, b"rw" if writable else b"r"
        try:
            with open(f"/proc/{self.pid}/maps", "rb") as maps:
                for line in maps:
                    span, permissions = line.split(None, 2)[:2]
                    start, end = (int(part, 16) for part in span.split(b"-"))
                    if start <= reached < end and permissions.startswith(needed):
                        reached = end
        except (OSError, ValueError):
            return 0
        return reached - address if self.there() else 0

    def location(self, address: int) -> int:
        """The address itself: two mappings of one memory count as two places."""
        return address

    def fill(self, address: int, target: memoryview) -> int:
        """Copies into `target` what can be read from this address on; how many bytes that was, 0 if none."""
        if not len(target):
            return 0
        first = ctypes.c_char.from_buffer(target)
        return self._copy(_readv, ctypes.addressof(first), address, len(target))

    def place(self, data: bytes | bytearray | memoryview) -> NoReturn:
        """Nothing can be placed in another process. Raises OSError(EOPNOTSUPP)."""
        del data
        fail(errno.EOPNOTSUPP)

    def release(self, address: int) -> None:
        """Nothing was placed. Raises OSError(EINVAL)."""
        del address
        fail(errno.EINVAL)

    def clear(self) -> None:
        """The process's memory is its own."""

    def _transfer(self, function: Callable[..., int], here: int, address: int, size: int) -> None:
        if self._copy(function, here, address, size) < size:
            self._failed(ctypes.get_errno())

    def _copy(self, function: Callable[..., int], here: int, address: int, size: int) -> int:
        """How many of the bytes were copied; where not all, errno tells why (EFAULT where none does)."""
        ctypes.set_errno(0)
        if self._image >= 0:
            return self._copy_of_image(function, here, address, size)
        scratch = _scratch
        vectors = scratch.address
        done = 0
        while done < size and address >= 0 and address + size <= 1 << 64:
            length = min(size - done, _TRANSFER_MAX)
            _IOVECS.pack_into(scratch.view, 0, here + done, length, address + done, length)
            if not self.there():
                break
            count = function(self.pid, vectors, 1, vectors + 16, 1, 0)
            if count <= 0:
                break
            done += count
        return done

    def _copy_of_image(self, function: Callable[..., int], here: int, address: int, size: int) -> int:
        """The same by way of /proc/PID/mem, which knows no protection of pages: that is looked up before."""
        size = min(size, self.available(address, writable=function is _writev))
        move = _pread if function is _readv else _pwrite
        done = 0
        while done < size:
            count = move(self._image, here + done, min(size - done, _TRANSFER_MAX), address + done)
            if count <= 0:
                break
            done += count
        return done

    def _failed(self, number: int) -> NoReturn:
        if number in (errno.EPERM, errno.ENOSYS):
            log.warning(
                "the memory of process %d may not be read or written: %s; run the simulator as root, or with "
                "CAP_SYS_PTRACE",
                self.pid,
                os.strerror(number),
            )
            fail(errno.EACCES)
        fail(errno.EFAULT)


class RemoteProcess(Process):
    """A process elsewhere, over the one simulated kernel.

    Args:
        pid: The process, as this process sees it; 0 if it cannot be seen: then its memory is not there either.
        devices: As for `Process`; what `open` knows.
        ended: As for `Process`.
        own: What one of its own descriptors is to the model: given pid and number, the open file, or None for one
            that is nothing to the model.
        pidfd: As for `RemoteMemory`.
        image: As for `RemoteMemory`.
    """

    FIRST = FIRST_DESCRIPTOR

    def __init__(
        self,
        pid: int,
        devices: Mapping[str, Callable[[int], File]] | None = None,
        ended: Callable[[Process], None] | None = None,
        own: Callable[[int, int], File | None] | None = None,
        pidfd: int = -1,
        image: int = -1,
    ) -> None:
        super().__init__(devices or {}, ended)
        self.pid = pid
        self.memory: RemoteMemory = RemoteMemory(pid, pidfd, image)
        self._own = own
        self._known: dict[int, File] | None = None
        self._lockable: int | None = None

    def lockable(self) -> int | None:
        """Bytes that it may lock, as it is now."""
        return self._lockable if self._known is not None else lockable(self.pid)

    def take(self, fd: int) -> File:
        """The file behind a descriptor, the model's or the process's own, with a reference that the caller must drop.

        Raises:
            OSError: EBADF.
        """
        if fd >= self.FIRST:
            return super().take(fd)
        known = self._known
        file = known.get(fd) if known is not None else None
        if file is None:
            file = self._own(self.pid, fd) if self._own is not None and fd >= 0 else None
            if file is None or not self.memory.there():
                fail(errno.EBADF)
            if known is not None:
                file.hold()
                known[fd] = file
        file.hold()
        return file

    def ioctls(self, fd: int, request: int, arguments: Sequence[int]) -> tuple[int, int]:
        """As of `Process`; the caller waits: what its descriptors are, and how much it may lock, is looked up once."""
        self._lockable = self.lockable()
        known: dict[int, File] = {}
        self._known = known
        try:
            return super().ioctls(fd, request, arguments)
        finally:
            self._known = None
            for file in known.values():
                file.drop()


class DescriptorsOf:
    """Which descriptors of other processes stand for one served file (the argument `own` of `RemoteProcess`).

    Args:
        identity: (st_dev, st_ino) of the served file.
        opened: Makes the model's open file from flags of open(2).
    """

    def __init__(self, identity: tuple[int, int], opened: Callable[[int], File]) -> None:
        self._identity = identity
        self._opened = opened
        self._mounts = _fuse_mounts(identity[0])

    def __call__(self, pid: int, fd: int) -> File | None:
        """The open file of a descriptor; None if it is another file, or none."""
        try:
            with open(f"/proc/{pid}/fdinfo/{fd}", "rb") as info:
                found = dict(line.split(b":", 1) for line in info if line.count(b":") == 1)
            # stat(2) asks whoever serves the file, which is this process: only where the mount does not tell.
            if not self._is_known(found):
                at = os.stat(f"/proc/{pid}/fd/{fd}")
                if (at.st_dev, at.st_ino) != self._identity:
                    return None
            return self._opened(int(found[b"flags"], 8))
        except (OSError, ValueError, KeyError):
            return None

    def _is_known(self, found: dict[bytes, bytes]) -> bool:
        mount, inode = found.get(b"mnt_id"), found.get(b"ino")
        if mount is None or inode is None:  # Linux before 5.14
            return False
        return int(mount) in self._mounts and int(inode) == self._identity[1]


def _fuse_mounts(device: int) -> frozenset[int]:
    """Identifiers of the mounts of a device as a whole that FUSE serves, in this process's namespace."""
    name = f"{os.major(device)}:{os.minor(device)}"
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as mounts:
            rows = [line.split() for line in mounts]
    except OSError:
        return frozenset()
    served = (row for row in rows if row[2] == name and row[3] == "/" and row[row.index("-") + 1].startswith("fuse"))
    return frozenset(int(row[0]) for row in served)
