"""Guest memory as the daemon sees it: what exists, what was measured, and the way in for a client's bytes.

A guest has up to three ranges: RAM from address 0, the firmware region that ends at 4 GiB, and from 4 GiB on the RAM
that does not fit below 2 GiB. A page can be written until a launch update takes it; from then on it is the guest's, and
a write would go to a copy that the guest never sees, or over what the guest can read. SNP takes whole pages; SEV and
SEV-ES take blocks of 16 bytes.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING

from sev.errors import LimitReached, UsageError
from sev.launch.machine import LOW_RAM_END
from sevd.guests.model import FOUR_GIB, PAGE, PageType, Region

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MAX_WRITE = 2 << 20
"""Bytes of one write: the content of one message."""

UPLOAD_FACTOR = 2
"""How often one stream may fill the guest's memory."""

LEAST_MESSAGE = 256
"""A message with less counts as one of so many bytes."""

BLOCK = 16
"""Bytes: what SEV and SEV-ES guests' regions are multiples of."""


class Intervals:
    """A set of addresses, kept as sorted ranges that neither touch nor overlap."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def __bool__(self) -> bool:
        return bool(self._starts)

    def overlap(self, start: int, end: int) -> int | None:
        """The first address of [start, end) that is in the set; None if none is."""
        index = bisect_right(self._ends, start)
        if index < len(self._starts) and self._starts[index] < end:
            return max(start, self._starts[index])
        return None

    def runs(self, first: int, most: int) -> list[tuple[int, int]]:
        """At most so many ranges (start, end), from the one that holds or follows an address on."""
        index = bisect_right(self._ends, first)
        return list(zip(self._starts[index : index + most], self._ends[index : index + most], strict=True))

    def within(self, start: int, end: int) -> list[tuple[int, int]]:
        """The parts of [start, end) that are in the set, as ranges (start, end)."""
        if start >= end:
            return []
        first, last = bisect_right(self._ends, start), bisect_left(self._starts, end)
        pieces = zip(self._starts[first:last], self._ends[first:last], strict=True)
        return [(max(start, left), min(end, right)) for left, right in pieces]

    def gaps(self, start: int, end: int) -> list[tuple[int, int]]:
        """The parts of [start, end) that are not in the set, as ranges (start, end)."""
        out = []
        for left, right in (*self.within(start, end), (end, end)):
            if start < left:
                out.append((start, left))
            start = right
        return out

    def add(self, start: int, end: int) -> None:
        """Puts [start, end) in."""
        if start >= end:
            return
        first, last = bisect_left(self._ends, start), bisect_right(self._starts, end)
        if first < last:
            start, end = min(start, self._starts[first]), max(end, self._ends[last - 1])
        self._starts[first:last] = [start]
        self._ends[first:last] = [end]

    def remove(self, start: int, end: int) -> None:
        """Takes [start, end) out."""
        first, last = bisect_right(self._ends, start), bisect_left(self._starts, end)
        if start >= end or first >= last:
            return
        left, right = self._starts[first], self._ends[last - 1]
        pieces = [(left, start)] * (left < start) + [(end, right)] * (end < right)
        self._starts[first:last] = [piece[0] for piece in pieces]
        self._ends[first:last] = [piece[1] for piece in pieces]


class MemoryMap:
    """Bounds of a guest's memory, and the pages that launch updates took or are about to take."""

    def __init__(self, memory_bytes: int, firmware_bytes: int, *, legacy: bool = False) -> None:
        self._grain = BLOCK if legacy else PAGE
        self._types = (PageType.NORMAL,) if legacy else tuple(PageType)
        low = min(memory_bytes, LOW_RAM_END)
        self._ranges = ((0, low), (FOUR_GIB - firmware_bytes, FOUR_GIB), (FOUR_GIB, FOUR_GIB + memory_bytes - low))
        self.size = memory_bytes + firmware_bytes
        """Bytes of it."""
        self.taken = Intervals()

    def check_bounds(self, gpa: int, size: int, field: str) -> None:
        """Raises UsageError unless [gpa, gpa + size) lies within one range."""
        for start, end in self._ranges:
            if start <= gpa and gpa + size <= end:
                return
        ranges = " or ".join(f"0x{start:x} to 0x{end:x}" for start, end in self._ranges if start < end)
        raise UsageError(
            f"{field}: 0x{gpa:x} and {size} bytes from there lie outside the guest's memory, expected within {ranges}",
            field=field,
        )

    def check_write(self, gpa: int, size: int) -> None:
        """Raises UsageError for a write outside memory, too long, or to pages that were taken already."""
        if size > MAX_WRITE:
            raise UsageError(f"data: {size} bytes, expected at most {MAX_WRITE} in one piece", field="data")
        self.check_bounds(gpa, size, "gpa")
        at = self.taken.overlap(gpa - gpa % PAGE, -(-(gpa + size) // PAGE) * PAGE) if size else None
        if at is not None:
            raise UsageError(
                f"gpa: the page at 0x{at - at % PAGE:x} is part of the launch already and cannot be written any more",
                field="gpa",
            )

    def check_regions(self, regions: Sequence[Region]) -> None:
        """Raises UsageError, naming the field, unless the regions can be measured in this order.

        Types known, addresses and sizes whole pages (of SEV and SEV-ES guests blocks) within memory, no page taken
        before or named twice.
        """
        named = Intervals()
        for index, region in enumerate(regions):
            field = f"regions[{index}]"
            if region.page_type not in self._types:
                known = ", ".join(f"{kind.name} ({kind.value})" for kind in self._types)
                raise UsageError(
                    f"{field}.page_type: {region.page_type}, expected one of {known}", field=f"{field}.page_type"
                )
            self.check_run(region.gpa, region.size, field)
            end = region.gpa + region.size
            at = self.taken.overlap(region.gpa, end)
            twice = named.overlap(region.gpa, end)
            if at is not None or twice is not None:
                where, why = (at, "is part of the launch already") if at is not None else (twice, "is named twice")
                raise UsageError(f"{field}.gpa: the page at 0x{where:x} {why}", field=f"{field}.gpa")
            named.add(region.gpa, end)

    def check_run(self, gpa: int, size: int, field: str) -> None:
        """Raises UsageError unless these are whole pages, or blocks, within memory."""
        if gpa % self._grain:
            raise UsageError(f"{field}.gpa: 0x{gpa:x} is not a multiple of {self._grain}", field=f"{field}.gpa")
        if size <= 0 or size % self._grain:
            raise UsageError(
                f"{field}.size_bytes: {size}, expected a multiple of {self._grain} above 0", field=f"{field}.size_bytes"
            )
        self.check_bounds(gpa, size, f"{field}.gpa")


class MemoryLoader:
    """Fills a guest's memory from a client's stream. `write` copies at once and never waits for the device."""

    def __init__(self, guest_id: str, memory: MemoryMap, view: Callable[[int, int], memoryview]) -> None:
        """`view` answers the writable bytes of an address range, or raises where the guest takes no more."""
        self.guest_id = guest_id
        self.loaded_bytes = 0
        self._memory = memory
        self._view = view
        self._most = self._left = UPLOAD_FACTOR * memory.size + MAX_WRITE

    def take(self, size: int) -> None:
        """Counts a message of so many bytes.

        Raises:
            LimitReached: The stream has carried more than there is memory to fill.
        """
        self._left -= max(size, LEAST_MESSAGE)
        if self._left < 0:
            raise LimitReached(
                f"this upload carries more than {self._most} bytes, {UPLOAD_FACTOR} times the guest's memory",
                remedy="Load each range once, in messages of some size.",
                metadata={"limit": "upload_bytes", "value": str(self._most)},
            )

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> int:
        """Writes data, at most 2 MiB, at a guest physical address; any alignment. Answers `loaded_bytes`.

        Raises:
            UsageError: Too long, outside memory, or to pages that are part of the launch (fields `gpa`, `data`).
            WrongState: The guest takes no memory any more.
            NotFound: The guest was deleted.
        """
        size = len(data)
        self._memory.check_write(gpa, size)
        # Asked for even where nothing is to be copied: the guest's state decides whether it may be.
        with self._view(gpa, size) as target:
            target[:] = data
        self.loaded_bytes += size
        return self.loaded_bytes
