"""Private guest memory: contents and page states of a guest_memfd, and sets of guest frame numbers.

Contents exist in chunks of 2 MiB that are made when a page of theirs is first added to a guest. The states are those of
the reverse map (RMP): one byte for each page, as the firmware model reads and writes them.
"""

from __future__ import annotations

import bisect
import contextlib
import mmap
from collections.abc import Iterator

PAGE = 4096
CHUNK_PAGES = 512

HYPERVISOR = 0
PRE_GUEST = 1
GUEST_VALID = 2


class Chunk:
    """2 MiB: contents and one RMP state byte for each page."""

    __slots__ = ("content", "states")

    def __init__(self, whole: bool) -> None:
        # An mmap, not a bytearray: pages come zeroed and only when they are touched.
        pages = mmap.mmap(-1, CHUNK_PAGES * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if whole:
            with contextlib.suppress(OSError):
                pages.madvise(mmap.MADV_HUGEPAGE)
        self.content = memoryview(pages)
        self.states = memoryview(bytearray(CHUNK_PAGES))

    def pages(self, first: int, count: int) -> memoryview:
        """Contents of a run of pages."""
        return self.content[first * PAGE : (first + count) * PAGE]

    def unassigned(self, first: int, most: int) -> int:
        """How many pages from `first` on, at most so many, belong to the hypervisor still."""
        states = bytes(self.states[first : first + most])
        return len(states) - len(states.lstrip(bytes((HYPERVISOR,))))


class GuestMemory:
    """The pages behind one guest_memfd, by page index. Its size is the descriptor's affair."""

    __slots__ = ("_chunks",)

    def __init__(self) -> None:
        self._chunks: dict[int, Chunk] = {}

    def locate(self, page: int, most: int = 1) -> tuple[Chunk, int]:
        """The chunk of a page, and its index in it; `most` pages from there on are about to be used."""
        number, index = divmod(page, CHUNK_PAGES)
        chunk = self._chunks.get(number)
        if chunk is None:
            chunk = self._chunks[number] = Chunk(most >= CHUNK_PAGES // 2)
        return chunk, index

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
