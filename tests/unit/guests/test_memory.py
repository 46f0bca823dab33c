"""Intervals, bounds, and a client's writes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sev.errors import NotFound, UsageError, WrongState
from sevd.guests import PageType, Region
from sevd.guests.memory import MAX_WRITE, Intervals, MemoryMap
from tests.support.hosting import ALICE, FIRMWARE, FIRMWARE_GPA, hosting

RAM = 16 << 20
SPANS = st.tuples(st.booleans(), st.integers(0, 40), st.integers(0, 12))


@given(st.lists(SPANS, max_size=40), st.integers(0, 50), st.integers(1, 10))
def test_intervals_are_a_set(changes: list[tuple[bool, int, int]], start: int, size: int) -> None:
    intervals, plain = Intervals(), set[int]()
    for added, at, length in changes:
        span = range(at, at + length)
        if added:
            intervals.add(at, at + length)
            plain.update(span)
        else:
            intervals.remove(at, at + length)
            plain.difference_update(span)
    assert intervals.overlap(start, start + size) == min(plain.intersection(range(start, start + size)), default=None)
    assert bool(intervals) == bool(plain)
    assert all(end < following for end, following in zip(intervals._ends, intervals._starts[1:], strict=False))


@given(st.integers(-(1 << 70), 1 << 70), st.integers(0, 1 << 70))
def test_bounds_never_fail_otherwise(gpa: int, size: int) -> None:
    memory = MemoryMap(RAM, FIRMWARE)
    inside = (gpa >= 0 and gpa + size <= RAM) or (gpa >= FIRMWARE_GPA and gpa + size <= 4 << 30)
    # A place of no length at 4 GiB is the (empty) start of the RAM above.
    inside = inside or (gpa == 4 << 30 and size == 0)
    if inside:
        memory.check_bounds(gpa, size, "gpa")
    else:
        with pytest.raises(UsageError, match="outside the guest's memory"):
            memory.check_bounds(gpa, size, "gpa")


def test_ram_that_does_not_fit_below_goes_on_at_four_gib() -> None:
    memory = MemoryMap(5 << 30, FIRMWARE)
    memory.check_bounds((2 << 30) - 4096, 4096, "gpa")
    memory.check_bounds(4 << 30, 3 << 30, "gpa")
    for gpa, size in ((2 << 30, 4096), ((7 << 30), 4096), ((4 << 30) - 4096, 8192)):
        with pytest.raises(UsageError):
            memory.check_bounds(gpa, size, "gpa")


WRITES = [
    ("too long", 0, MAX_WRITE + 1, "data"),
    ("beyond memory", RAM - 10, 11, "gpa"),
    ("in the hole", 1 << 31, 1, "gpa"),
    ("across the end of all", (1 << 64) - 1, 2, "gpa"),
    ("below the firmware", FIRMWARE_GPA - 1, 2, "gpa"),
    ("measured page", 0x100000 + 4095, 1, "gpa"),
    ("into a measured page", 0x100000 - 1, 2, "gpa"),
    ("from a measured page", 0x100FFF, 2, "gpa"),
]


@pytest.mark.parametrize(("gpa", "size", "field"), [case[1:] for case in WRITES], ids=[case[0] for case in WRITES])
async def test_a_write_that_cannot_be_meant(tmp_path: Path, gpa: int, size: int, field: str) -> None:
    async with hosting(tmp_path) as it:
        guest = await it.launching()
        await it.guests.update(ALICE, guest.guest_id, [Region(0x100000, 4096, PageType.ZERO)])
        loader = await it.guests.load(ALICE, guest.guest_id)
        with pytest.raises(UsageError) as refused:
            loader.write(gpa, bytes(size))
        assert refused.value.field == field
        assert loader.loaded_bytes == 0
        assert loader.write(0x101000, b"x") == 1


async def test_writes_of_any_alignment_arrive(tmp_path: Path) -> None:
    async with hosting(tmp_path) as it:
        guest = await it.created()
        loader = await it.guests.load(ALICE, guest.guest_id)
        loader.write(5, b"abc")
        loader.write(8, bytearray(b"def"))
        loader.write(11, memoryview(b"ghi"))
        loader.write(0x400000, b"")
        assert loader.write(RAM - 3, b"end") == 12
        hosted = it.guests._registry.find(ALICE, guest.guest_id)
        assert hosted.machine is not None
        with hosted.machine.memory(0, 16) as view:
            assert bytes(view) == b"\0\0\0\0\0abcdefghi\0\0"


async def test_a_loader_stops_with_the_guest(tmp_path: Path) -> None:
    async with hosting(tmp_path) as it:
        guest = await it.launching()
        loader = await it.guests.load(ALICE, guest.guest_id)
        loader.write(0, b"x")
        await it.guests.finish(ALICE, guest.guest_id)
        for data in (b"x", b""):
            with pytest.raises(WrongState):
                loader.write(0, data)
        other = await it.created()
        loader = await it.guests.load(ALICE, other.guest_id)
        await it.guests.delete(ALICE, other.guest_id)
        with pytest.raises(NotFound):
            loader.write(0, b"x")
        lost = await it.created()
        loader = await it.guests.load(ALICE, lost.guest_id)
        await it.guests.lose("gone")
        with pytest.raises(WrongState):
            loader.write(0, b"x")
