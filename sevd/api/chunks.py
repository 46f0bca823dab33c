"""Reads the messages of a memory upload without copying their content.

The generated class copies `data` out of the message; at a gigabyte a second that copy is what an upload costs. What
`sev.v1.LoadGuestMemoryRequest` looks like on the wire is fixed, so its three fields are read where they lie (Protocol
Buffers encoding: varint tags, little-endian fixed64, length-delimited strings). Anything but these fields in their
plain form goes through the generated class, which also decides what is malformed.
"""

from __future__ import annotations

from google.protobuf.message import DecodeError

from sev.errors import MalformedInput
from sev.v1 import guest_pb2

_GUEST_ID = 1 << 3 | 2
_GPA = 2 << 3 | 1
_DATA = 3 << 3 | 2


def read_chunk(raw: bytes) -> tuple[str, int, memoryview]:
    """(guest id, guest physical address, content) of a serialised LoadGuestMemoryRequest.

    Raises:
        MalformedInput: It is none.
    """
    return _plain(raw) or _generated(raw)


def _plain(raw: bytes) -> tuple[str, int, memoryview] | None:
    """The fields of a message in plain form; None for any other."""
    guest_id, gpa, data = "", 0, memoryview(b"")
    size, at = len(raw), 0
    while at < size:
        tag = raw[at]
        at += 1
        if tag == _GPA and at + 8 <= size:
            gpa = int.from_bytes(raw[at : at + 8], "little")
            at += 8
        elif tag in (_DATA, _GUEST_ID):
            length, shift = 0, 0
            while True:
                if at >= size or shift > 28:
                    return None
                byte = raw[at]
                at += 1
                length |= (byte & 0x7F) << shift
                shift += 7
                if byte < 0x80:
                    break
            if length > size - at:
                return None
            content = memoryview(raw)[at : at + length]
            at += length
            if tag == _DATA:
                data = content
            else:
                try:
                    guest_id = str(content, "utf-8")
                except UnicodeDecodeError:
                    return None
        else:
            return None
    return guest_id, gpa, data


def _generated(raw: bytes) -> tuple[str, int, memoryview]:
    try:
        message = guest_pb2.LoadGuestMemoryRequest.FromString(raw)
    except DecodeError:
        raise MalformedInput("a message of the upload is no sev.v1.LoadGuestMemoryRequest", field="data") from None
    return message.guest_id, message.gpa, memoryview(message.data)
