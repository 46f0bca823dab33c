"""AMD's certificates of SEV: ARK and ASK in the form that predates X.509. 64 bytes and three numbers, little-endian.

    0x00   4  version, 1                       0x38   4  bits of the exponent's field
    0x04  16  identifier of the key            0x3c   4  bits of the modulus
    0x14  16  identifier of the issuer's key   0x40      exponent, then modulus, then signature,
    0x24   4  usage: ARK 0, ASK 0x13                     each in bits / 8 bytes
    0x28  16  reserved, zero

2048 bits in 832 bytes (Naples), 4096 bits in 1600 (Rome and later). What is signed is everything before the signature:
RSASSA-PSS with MGF1 of the same hash and a salt as long as it, SHA-256 for 2048 bits and SHA-384 for 4096. The first
ARK that AMD published for Naples ends before the signature (576 bytes); its key is pinned anyway.

Source: SEV API specification (AMD 55766), appendix on AMD's certificates; bytes of all files that AMD publishes.
"""

from __future__ import annotations

import struct

from sev.errors import MalformedInput
from sev.records import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

VERSION = 1
HEADER_SIZE = 64
ARK, ASK = 0x00, 0x13
"""Usages."""

USAGE_NAMES = {ARK: "ARK", ASK: "ASK"}
BITS = (2048, 4096)
"""Sizes of keys that exist."""

RSA_EXPONENT = 65537
_HEADER = struct.Struct("<I16s16sI16sII")
_CA_CERTIFICATES = 8
"""More in one file are refused."""


@record
class AmdCertificate:
    """An ARK or ASK. Every byte is kept: what was decoded is encoded as it was.

    Attributes:
        key_id: 16 bytes.
        certifying_id: 16 bytes: `key_id` of the issuer, its own in an ARK.
        usage: ARK or ASK.
        exponent: Public exponent.
        modulus: Modulus, of exactly `bits` bits.
        bits: 2048 or 4096.
        signature: bits / 8 bytes, little-endian; empty in a file that ends before it.
        reserved: 16 bytes, zero in every certificate seen.
    """

    key_id: bytes
    certifying_id: bytes
    usage: int
    exponent: int
    modulus: int
    bits: int
    signature: bytes = b""
    reserved: bytes = bytes(16)

    @classmethod
    def decode(cls, data: bytes | bytearray | memoryview) -> AmdCertificate:
        """Reads a certificate.

        Raises:
            MalformedInput: It is cut off or has more behind it, another version, usage or size of key, or numbers that
                are no RSA key.
        """
        certificate, size = _read(bytes(data), 0)
        if size != len(data):
            raise MalformedInput(
                f"{certificate.name}: {len(data)} bytes where exactly {size} were expected", field=certificate.name
            )
        return certificate

    def encode(self) -> bytes:
        """The certificate: 64 + 3 x bits / 8 bytes, or without signature 64 + 2 x bits / 8."""
        return self.signed_bytes + self.signature

    @property
    def name(self) -> str:
        """ "ARK" or "ASK"."""
        return USAGE_NAMES[self.usage]

    @property
    def signed_bytes(self) -> bytes:
        """Everything before the signature."""
        size = self.bits // 8
        head = _HEADER.pack(VERSION, self.key_id, self.certifying_id, self.usage, self.reserved, self.bits, self.bits)
        return head + self.exponent.to_bytes(size, "little") + self.modulus.to_bytes(size, "little")

    def public_key(self) -> Any:
        """The key, pyca's RSAPublicKey."""
        from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicNumbers

        return RSAPublicNumbers(self.exponent, self.modulus).public_key()


def first(data: bytes) -> tuple[AmdCertificate, int]:
    """The certificate that the data begins with, and its size in bytes; what follows is not looked at.

    Raises:
        MalformedInput: It is none.
    """
    return _read(data, 0)


def split(data: bytes) -> tuple[AmdCertificate, ...]:
    """Certificates that stand in a row, such as AMD's download of ASK and ARK.

    Raises:
        MalformedInput: One of them is none, or there are more than eight.
    """
    out: list[AmdCertificate] = []
    offset = 0
    while offset < len(data) or not out:
        if len(out) == _CA_CERTIFICATES:
            raise MalformedInput(f"AMD certificates: more than {_CA_CERTIFICATES} in one file", field="certificates")
        certificate, size = _read(data, offset)
        out.append(certificate)
        offset += size
    return tuple(out)


def _read(data: bytes, offset: int) -> tuple[AmdCertificate, int]:
    """The certificate at an offset, and its size."""
    left = len(data) - offset
    if left < HEADER_SIZE:
        raise MalformedInput(
            f"AMD certificate at {offset:#x}: {left} bytes, expected at least {HEADER_SIZE}", field="AMD certificate"
        )
    version, key_id, certifying_id, usage, reserved, exponent_bits, bits = _HEADER.unpack_from(data, offset)
    if version != VERSION:
        raise _bad(offset, 0x00, f"version {version}, expected {VERSION}")
    if usage not in USAGE_NAMES:
        raise _bad(offset, 0x24, f"usage 0x{usage:x}, expected 0 (ARK) or 0x13 (ASK)")
    if bits not in BITS or exponent_bits != bits:
        raise _bad(offset, 0x38, f"exponent of {exponent_bits} and modulus of {bits} bits, expected twice 2048 or 4096")
    size = bits // 8
    start = offset + HEADER_SIZE
    if left != HEADER_SIZE + 2 * size and left < HEADER_SIZE + 3 * size:
        raise _bad(offset, left, f"{left} bytes of {HEADER_SIZE + 3 * size}: the certificate is cut off")
    exponent = int.from_bytes(data[start : start + size], "little")
    modulus = int.from_bytes(data[start + size : start + 2 * size], "little")
    if exponent != RSA_EXPONENT:
        raise _bad(offset, HEADER_SIZE, f"the exponent is not {RSA_EXPONENT}")
    if modulus.bit_length() != bits or not modulus & 1:
        raise _bad(offset, HEADER_SIZE + size, f"the modulus is not an odd number of {bits} bits")
    signature = data[start + 2 * size : start + 3 * size]
    certificate = AmdCertificate(key_id, certifying_id, usage, exponent, modulus, bits, signature, reserved)
    return certificate, HEADER_SIZE + 2 * size + len(signature)


def _bad(offset: int, at: int, what: str) -> MalformedInput:
    return MalformedInput(f"AMD certificate at {offset:#x}, offset {at:#x}: {what}", field="AMD certificate")
