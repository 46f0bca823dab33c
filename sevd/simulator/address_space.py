"""The address space of one simulated process: pieces of memory at made-up addresses (sev.launch.seam.Memory).

Addresses are 47-bit, at pages, never given twice, with an unmapped page after every piece: whoever reads past the end
or after `release` gets EFAULT.
"""

from __future__ import annotations

import bisect
import contextlib
import ctypes
import errno
import threading
from collections.abc import Iterator, Sequence

from sevd.simulator.errnos import fail

PAGE = 4096
BASE = 0x7000_0000_0000
TASK_SIZE = 1 << 47


class AddressSpace:
    """What a process has placed, by address. Safe for use from several threads."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._views: list[memoryview] = []
        self._next = BASE
        self._lock = threading.Lock()

    def place(self, data: bytes | bytearray | memoryview) -> int:
        """Puts data at a new address, at a page. Writable data are shared, others copied.

        Raises:
            OSError: ENOMEM: the address space is used up.
        """
        view = memoryview(bytearray(data) if isinstance(data, bytes) else data)
        if view.readonly:
            view = memoryview(bytearray(view))
        if view.format != "B" or view.ndim != 1:
            view = view.cast("B")
        with self._lock:
            address = self._next
            after = address + (len(view) + 2 * PAGE - 1) // PAGE * PAGE
            if after > TASK_SIZE:
                fail(errno.ENOMEM)
            self._next = after
            self._starts.append(address)
            self._views.append(view)
        return address

    def read(self, address: int, size: int) -> bytes:
        """Copies size bytes out. Raises OSError(EFAULT) if they are not all placed."""
        return bytes(self.view(address, size))

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Copies data in. Raises OSError(EFAULT) if it does not fit what is placed there."""
        self.view(address, len(data))[:] = data

    def view(self, address: int, size: int) -> memoryview:
        """The bytes themselves, writable. Raises OSError(EFAULT) if they are not all placed."""
        view, offset = self._find(address)
        if size < 0 or offset + size > len(view):
            fail(errno.EFAULT)
        return view[offset : offset + size]

    @contextlib.contextmanager
    def lent(self, ranges: Sequence[tuple[int, int]]) -> Iterator[None]:
        """What is here is worked on where it is; see `sevd.simulator.remote.RemoteMemory.lent`."""
        del ranges
        yield

    @contextlib.contextmanager
    def changing(self, address: int, size: int) -> Iterator[memoryview]:
        """The bytes, writable; what is written is there after the block, if that does not raise.

        Raises:
            OSError: EFAULT: they are not all placed.
        """
        yield self.view(address, size)

    def available(self, address: int, *, writable: bool = False) -> int:
        """How many bytes can be read (and written) from this address on; 0 if nothing is placed there."""
        del writable  # all of it is
        try:
            view, offset = self._find(address)
        except OSError:
            return 0
        return len(view) - offset

    def location(self, address: int) -> int:
        """Where a byte lies physically, as far as the model goes: its offset in the page is the address's, and the
        page is one number wherever the same memory is placed at whole pages. Raises OSError(EFAULT)."""
        view, offset = self._find(address)
        lies = ctypes.addressof(ctypes.c_char.from_buffer(view)) + offset
        return lies - (lies - address) % PAGE

    def fill(self, address: int, target: memoryview) -> int:
        """Copies into `target` what can be read from this address on; how many bytes that was, 0 if none."""
        try:
            view, offset = self._find(address)
        except OSError:
            return 0
        size = min(len(target), len(view) - offset)
        target[:size] = view[offset : offset + size]
        return size

    def release(self, address: int) -> None:
        """Gives a piece back. Raises OSError(EINVAL) if none starts there."""
        with self._lock:
            index = bisect.bisect_left(self._starts, address)
            if index == len(self._starts) or self._starts[index] != address:
                fail(errno.EINVAL)
            del self._starts[index]
            # Not released by force: a thread inside an ioctl may be using a part of it.
            del self._views[index]

    def clear(self) -> None:
        """Gives everything back."""
        with self._lock:
            self._starts.clear()
            self._views.clear()

    def _find(self, address: int) -> tuple[memoryview, int]:
        with self._lock:
            index = bisect.bisect_right(self._starts, address) - 1
            if index >= 0:
                view, offset = self._views[index], address - self._starts[index]
                if offset < len(view):
                    return view, offset
        return fail(errno.EFAULT)
