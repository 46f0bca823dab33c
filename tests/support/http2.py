"""HTTP/2 frames (RFC 9113) and headers (RFC 7541, literals alone) by hand: for clients that break the rules."""

from __future__ import annotations

import random
import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, END_HEADERS, ACK = 1, 4, 1
INITIAL_WINDOW_SIZE = 4


def frame(kind: int, payload: bytes = b"", *, flags: int = 0, stream: int = 0, length: int | None = None) -> bytes:
    """One frame; `length` if it is to claim another one than it has."""
    size = len(payload) if length is None else length
    return struct.pack(">HBBBI", size >> 8 & 0xFFFF, size & 0xFF, kind & 0xFF, flags & 0xFF, stream) + payload


def opening(*, window: int = 65535) -> bytes:
    """Preface and settings; `window` is what the server may send on a stream before it hears more."""
    return PREFACE + frame(SETTINGS, struct.pack(">HI", INITIAL_WINDOW_SIZE, window))


def literal(name: bytes, value: bytes) -> bytes:
    """A header field without an index."""
    return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value


def request(path: str, stream: int, *, more: bytes = b"", end: bool = False) -> bytes:
    """The headers of a gRPC call; `more` is appended to the block."""
    fields = {b":method": b"POST", b":scheme": b"http", b":path": path.encode(), b":authority": b"x"}
    fields.update({b"te": b"trailers", b"content-type": b"application/grpc"})
    block = b"".join(literal(name, value) for name, value in fields.items()) + more
    return frame(HEADERS, block, flags=END_HEADERS | (END_STREAM if end else 0), stream=stream)


def message(data: bytes, stream: int, *, claim: int | None = None, end: bool = True) -> bytes:
    """A gRPC message in frames of 16 KiB; `claim` if its prefix is to claim another length."""
    body = struct.pack(">BI", 0, len(data) if claim is None else claim) + data
    pieces = [body[at : at + 16384] for at in range(0, len(body), 16384)]
    return b"".join(
        frame(DATA, piece, flags=END_STREAM if end and piece is pieces[-1] else 0, stream=stream) for piece in pieces
    )


def call(path: str, stream: int, data: bytes = b"") -> bytes:
    """A whole call with one message."""
    return request(path, stream) + message(data, stream)


def noise(chance: random.Random) -> bytes:
    """A frame that no client would send: any type, flags, stream and length, and a payload of any bytes."""
    payload = chance.randbytes(chance.choice((0, 1, 4, 5, 8, 20, 300)))
    stream = chance.choice((0, 1, 2, 3, 5, chance.getrandbits(31), chance.getrandbits(32)))
    claimed = chance.choice((None, None, None, 0, 4, 8, 16384, chance.getrandbits(24)))
    return frame(chance.choice((*range(12), 0xFF)), payload, flags=chance.getrandbits(8), stream=stream, length=claimed)
