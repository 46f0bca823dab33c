"""Structures of the FUSE protocol, and requests that no good kernel would send."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sevd.simulator.fuse import wire
from sevd.simulator.fuse.nodes import Caller, StaticDirectory, TextFile
from sevd.simulator.fuse.operations import Operations

SIZES = {
    "HEADER": 40,
    "REPLY": 16,
    "INIT_OUT": 64,
    "SETATTR_IN": 88,
    "OPEN_OUT": 16,
    "READ_IN": 40,
    "WRITE_IN": 40,
    "WRITE_OUT": 8,
    "RELEASE_IN": 24,
    "FLUSH_IN": 24,
    "IOCTL_IN": 32,
    "IOCTL_OUT": 16,
    "STATFS_OUT": 80,
    "MKDIR_IN": 8,
    "FORGET_ONE": 16,
}
"""Of include/uapi/linux/fuse.h."""


@pytest.mark.parametrize(("name", "size"), SIZES.items(), ids=SIZES.keys())
def test_structures_have_the_kernels_sizes(name: str, size: int) -> None:
    assert getattr(wire, name).size == size


def test_entries_and_attributes_have_the_kernels_sizes() -> None:
    node = TextFile(lambda: b"")
    assert len(wire.attributes(node)) == 88
    assert len(wire.entry(node, 5)) == 128
    assert len(wire.attr_out(node)) == 104
    assert len(wire.directory_entry(b"name", 1, 8, 1)) == 32


@pytest.mark.parametrize(("minor", "length"), [(12, 24), (22, 24), (23, 64), (31, 64), (38, 64), (99, 64)])
def test_the_greeting_is_as_long_as_the_kernel_knows_it(minor: int, length: int) -> None:
    answer = wire.init_out(minor, 1 << 17, 0xFFFFFFFF)
    assert len(answer) == length
    major, spoken, _, flags = struct.unpack_from("=IIII", answer)
    assert (major, spoken) == (7, min(minor, wire.MINOR))
    assert flags == wire.ASYNC_READ | wire.BIG_WRITES | wire.PARALLEL_DIROPS
    assert struct.unpack_from("=I", wire.init_out(minor, 0, 0), 12) == (0,), "nothing that was not offered"


@given(
    st.integers(0, 60),
    st.sampled_from([0, 1, 2, 1 << 63]),
    st.binary(max_size=120),
)
def test_strange_requests_are_refused_or_answered_and_raise_nothing_else(opcode: int, nodeid: int, body: bytes) -> None:
    root = StaticDirectory()
    root.put("f", TextFile(lambda: b"text"))
    try:
        answer = Operations(root).answer(opcode, nodeid, Caller(1, 0, 0), memoryview(body))
    except (OSError, struct.error):
        return  # a short structure: the server makes EIO of it
    assert answer is None or isinstance(answer, bytes)
