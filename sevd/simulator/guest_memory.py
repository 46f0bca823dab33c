"""Private guest memory: contents and page states of a guest_memfd, and sets of guest frame numbers.

Contents exist in chunks of 2 MiB that are made when a page of theirs is first added to a guest: in memory of the
model's own, or in a memfd that the guest's owner has too and runs the guest from. The states are those of the reverse
map (RMP): one byte for each page, as the firmware model reads and writes them.
"""

from __future__ import annotations

import bisect
import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
from collections.abc import Iterator

from sevd.simulator.errnos import fail, refusal

PAGE = 4096
CHUNK_PAGES = 512

HYPERVISOR = 0
PRE_GUEST = 1
GUEST_VALID = 2


CHUNK = CHUNK_PAGES * PAGE

_SEALS = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
_PUNCH_HOLE_KEEP_SIZE = 0x3
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


class Chunk:
    """2 MiB, or less at the end: contents and one RMP state byte for each page."""

    __slots__ = ("content", "states")

    def __init__(self, content: memoryview) -> None:
        self.content = content
        self.states = memoryview(bytearray(CHUNK_PAGES))

    def pages(self, first: int, count: int) -> memoryview:
        """Contents of a run of pages."""
        return self.content[first * PAGE : (first + count) * PAGE]

    def unassigned(self, first: int, most: int) -> int:
        """How many pages from `first` on, at most so many, belong to the hypervisor still."""
        states = bytes(self.states[first : first + most])
        return len(states) - len(states.lstrip(bytes((HYPERVISOR,))))


class GuestMemory:
    """The pages behind one guest_memfd, by page index.

    Args:
        pages: How many there are.
        shared: They lie in a memfd, for another process to map; sealed, so that nobody can cut it off under the model.

    Attributes:
        fd: The memfd; -1 for memory of the model's own.

    Raises:
        OSError: ENOMEM: there is no room for it.
    """

    __slots__ = ("_chunks", "_mapped", "fd")

    def __init__(self, pages: int, *, shared: bool = False) -> None:
        self._chunks: dict[int, Chunk] = {}
        self._mapped: memoryview | None = None
        self.fd = -1
        if shared:
            self._share(pages * PAGE)

    def locate(self, page: int, most: int = 1) -> tuple[Chunk, int]:
        """The chunk of a page, and its index in it; `most` pages from there on are about to be used."""
        number, index = divmod(page, CHUNK_PAGES)
        chunk = self._chunks.get(number)
        if chunk is None:
            chunk = self._chunks[number] = Chunk(self._content(number, most >= CHUNK_PAGES // 2))
        return chunk, index

    def discard(self, page: int, count: int) -> None:
        """Frees a run of pages: they read as zeros, and are the hypervisor's again. Raises OSError."""
        for number in sorted(self._chunks):
            first = max(page - number * CHUNK_PAGES, 0)
            last = min(page + count - number * CHUNK_PAGES, CHUNK_PAGES)
            if first >= last:
                continue
            if self._mapped is None and last - first == CHUNK_PAGES:
                del self._chunks[number]
                continue
            chunk = self._chunks[number]
            chunk.states[first:last] = bytes((HYPERVISOR,)) * (last - first)
            if self._mapped is None:
                chunk.pages(first, last - first)[:] = bytes((last - first) * PAGE)
        if self._mapped is not None:
            size = min(count * PAGE, len(self._mapped) - page * PAGE)
            if size > 0 and _libc.fallocate(self.fd, _PUNCH_HOLE_KEEP_SIZE, page * PAGE, size) < 0:
                fail(ctypes.get_errno())

    def close(self) -> None:
        """Gives the memory up. Whoever has the memfd still has its contents."""
        self._chunks.clear()
        self._mapped = None
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def _content(self, number: int, whole: bool) -> memoryview:
        if self._mapped is not None:
            return self._mapped[number * CHUNK : (number + 1) * CHUNK]
        # An mmap, not a bytearray: pages come zeroed and only when they are touched.
        pages = mmap.mmap(-1, CHUNK, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if whole:
            with contextlib.suppress(OSError):
                pages.madvise(mmap.MADV_HUGEPAGE)
        return memoryview(pages)

    def _share(self, size: int) -> None:
        self.fd = os.memfd_create("guest_memfd", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.fd, size)
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, _SEALS)
            # As a whole: the module duplicates the descriptor for every mapping.
            self._mapped = memoryview(mmap.mmap(self.fd, size))
        except (OSError, ValueError, OverflowError):
            self.close()
            raise refusal(errno.ENOMEM) from None

    def assigned(self) -> int:
        """How many pages belong to the guest."""
        return sum(CHUNK_PAGES - bytes(chunk.states).count(HYPERVISOR) for chunk in self._chunks.values())


class FrameSet:
    """A set of guest frame numbers, kept as disjoint ranges in order."""

    __slots__ = ("_ends", "_starts")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(zip(self._starts, self._ends, strict=True))

    def add(self, start: int, end: int) -> None:
        """Puts the frames start to end - 1 in."""
        low = bisect.bisect_left(self._ends, start)
        high = bisect.bisect_right(self._starts, end)
        if low < high:
            start, end = min(start, self._starts[low]), max(end, self._ends[high - 1])
        self._starts[low:high] = [start]
        self._ends[low:high] = [end]

    def remove(self, start: int, end: int) -> None:
        """Takes the frames start to end - 1 out."""
        low = bisect.bisect_right(self._ends, start)
        high = bisect.bisect_left(self._starts, end)
        if low >= high:
            return
        first, last = self._starts[low], self._ends[high - 1]
        kept = [(a, b) for a, b in ((first, start), (end, last)) if a < b]
        self._starts[low:high] = [a for a, _ in kept]
        self._ends[low:high] = [b for _, b in kept]

    def run(self, start: int, most: int) -> int:
        """How many frames from start on, at most so many, are in the set without a gap."""
        index = bisect.bisect_right(self._starts, start) - 1
        if index < 0 or self._ends[index] <= start:
            return 0
        return min(most, self._ends[index] - start)

    def gap(self, start: int, most: int) -> int:
        """How many frames from start on, at most so many, are not in the set without a break."""
        index = bisect.bisect_right(self._starts, start) - 1
        if index >= 0 and self._ends[index] > start:
            return 0
        after = self._starts[index + 1] if index + 1 < len(self._starts) else start + most
        return min(most, after - start)
