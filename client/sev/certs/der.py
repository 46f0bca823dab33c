"""A strict reader for DER (X.690): only definite, shortest lengths and single-byte tags; nothing may be left over.

It works on one `bytes` object and positions in it, copies nothing it does not hand out, and never recurses, so hostile
input costs no more than its own length. Every error names the element and the offset.
"""

from __future__ import annotations

from datetime import UTC, datetime

from sev.errors import MalformedInput

BOOLEAN, INTEGER, BIT_STRING, OCTET_STRING, NULL, OID = 0x01, 0x02, 0x03, 0x04, 0x05, 0x06
UTF8, PRINTABLE, IA5, UTC_TIME, GENERALIZED_TIME = 0x0C, 0x13, 0x16, 0x17, 0x18
SEQUENCE, SET = 0x30, 0x31

MAX_INTEGER = 20
"""Content bytes of the longest serial number that RFC 5280 allows."""


def element(data: bytes, at: int, end: int, what: str) -> tuple[int, int, int]:
    """Tag, start and end of the contents of the element at `at`; the next element starts where it ends.

    Raises:
        MalformedInput: No whole element before `end`, a length that is not the shortest, or a multi-byte tag.
    """
    if at + 2 > end:
        raise MalformedInput(f"{what}: nothing at offset {at}, expected an element before {end}", field=what)
    tag = data[at]
    length = data[at + 1]
    start = at + 2
    if length >= 0x80:
        count = length & 0x7F
        start += count
        if count == 0 or count > 3 or start > end:
            raise MalformedInput(f"{what}: bad length at offset {at + 1}, expected a definite one of at most 3 bytes")
        length = int.from_bytes(data[at + 2 : start], "big")
        if length < 0x80 or length >> 8 * (count - 1) == 0:
            raise MalformedInput(f"{what}: length at offset {at + 1} is not in its shortest form", field=what)
    stop = start + length
    if stop > end:
        raise MalformedInput(f"{what}: {length} bytes at offset {at}, only {end - start} are left", field=what)
    if tag & 0x1F == 0x1F:
        raise MalformedInput(f"{what}: multi-byte tag at offset {at}", field=what)
    return tag, start, stop


def expect(data: bytes, at: int, end: int, tag: int, what: str) -> tuple[int, int]:
    """Start and end of the contents of the element at `at`, which must have this tag.

    Raises:
        MalformedInput: As `element`, or another tag.
    """
    if at + 2 <= end and data[at] == tag:
        # Short lengths are nearly all of a certificate; this is `element` for them, without a second call.
        stop = at + 2 + data[at + 1]
        if data[at + 1] < 0x80 and stop <= end:
            return at + 2, stop
    found, start, stop = element(data, at, end, what)
    if found != tag:
        raise MalformedInput(f"{what}: tag {found:#04x} at offset {at}, expected {tag:#04x}", field=what)
    return start, stop


def finish(at: int, end: int, what: str) -> None:
    """Raises MalformedInput if anything is left between `at` and `end`."""
    if at != end:
        raise MalformedInput(f"{what}: {end - at} bytes left over at offset {at}", field=what)


def integer(data: bytes, at: int, end: int, what: str, *, limit: int = MAX_INTEGER) -> tuple[int, int]:
    """A non-negative INTEGER of at most `limit` content bytes, and where the next element starts.

    Raises:
        MalformedInput: Negative, empty, too long, or padded.
    """
    if at + 3 <= end and data[at] == INTEGER and data[at + 1] == 1 and data[at + 2] < 0x80:
        return data[at + 2], at + 3
    start, stop = expect(data, at, end, INTEGER, what)
    if stop == start or stop - start > limit:
        raise MalformedInput(f"{what}: integer of {stop - start} bytes at offset {at}, expected 1 to {limit}")
    first = data[start]
    if first & 0x80:
        raise MalformedInput(f"{what}: negative integer at offset {at}", field=what)
    if first == 0 and stop - start > 1 and not data[start + 1] & 0x80:
        raise MalformedInput(f"{what}: integer at offset {at} is not in its shortest form", field=what)
    return int.from_bytes(data[start:stop], "big"), stop


def boolean(data: bytes, at: int, end: int, what: str) -> tuple[bool, int]:
    """A BOOLEAN (0x00 or 0xFF), and where the next element starts.

    Raises:
        MalformedInput: Any other value.
    """
    start, stop = expect(data, at, end, BOOLEAN, what)
    value = data[start:stop]
    if value not in (b"\x00", b"\xff"):
        raise MalformedInput(f"{what}: boolean at offset {at} is {value.hex()}, expected 00 or ff", field=what)
    return value == b"\xff", stop


def bit_string(data: bytes, at: int, end: int, what: str) -> tuple[bytes, int]:
    """A BIT STRING of whole bytes, and where the next element starts.

    Raises:
        MalformedInput: Empty, or with unused bits.
    """
    start, stop = expect(data, at, end, BIT_STRING, what)
    if stop - start < 2 or data[start]:
        raise MalformedInput(f"{what}: bit string at offset {at}, expected whole bytes and at least one", field=what)
    return data[start + 1 : stop], stop


def time(data: bytes, at: int, end: int, what: str) -> tuple[datetime, int]:
    """A UTCTime or GeneralizedTime to the second, in UTC (`Z`), and where the next element starts.

    Raises:
        MalformedInput: Another tag or form, or a date that does not exist.
    """
    tag, start, stop = element(data, at, end, what)
    text = data[start:stop]
    digits = text[:-1]
    if tag == UTC_TIME and len(text) == 13:
        year_digits = 2
    elif tag == GENERALIZED_TIME and len(text) == 15:
        year_digits = 4
    else:
        raise MalformedInput(f"{what}: at offset {at}, expected a UTCTime or GeneralizedTime to the second")
    if text[-1] != 0x5A or not digits.isdigit():
        raise MalformedInput(f"{what}: time at offset {at} is {text!r}, expected digits and Z", field=what)
    date, clock = divmod(int(digits), 1_000_000)
    year, date = divmod(date, 10_000)
    if year_digits == 2:
        year += 1900 if year >= 50 else 2000
    try:
        return datetime(
            year, date // 100, date % 100, clock // 10_000, clock // 100 % 100, clock % 100, tzinfo=UTC
        ), stop
    except ValueError as error:
        raise MalformedInput(f"{what}: time at offset {at} is {text!r}: {error}", field=what) from None


def oid_text(content: bytes) -> str:
    """Dotted form of an object identifier's content bytes; hexadecimal where they are not one."""
    if not content or content[-1] & 0x80 or len(content) > 64:
        return content.hex() or "(empty)"
    parts: list[int] = []
    value = 0
    for byte in content:
        value = value << 7 | byte & 0x7F
        if not byte & 0x80:
            parts.append(value)
            value = 0
    first = min(parts[0] // 40, 2)
    return ".".join(str(part) for part in (first, parts[0] - 40 * first, *parts[1:]))
