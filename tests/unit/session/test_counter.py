"""A cipher that is kept between packets gives what a fresh one gives."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sev.session.kdf import Counter, ctr


@given(
    st.binary(min_size=16, max_size=16),
    st.lists(st.tuples(st.binary(min_size=16, max_size=16), st.binary()), max_size=6),
)
def test_as_a_fresh_one(key: bytes, packets: list[tuple[bytes, bytes]]) -> None:
    counter = Counter(key)
    for iv, data in packets:
        assert counter.run(iv, data) == ctr(key, iv, data)
        assert counter.run(iv, counter.run(iv, data)) == data
