"""Sets of addresses: what is in them, and what is not, against sets of numbers."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st

from sevd.guests.memory import Intervals

RANGES = st.tuples(st.integers(0, 60), st.integers(0, 60))


def numbers(runs: list[tuple[int, int]]) -> set[int]:
    return {number for start, end in runs for number in range(start, end)}


@example([(True, (0, 2))], (1, 1))
@given(st.lists(st.tuples(st.booleans(), RANGES), max_size=12), RANGES)
def test_parts_of_a_range(changes: list[tuple[bool, tuple[int, int]]], asked: tuple[int, int]) -> None:
    held, expected = Intervals(), set[int]()
    for adds, (start, end) in changes:
        (held.add if adds else held.remove)(start, end)
        expected = expected | set(range(start, end)) if adds else expected - set(range(start, end))
    start, end = min(asked), max(asked)
    within, gaps = held.within(start, end), held.gaps(start, end)
    whole = set(range(start, end))
    assert numbers(within) == expected & whole
    assert numbers(gaps) == whole - expected
    for runs in (within, gaps):
        assert all(left < right for left, right in runs)
        assert all(before[1] < after[0] for before, after in pairwise(runs))
