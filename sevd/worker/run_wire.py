"""What goes over a run connection after its first message: packets of SOCK_SEQPACKET, one byte of kind and a body.

    daemon → worker   START     u32: how many writes a vCPU may be ahead of their completion
                      REQUEST   a serialised sev.v1.RunGuestRequest: completions, control
    worker → daemon   EXITS     a serialised sev.v1.RunGuestResponse with exits
                      STATE     JSON: state ("running", "paused", "stopped"), reason, failed
                      ERROR     JSON: an error (sevd.worker.wire); the connection ends

The daemon passes the client's requests and the worker's exits on as they are. A worker does not load protobuf for
them: these few fields are written and read here (Protocol Buffers encoding: varint tags, length-delimited bytes), and
what a client sends is checked byte by byte.
"""

from __future__ import annotations

from sev.abi import kvm_run
from sev.errors import MalformedInput

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from sev.abi.kvm_run import Exit

START = b"G"
REQUEST = b"C"
EXITS = b"E"
STATE = b"S"
ERROR = b"F"

REQUEST_BYTES = 64 << 10
"""Largest request that fits a packet."""

POSTED_WRITES = 256
"""Most writes that a vCPU may be ahead of their completion."""

NO_CONTROL, PAUSE, RESUME, STOP = range(4)
"""sev.v1.RunControl."""

_COMPLETIONS, _CONTROL = 3 << 3 | 2, 4 << 3
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_VARINT = 10


_SMALL = [bytes((value,)) for value in range(0x80)]


def varint(value: int) -> bytes:
    """An unsigned number below 2^64."""
    if value < 0x80:
        return _SMALL[value]
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _fields(*values: int) -> bytes:
    """Numbers as the fields 1, 2, …; zeros are left out, as the generated classes do."""
    return b"".join(bytes((number << 3,)) + varint(value) for number, value in enumerate(values, 1) if value)


def _data(number: int, data: bytes) -> bytes:
    return bytes((number << 3 | _BYTES,)) + varint(len(data)) + data


def _counted(kind: int, words: tuple[int, ...]) -> bytes:
    """A number as field 1, and a packed list of numbers as field 2."""
    packed = b"".join(map(varint, words))
    return _fields(kind) + (_data(2, packed) if packed else b"")


def encode_exit(vcpu: int, sequence: int, found: Exit) -> bytes:
    """A sev.v1.RunGuestResponse with this one exit; several of them joined are one with several."""
    if isinstance(found, kvm_run.PortWrite):
        field, body = 4, _fields(found.port, found.size) + _data(3, found.data)
    elif isinstance(found, kvm_run.PortRead):
        field, body = 3, _fields(*found)
    elif isinstance(found, kvm_run.MmioRead):
        field, body = 5, _fields(*found)
    elif isinstance(found, kvm_run.MmioWrite):
        field, body = 6, _fields(found.gpa) + _data(2, found.data)
    elif isinstance(found, kvm_run.Halt):
        field, body = 7, b""
    elif isinstance(found, kvm_run.Shutdown):
        field, body = 8, b""
    elif isinstance(found, kvm_run.FailedEntry):
        field, body = 9, _fields(*found)
    elif isinstance(found, kvm_run.InternalError):
        field, body = 10, _counted(*found)
    elif isinstance(found, kvm_run.SystemEvent):
        field, body = 11, _counted(*found)
    elif isinstance(found, kvm_run.MemoryFault):
        field, body = 12, _fields(found.gpa, found.size, int(found.private))
    elif isinstance(found, kvm_run.Hypercall):
        field, body = 13, _counted(*found)
    else:
        field, body = 14, _fields(found.reason if isinstance(found, kvm_run.Other) else kvm_run.EXIT_INTR)
    inner = _fields(vcpu, sequence) + _data(field, body)
    return _data(1, inner)


class Completion:
    """The answer to an exit: `data` for a read, nothing for others."""

    __slots__ = ("data", "sequence", "vcpu")

    def __init__(self, vcpu: int, sequence: int, data: bytes) -> None:
        self.vcpu = vcpu
        self.sequence = sequence
        self.data = data


def decode_request(data: bytes) -> tuple[list[Completion], int]:
    """(completions, control) of a serialised sev.v1.RunGuestRequest; fields of a later version are passed over.

    Raises:
        MalformedInput: It is none.
    """
    completions: list[Completion] = []
    control = NO_CONTROL
    for tag, value in _parse(data):
        if tag == _COMPLETIONS and isinstance(value, bytes):
            numbers, content = [0, 0], b""
            for inner, part in _parse(value):
                if inner in (1 << 3, 2 << 3) and isinstance(part, int):
                    numbers[(inner >> 3) - 1] = part
                elif inner == 3 << 3 | _BYTES and isinstance(part, bytes):
                    content = part
            completions.append(Completion(numbers[0], numbers[1], content))
        elif tag == _CONTROL and isinstance(value, int):
            control = value
    return completions, control


def _parse(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(tag, value) of every field."""
    at, size = 0, len(data)
    while at < size:
        tag, at = _number(data, at)
        kind = tag & 7
        if not tag >> 3:
            raise _malformed(at)
        if kind == _VARINT:
            number, at = _number(data, at)
            yield tag, number
            continue
        if kind == _BYTES:
            length, at = _number(data, at)
        elif kind in (_FIXED64, _FIXED32):
            length = 8 if kind == _FIXED64 else 4
        else:
            raise _malformed(at)
        if length > size - at:
            raise _malformed(at)
        yield tag, data[at : at + length]
        at += length


def _number(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for index in range(_MAX_VARINT):
        if at >= len(data):
            raise _malformed(at)
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at
    raise _malformed(at)


def _malformed(at: int) -> MalformedInput:
    return MalformedInput(f"a message of the run is no sev.v1.RunGuestRequest: byte {at}", field="request")
