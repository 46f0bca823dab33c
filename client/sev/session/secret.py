"""Secrets for a launched guest: the table that firmware and bootloaders read, and the packet for LAUNCH_SECRET.

The table: a header GUID and u32 total length, then entries of GUID, u32 length and data; lengths count their own 20
bytes of head; GUIDs are mixed-endian; zeros up to a multiple of 16 (edk2 OvmfPkg/AmdSev/SecretDxe; QEMU
docs/system/i386/amd-memory-encryption).

The packet header, 52 bytes: flags u32 | IV 16 | MAC 32 (SEV API specification, LAUNCH_SECRET).
"""

from __future__ import annotations

import hmac
import os
import uuid

from sev.errors import MalformedInput, UsageError, VerificationError
from sev.records import record
from sev.session import kdf, measurement
from sev.session.keys import TransportKeys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

TABLE = uuid.UUID("1e74f542-71dd-4d66-963e-ef4287ff173b")
"""Heads the table."""
DISK_PASSPHRASE = uuid.UUID("736869e5-84f0-4973-92ec-06879ce3da0b")
"""The entry that unlocks a disk, by convention of the tools."""
SECRET_AREA = uuid.UUID("4c2eb361-7d9b-4cc3-8081-127c90d3d294")
"""OVMF's footer entry that says where the table goes."""

HEADER_SIZE = 52
LIMIT = 16 << 10
"""Bytes of the largest packet that the kernel passes on (SEV_FW_BLOB_MAX_SIZE)."""
ALIGNMENT = 16

_HEAD = 20
_CONTEXT = b"\x01"
COMPRESSED = 1
"""Flag that no firmware implements."""


class BadPacket(VerificationError):
    """A packet was made for another guest, or was changed; firmware says BAD_MEASUREMENT."""

    reason = "BAD_SECRET_PACKET"


@record
class Packet:
    """What LAUNCH_SECRET takes.

    Attributes:
        header: 52 bytes: flags, IV, MAC.
        payload: The encrypted secret; a multiple of 16 bytes.
    """

    header: bytes
    payload: bytes


def table(entries: Iterable[tuple[uuid.UUID, bytes]]) -> bytes:
    """The table of secrets, padded with zeros to a multiple of 16 bytes.

    Raises:
        UsageError: No entry, a GUID twice, or more than 16 KiB.
    """
    body, seen = b"", set()
    for guid, data in entries:
        if guid in seen:
            raise UsageError(f"the secret {guid} was given twice", field="secret")
        seen.add(guid)
        body += guid.bytes_le + (_HEAD + len(data)).to_bytes(4, "little") + data
        if _HEAD + len(body) > LIMIT:
            raise _too_long(_HEAD + len(body))
    if not seen:
        raise UsageError("no secret was given", field="secret")
    return _padded(TABLE.bytes_le + (_HEAD + len(body)).to_bytes(4, "little") + body)


def read_table(data: bytes) -> list[tuple[uuid.UUID, bytes]]:
    """The entries of a table.

    Raises:
        MalformedInput: No table, or a length that leads outside of it.
    """
    if len(data) < _HEAD or data[:16] != TABLE.bytes_le:
        raise MalformedInput(f"secrets: offset 0 does not hold the GUID {TABLE}", field="secret")
    end = int.from_bytes(data[16:_HEAD], "little")
    if not _HEAD <= end <= len(data):
        raise MalformedInput(
            f"secrets: offset 16: a table of {end} bytes, expected {_HEAD} to {len(data)}", field="secret"
        )
    entries, offset = [], _HEAD
    while offset < end:
        size = int.from_bytes(data[offset + 16 : offset + _HEAD], "little") if offset + _HEAD <= end else 0
        if not _HEAD <= size <= end - offset:
            raise MalformedInput(
                f"secrets: offset {offset}: an entry of {size} bytes, expected {_HEAD} to {end - offset}",
                field="secret",
            )
        guid = uuid.UUID(bytes_le=bytes(data[offset : offset + 16]))
        entries.append((guid, bytes(data[offset + _HEAD : offset + size])))
        offset += size
    return entries


def seal(
    keys: TransportKeys,
    data: bytes,
    measure: bytes,
    *,
    versioned: bool = True,
    iv: bytes | None = None,
    flags: int = 0,
) -> Packet:
    """Encrypts a secret for the guest with this measure.

    Args:
        keys: The session's keys.
        data: The secret, such as `table` makes it; padded with zeros to a multiple of 16 bytes.
        measure: What `measurement.check` answered, 32 bytes: the packet is good for this launch alone.
        versioned: The firmware's API is 0.17 or newer (`measurement.versioned`); older firmware leaves the measure
            out of the MAC.
        iv: 16 bytes; fresh ones if not given. Never twice with one TEK.
        flags: 0.

    Raises:
        UsageError: An empty secret, or more than 16 KiB.
        MalformedInput: A measure that is not 32 bytes, or an IV that is not 16.
    """
    iv = os.urandom(16) if iv is None else iv
    if len(iv) != 16:
        raise MalformedInput(f"iv: {len(iv)} bytes where exactly 16 were expected", field="iv")
    if len(measure) != measurement.MEASURE_SIZE:
        raise MalformedInput(
            f"measure: {len(measure)} bytes where exactly {measurement.MEASURE_SIZE} were expected", field="measure"
        )
    if not data:
        raise UsageError("the secret is empty", field="secret")
    clear = _padded(data)
    if len(clear) > LIMIT:
        raise _too_long(len(clear))
    payload = kdf.ctr(keys.tek, iv, clear)
    tag = kdf.mac(keys.tik, covered(_CONTEXT, flags, iv, payload) + (measure if versioned else b""))
    return Packet(flags.to_bytes(4, "little") + iv + tag, payload)


def unseal(keys: TransportKeys, packet: Packet, measure: bytes, *, versioned: bool = True) -> bytes:
    """The platform's side: checks a packet and decrypts it.

    Raises:
        MalformedInput: A header that is not 52 bytes, or a flag that no firmware knows.
        BadPacket: Not for this launch, or changed.
    """
    if len(packet.header) != HEADER_SIZE:
        raise MalformedInput(
            f"header: {len(packet.header)} bytes where exactly {HEADER_SIZE} were expected", field="header"
        )
    flags, iv = int.from_bytes(packet.header[:4], "little"), packet.header[4:20]
    if flags:
        raise MalformedInput(f"header: offset 0: flags 0x{flags:x}, expected 0", field="header")
    tag = kdf.mac(keys.tik, covered(_CONTEXT, flags, iv, packet.payload) + (measure if versioned else b""))
    if not hmac.compare_digest(tag, packet.header[20:]):
        raise BadPacket("the secret was packed for another launch, or was changed", field="header")
    return kdf.ctr(keys.tek, iv, packet.payload)


def covered(context: bytes, flags: int, iv: bytes, payload: bytes) -> bytes:
    """What a packet's MAC covers: context 1, flags u32, IV 16, both lengths u32, the encrypted payload."""
    length = len(payload).to_bytes(4, "little")
    return context + flags.to_bytes(4, "little") + iv + length + length + payload


def guid_and_file(words: Sequence[str]) -> list[tuple[uuid.UUID, str]]:
    """Pairs of GUID and file name from words of the form GUID:FILE.

    Raises:
        UsageError: Another form, or no GUID.
    """
    pairs = []
    for word in words:
        name, colon, path = word.partition(":")
        try:
            guid = uuid.UUID(name)
        except ValueError:
            guid = None
        if guid is None or not colon or not path:
            raise UsageError(
                f"secret {word!r}: expected GUID:FILE",
                remedy=f"For a disk passphrase the GUID is {DISK_PASSPHRASE}.",
                field="secret",
            )
        pairs.append((guid, path))
    return pairs


def _padded(data: bytes) -> bytes:
    return data.ljust(-(-len(data) // ALIGNMENT) * ALIGNMENT, b"\0")


def _too_long(size: int) -> UsageError:
    return UsageError(
        f"secret: {size} bytes, expected at most {LIMIT}: the kernel passes no larger packet on",
        remedy="Inject a key, and let the guest fetch the rest with it.",
        field="secret",
    )
