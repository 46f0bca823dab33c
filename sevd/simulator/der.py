"""Writing DER (X.690): the few types that AMD's certificates and revocation lists need.

A writer of our own because AMD's leaf certificates have serial number 0, which certificate builders refuse.
"""

from __future__ import annotations

from datetime import UTC, datetime

SEQUENCE = 0x30
SET = 0x31


def tlv(tag: int, content: bytes) -> bytes:
    """Tag, shortest length, content."""
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + content


def sequence(*items: bytes) -> bytes:
    """SEQUENCE of encoded items."""
    return tlv(SEQUENCE, b"".join(items))


def set_of(item: bytes) -> bytes:
    """SET of one encoded item."""
    return tlv(SET, item)


def integer(value: int) -> bytes:
    """INTEGER, not negative, in as few bytes as its sign bit allows (219 takes two)."""
    if value < 0:
        raise ValueError(f"{value} is negative")
    return tlv(0x02, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def boolean_true() -> bytes:
    """BOOLEAN TRUE."""
    return b"\x01\x01\xff"


def null() -> bytes:
    """NULL."""
    return b"\x05\x00"


def oid(dotted: str) -> bytes:
    """OBJECT IDENTIFIER from its dotted form."""
    first, second, *rest = (int(part) for part in dotted.split("."))
    out = bytearray()
    for arc in (first * 40 + second, *rest):
        groups = [arc & 0x7F]
        while arc := arc >> 7:
            groups.append(0x80 | arc & 0x7F)
        out += bytes(reversed(groups))
    return tlv(0x06, bytes(out))


def octets(content: bytes) -> bytes:
    """OCTET STRING."""
    return tlv(0x04, content)


def bits(content: bytes, unused: int = 0) -> bytes:
    """BIT STRING; `unused` bits at its end do not count."""
    return tlv(0x03, bytes((unused,)) + content)


def utf8(text: str) -> bytes:
    """UTF8String."""
    return tlv(0x0C, text.encode())


def printable(text: str) -> bytes:
    """PrintableString; the caller keeps to its alphabet."""
    return tlv(0x13, text.encode("ascii"))


def ia5(text: str) -> bytes:
    """IA5String."""
    return tlv(0x16, text.encode("ascii"))


def time(moment: datetime) -> bytes:
    """Time of X.509: UTCTime up to 2049, GeneralizedTime from 2050 on (RFC 5280, 4.1.2.5); whole seconds."""
    moment = moment.astimezone(UTC)
    if moment.year < 2050:
        return tlv(0x17, moment.strftime("%y%m%d%H%M%SZ").encode())
    return tlv(0x18, moment.strftime("%Y%m%d%H%M%SZ").encode())


def explicit(number: int, content: bytes) -> bytes:
    """[number] EXPLICIT."""
    return tlv(0xA0 | number, content)
