"""What a caller's bytes will cost the server, told from the headers of their HTTP/2 frames (RFC 9113, 4.1).

A header has 9 bytes: length of the payload (24 bits), type, flags, stream (31 bits), most significant byte first. What
is wrong with a frame is the server's to say; here only what it makes the server do is estimated, so that no caller can
make it do more than his share (sevd.access.turns).
"""

from __future__ import annotations

import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What a client's connection begins with (RFC 9113, 3.4)."""

HEADER_BYTES = 9

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)

BYTE_SECONDS = 0.5e-9
"""Of a byte of payload: received, copied twice, put into a guest's memory."""

FRAME_SECONDS = 4e-6
"""Of a frame of any kind: read, understood, perhaps answered."""

RESET_SECONDS = 60e-6
"""Of the end of a call that its caller does not want any more."""

BLOCK_BYTE_SECONDS = 20e-9
"""Of a byte of headers, which are unpacked one by one."""

_HEADER = struct.Struct(">HBBBI")


class Frames:
    """Reads along what one connection sends after its preface.

    Attributes:
        data: Bytes of messages.
        calls: Calls begun.
        frames: Frames begun.
    """

    __slots__ = ("_data", "_head", "_last", "_left", "_rate", "calls", "data", "frames")

    def __init__(self) -> None:
        self._head = b""
        self._left = 0
        self._rate = BYTE_SECONDS
        self._last = 0
        self._data = False
        self.data = 0
        self.calls = 0
        self.frames = 0

    def read(self, data: memoryview, allowance: float, calls: int, call_seconds: float) -> tuple[int, float]:
        """Reads on until what was read costs as much as is allowed.

        Args:
            data: What follows on what was read before.
            allowance: Seconds; at 0 or less nothing is read that begins a frame.
            calls: How many calls may begin; at 0 or less nothing is read that begins a frame.
            call_seconds: What a call costs.

        Returns:
            (bytes read, what they cost in seconds: the last frame may exceed the allowance). Less than all bytes are
            read only up to where a frame begins.
        """
        at, size, cost, left = 0, len(data), 0.0, self._left
        calls += self.calls
        while at < size:
            if left:
                step = min(left, size - at)
                left -= step
                at += step
                cost += step * self._rate
                if self._data:
                    self.data += step
                continue
            if (cost >= allowance or self.calls >= calls) and not self._head:
                break
            if self._head or size - at < HEADER_BYTES:
                take = min(HEADER_BYTES - len(self._head), size - at)
                self._head += bytes(data[at : at + take])
                at += take
                if len(self._head) < HEADER_BYTES:
                    break
                high, low, kind, _, stream = _HEADER.unpack(self._head)
                self._head = b""
            else:
                high, low, kind, _, stream = _HEADER.unpack_from(data, at)
                at += HEADER_BYTES
            left = high << 8 | low
            self.frames += 1
            cost += FRAME_SECONDS
            self._rate = BYTE_SECONDS
            self._data = kind == DATA
            if kind == HEADERS:
                self._rate = BLOCK_BYTE_SECONDS
                stream &= 0x7FFFFFFF
                if stream > self._last:
                    self._last = stream
                    self.calls += 1
                    cost += call_seconds
            elif kind == CONTINUATION:
                self._rate = BLOCK_BYTE_SECONDS
            elif kind == RST_STREAM:
                cost += RESET_SECONDS
        self._left = left
        return at, cost
