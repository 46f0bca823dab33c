"""The real kernel behind the seam: open(2), close(2), ioctl(2) through libc, and memory with real addresses.

Blocking calls release the GIL. Descriptors are opened close-on-exec: no descriptor of a guest leaves the process that
owns it.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import threading

from sev.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

PAGE = mmap.PAGESIZE

_PUNCH_HOLE_KEEP_SIZE = 0x3
"""fallocate(2): FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE."""


class _Placed:
    """A piece of memory with an address: `view` is what lies there, `close` gives it up."""

    __slots__ = ("address", "close", "size", "view")

    def __init__(self, address: int, size: int, view: memoryview, close: Callable[[], None]) -> None:
        self.address = address
        self.size = size
        self.view = view
        self.close = close


class LinuxMemory:
    """The address space of this process, as far as it was `place`d (sev.launch.seam.Memory)."""

    def __init__(self) -> None:
        self._placed: dict[int, _Placed] = {}
        self._lock = threading.Lock()

    def place(self, data: bytes | bytearray | memoryview) -> int:
        """Puts data at an address of its own and answers that address.

        Raises:
            UsageError: Shared memory of whole pages that does not start at a page (use an mmap), or that is not
                contiguous bytes.
        """
        shared = isinstance(data, bytearray) or (isinstance(data, memoryview) and not data.readonly)
        placed = self._share(memoryview(data)) if shared else self._copy(memoryview(data))
        with self._lock:
            if placed.address in self._placed:
                placed.close()
                raise UsageError(f"memory at 0x{placed.address:x} is placed already", field="data")
            self._placed[placed.address] = placed
        return placed.address

    def read(self, address: int, size: int) -> bytes:
        """Copies size bytes out. Raises OSError(EFAULT) if they are not all placed."""
        view, start = self._find(address, size)
        return bytes(view[start : start + size])

    def write(self, address: int, data: bytes) -> None:
        """Copies data in. Raises OSError(EFAULT) if it does not fit what is placed there."""
        view, start = self._find(address, len(data))
        view[start : start + len(data)] = data

    def extent(self, address: int) -> tuple[int, int]:
        """(address, bytes) of the piece that was placed where an address lies. Raises OSError(EFAULT) if none was."""
        view, start = self._find(address, 0)
        return address - start, len(view)

    def release(self, address: int) -> None:
        """Gives an address back. Raises OSError(EFAULT) if nothing was placed there."""
        with self._lock:
            placed = self._placed.pop(address, None)
        if placed is None:
            raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))
        placed.close()

    def clear(self) -> None:
        """Releases everything."""
        with self._lock:
            pieces = list(self._placed.values())
            self._placed.clear()
        for placed in pieces:
            placed.close()

    def _find(self, address: int, size: int) -> tuple[memoryview, int]:
        with self._lock:
            placed = self._placed.get(address)
            if placed is None:
                placed = next((p for p in self._placed.values() if p.address <= address < p.address + p.size), None)
        if placed is None or size < 0 or address + size > placed.address + placed.size:
            raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))
        return placed.view, address - placed.address

    @staticmethod
    def _share(data: memoryview) -> _Placed:
        if not data.c_contiguous:
            raise UsageError("shared memory must be contiguous", field="data")
        view = data.cast("B")
        size = view.nbytes
        if not size:
            raise UsageError("shared memory must not be empty", field="data")
        # The array pins the memory where it is, as an export of the view: it goes first.
        pins = [(ctypes.c_char * size).from_buffer(view)]
        address = ctypes.addressof(pins[0])

        def close() -> None:
            pins.clear()
            view.release()

        if size % PAGE == 0 and address % PAGE:
            close()
            raise UsageError(
                f"shared memory of {size} bytes starts at 0x{address:x}, expected a multiple of {PAGE}: use an mmap",
                field="data",
            )
        return _Placed(address, size, view, close)

    @staticmethod
    def _copy(data: memoryview) -> _Placed:
        size = data.nbytes
        if size and size % PAGE == 0:
            pages = mmap.mmap(-1, size)
            placed = LinuxMemory._share(memoryview(pages))
            placed.view[:] = data.cast("B")
            share = placed.close

            def close() -> None:
                share()
                pages.close()

            placed.close = close
            return placed
        buffer = ctypes.create_string_buffer(data.tobytes(), max(size, 1))
        view = memoryview(buffer).cast("B")
        return _Placed(ctypes.addressof(buffer), max(size, 1), view, view.release)


class LinuxKernel:
    """The kernel as this process sees it (sev.launch.seam.Kernel)."""

    memory: LinuxMemory

    def __init__(self) -> None:
        self.memory = LinuxMemory()
        self._opened: set[int] = set()
        self._mapped: dict[int, mmap.mmap] = {}
        libc = ctypes.CDLL(None, use_errno=True)
        self._fallocate = libc.fallocate
        self._fallocate.restype = ctypes.c_int
        self._fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
        self._ioctl = libc.ioctl
        self._ioctl.restype = ctypes.c_int
        self._ioctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong]

    def open(self, path: str, flags: int) -> int:
        """open(2), close-on-exec. Raises OSError with the kernel's errno."""
        fd = os.open(path, flags | os.O_CLOEXEC)
        self._opened.add(fd)
        return fd

    def close(self, fd: int) -> None:
        """close(2). Raises OSError(EBADF). Linux closes it whatever else it answers, as where a server is gone."""
        self._opened.discard(fd)
        try:
            os.close(fd)
        except OSError as error:
            if error.errno == errno.EBADF:
                raise

    def ioctl(self, fd: int, request: int, argument: int = 0) -> int:
        """ioctl(2). Raises OSError with the kernel's errno."""
        answer = int(self._ioctl(fd, request, argument & 0xFFFF_FFFF_FFFF_FFFF))
        if answer < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return answer

    def ioctls(self, fd: int, request: int, arguments: Sequence[int]) -> tuple[int, int]:
        """The same ioctl(2) again and again, until one fails: (how many succeeded, errno or 0)."""
        for done, argument in enumerate(arguments):
            if self._ioctl(fd, request, argument & 0xFFFF_FFFF_FFFF_FFFF) < 0:
                return done, ctypes.get_errno()
        return len(arguments), 0

    def map(self, fd: int, size: int) -> memoryview:
        """mmap(2), shared and writable. Raises OSError with the kernel's errno."""
        mapped = mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        view = memoryview(mapped)
        self._mapped[id(view)] = mapped
        return view

    def unmap(self, view: memoryview) -> None:
        """Gives back what `map` answered. Raises UsageError if it is none of that, or parts of it are in use."""
        mapped = self._mapped.pop(id(view), None)
        if mapped is None:
            raise UsageError("this memory was not mapped here", field="view")
        try:
            view.release()
            mapped.close()
        except BufferError:
            raise UsageError("parts of this memory are still in use", field="view") from None

    def discard(self, fd: int, offset: int, size: int) -> None:
        """fallocate(2) that frees whole pages. Raises OSError with the kernel's errno."""
        if self._fallocate(fd, _PUNCH_HOLE_KEEP_SIZE, offset, size):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def exit(self) -> None:
        """Closes what `open` opened and is still open, and gives up all memory: the end of a process, in small."""
        while self._opened:
            fd = self._opened.pop()
            try:
                os.close(fd)
            except OSError:
                continue  # closed behind our back: nothing is left to do
        self.memory.clear()
