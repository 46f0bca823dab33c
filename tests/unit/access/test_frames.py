"""Frames are read along, and cost what they make the server do."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sevd.access.frames import (
    BYTE_SECONDS,
    CONTINUATION,
    DATA,
    FRAME_SECONDS,
    HEADERS,
    PING,
    RST_STREAM,
    Frames,
)

CALL = 400e-6


def frame(kind: int, payload: bytes = b"", *, stream: int = 0, flags: int = 0) -> bytes:
    return struct.pack(">HBBBI", len(payload) >> 8, len(payload) & 0xFF, kind, flags, stream) + payload


def calls(count: int) -> bytes:
    return b"".join(
        frame(HEADERS, b"h" * 30, stream=2 * n + 1) + frame(DATA, b"d" * 5, stream=2 * n + 1) for n in range(count)
    )


def test_calls_are_counted() -> None:
    frames = Frames()
    data = calls(3)
    read, cost = frames.read(memoryview(data), 1.0, 1 << 20, CALL)
    assert (read, frames.calls, frames.frames) == (len(data), 3, 6)
    assert 3 * CALL < cost < 3 * CALL + 50e-6


def test_more_headers_of_a_call_are_no_call() -> None:
    frames = Frames()
    frames.read(memoryview(calls(2) + frame(HEADERS, stream=1) + frame(HEADERS, stream=3)), 1.0, 1 << 20, CALL)
    assert frames.calls == 2


def test_no_more_is_read_than_is_allowed() -> None:
    frames = Frames()
    data = calls(10)
    read, _ = frames.read(memoryview(data), 2.5 * CALL, 1 << 20, CALL)
    assert frames.calls == 3
    assert data[read:].startswith(frame(DATA, b"d" * 5, stream=5))
    again, _ = frames.read(memoryview(data)[read:], 0.0, 1 << 20, CALL)
    assert again == 0
    rest, _ = frames.read(memoryview(data)[read:], 1.0, 1 << 20, CALL)
    assert (read + rest, frames.calls) == (len(data), 10)


def test_no_more_calls_begin_than_may() -> None:
    frames = Frames()
    data = memoryview(calls(10))
    read, _ = frames.read(data, 1.0, 4, CALL)
    assert frames.calls == 4
    assert frames.read(data[read:], 1.0, 0, CALL)[0] == 0
    read += frames.read(data[read:], 1.0, 1, CALL)[0]
    assert frames.calls == 5
    assert read < len(data)


def test_a_payload_that_has_begun_goes_on() -> None:
    frames = Frames()
    data = frame(DATA, bytes(100_000), stream=1)
    first, _ = frames.read(memoryview(data)[:1000], 1.0, 1 << 20, CALL)
    assert first == 1000
    assert frames.read(memoryview(data)[1000:], 1e-9, 1 << 20, CALL)[0] == len(data) - 1000


@pytest.mark.parametrize(
    ("data", "least"),
    [
        pytest.param(frame(PING, bytes(8)), FRAME_SECONDS, id="a ping"),
        pytest.param(frame(RST_STREAM, bytes(4), stream=1), 50e-6, id="a reset"),
        pytest.param(frame(DATA, bytes(1 << 20), stream=1), (1 << 20) * BYTE_SECONDS, id="much data"),
        pytest.param(frame(CONTINUATION, bytes(16384), stream=1), 300e-6, id="a header block"),
        pytest.param(frame(0xFF, bytes(8)), FRAME_SECONDS, id="an unknown frame"),
        pytest.param(frame(DATA, stream=1), FRAME_SECONDS, id="an empty frame"),
    ],
)
def test_what_else_costs(data: bytes, least: float) -> None:
    assert Frames().read(memoryview(data), 1.0, 1 << 20, CALL)[1] >= least


@given(st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=40), st.integers(0, 9))), st.data())
def test_pieces_of_any_size_are_read_the_same(parts: list[tuple[int, bytes, int]], data: st.DataObject) -> None:
    whole = b"".join(frame(kind, payload, stream=stream) for kind, payload, stream in parts)
    once = Frames()
    _, expected = once.read(memoryview(whole), 1e9, 1 << 20, CALL)
    pieces, total, at = Frames(), 0.0, 0
    while at < len(whole):
        size = data.draw(st.integers(1, 30))
        piece = memoryview(whole)[at : at + size]
        while piece:
            read, cost = pieces.read(
                piece, data.draw(st.sampled_from([1e-9, 5e-6, 1.0])), data.draw(st.integers(1, 5)), CALL
            )
            piece, total, at = piece[read:], total + cost, at + read
    assert (pieces.calls, pieces.frames) == (once.calls, once.frames)
    assert total == pytest.approx(expected)


@given(st.binary(max_size=300), st.floats(0, 1e-3))
def test_any_bytes_are_read(data: bytes, allowance: float) -> None:
    frames = Frames()
    read, cost = frames.read(memoryview(data), allowance, 1 << 20, CALL)
    assert 0 <= read <= len(data)
    assert cost >= 0
    assert frames.read(memoryview(data)[read:], 1e9, 1 << 20, CALL)[0] == len(data) - read
