"""Upload messages read without copying: the same answer as the generated class, and no other failure."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given
from hypothesis import strategies as st

from sev.errors import MalformedInput
from sev.v1 import guest_pb2
from sevd.api.chunks import read_chunk


@given(st.text(max_size=40), st.integers(0, 2**64 - 1), st.binary(max_size=20000))
def test_what_the_generated_class_writes_is_read(guest_id: str, gpa: int, data: bytes) -> None:
    raw = guest_pb2.LoadGuestMemoryRequest(guest_id=guest_id, gpa=gpa, data=data).SerializeToString()
    got = read_chunk(raw)
    assert (got[0], got[1], bytes(got[2])) == (guest_id, gpa, data)


@given(st.one_of(st.binary(max_size=60), st.lists(st.sampled_from([b"\x0a\x01a", b"\x11", b"\x00" * 8, b"\x1a", b"\x80",
       b"\xff\xff\xff\xff\x7f", b"\x01", b"\x22\x01x", b"\x12", b"\x08\x05"]), max_size=8).map(b"".join)))  # fmt: skip
@example(b"\x1a\x05ab")
@example(b"\x0a\x01\xff")
@example(b"\x1a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01")
@example(b"\x11\x01")
def test_any_bytes_are_read_as_the_generated_class_reads_them(raw: bytes) -> None:
    try:
        message = guest_pb2.LoadGuestMemoryRequest.FromString(raw)
    except DecodeError:
        with pytest.raises(MalformedInput, match="LoadGuestMemoryRequest"):
            read_chunk(raw)
        return
    guest_id, gpa, data = read_chunk(raw)
    assert (guest_id, gpa, bytes(data)) == (message.guest_id, message.gpa, message.data)


def test_content_is_not_copied() -> None:
    raw = guest_pb2.LoadGuestMemoryRequest(gpa=4096, data=b"x" * 5000).SerializeToString()
    assert read_chunk(raw)[2].obj is raw
