"""The certificate table that a host gives its SNP guests with an extended report.

Source: GHCB specification (AMD 56421), SNP extended guest request. Layout: entries of 24 bytes {GUID 16 bytes, offset
u32, length u32}, little-endian, ended by an entry of zeros, then the contents; offsets count from the table's start.
GUIDs stand in RFC 4122 (big-endian) byte order. Contents are DER by the specification; real hosts also put PEM there.
"""

from __future__ import annotations

from sev.errors import MalformedInput, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

VCEK = bytes.fromhex("63da758de6644564adc5f4b93be8accd")
VLEK = bytes.fromhex("a8074bc2a25a483eaae639c045a0b8a1")
ASK = bytes.fromhex("4ab7b379bbac4fe4a02f05aef327c782")
ARK = bytes.fromhex("c0b406a4a803495297433fb6014cd0ae")
CRL = bytes.fromhex("92f81bc358114d3d97ffd19f88dc67ea")

NAMES: dict[bytes, str] = {VCEK: "vcek", VLEK: "vlek", ASK: "ask", ARK: "ark", CRL: "crl"}
"""What each known GUID stands for; the ASK entry holds the ASVK where a VLEK is used."""

ENTRY_SIZE = 24
MAX_ENTRIES = 64
"""More entries than this are refused; real tables have five at most."""

MAX_SIZE = 1 << 20
"""Larger tables are refused, in bytes; the guest's buffer is a few pages."""

_END = bytes(16)


def parse(data: bytes | bytearray | memoryview) -> list[tuple[bytes, bytes]]:
    """The entries of a table as (GUID of 16 bytes, contents), in order; GUIDs without a name here are kept.

    Contents may not overlap each other or the entries, nor reach outside the table. Zero bytes behind the last
    content are padding.

    Raises:
        MalformedInput: Any other shape.
    """
    table = bytes(data)
    size = len(table)
    if size > MAX_SIZE:
        raise MalformedInput(f"certificate table: {size} bytes, expected at most {MAX_SIZE}")
    found: list[tuple[bytes, int, int]] = []
    at = 0
    while True:
        if at + ENTRY_SIZE > size:
            raise MalformedInput(f"certificate table: no end entry (24 zero bytes) before byte {size}")
        guid = table[at : at + 16]
        offset = int.from_bytes(table[at + 16 : at + 20], "little")
        length = int.from_bytes(table[at + 20 : at + 24], "little")
        at += ENTRY_SIZE
        if guid == _END:
            if offset or length:
                raise MalformedInput(f"certificate table: end entry at {at - ENTRY_SIZE} has an offset or a length")
            break
        if len(found) == MAX_ENTRIES:
            raise MalformedInput(f"certificate table: more than {MAX_ENTRIES} entries")
        if any(guid == other for other, _, _ in found):
            raise MalformedInput(f"certificate table: GUID {guid.hex()} twice, again at {at - ENTRY_SIZE}")
        found.append((guid, offset, length))
    end = at
    for guid, offset, length in sorted(found, key=lambda entry: entry[1:]):
        if length == 0 or offset < end or offset + length > size:
            raise MalformedInput(
                f"certificate table: contents of {guid.hex()} at {offset}, length {length}, "
                f"expected within {end} to {size} and apart from the others"
            )
        end = offset + length
    if table.count(0, end) != size - end:
        raise MalformedInput(f"certificate table: bytes other than zero behind the last content at {end}")
    return [(guid, table[offset : offset + length]) for guid, offset, length in found]


def build(entries: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The table with these entries, contents packed in the same order. `parse` reads it back.

    Raises:
        UsageError: A GUID that is not 16 bytes, is zero or is given twice; empty contents; more than a table can hold.
    """
    wanted = list(entries)
    if len(wanted) > MAX_ENTRIES:
        raise UsageError(f"certificate table: {len(wanted)} entries, expected at most {MAX_ENTRIES}")
    head, body = bytearray(), bytearray()
    seen: set[bytes] = set()
    start = ENTRY_SIZE * (len(wanted) + 1)
    for guid, contents in wanted:
        if len(guid) != 16 or guid == _END or guid in seen:
            raise UsageError(f"certificate table: GUID {guid.hex()}: expected 16 bytes, not zero, each once")
        if not contents:
            raise UsageError(f"certificate table: contents of {guid.hex()} are empty")
        seen.add(guid)
        head += guid + (start + len(body)).to_bytes(4, "little") + len(contents).to_bytes(4, "little")
        body += contents
        if start + len(body) > MAX_SIZE:
            raise UsageError(f"certificate table: more than {MAX_SIZE} bytes")
    return bytes(head + bytes(ENTRY_SIZE) + body)
