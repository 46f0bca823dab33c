"""SEV certificate, version 1: the form of PDH, PEK, OCA, CEK and a guest owner's key. 2084 bytes, little-endian.

    0x000     4  version, 1              0x414     4  usage of the key that made signature 1
    0x004     1  API major of the maker  0x418     4  algorithm of signature 1
    0x005     1  API minor               0x41c   512  signature 1
    0x006     2  reserved                0x61c     4  usage of the key that made signature 2
    0x008     4  usage of the key        0x620     4  algorithm of signature 2
    0x00c     4  algorithm of the key    0x624   512  signature 2
    0x010  1028  public key

A P-384 key is curve u32 (2), then QX and QY in 72 bytes each; an RSA key modulus bits u32, then exponent and modulus in
512 bytes each. What is signed, in both slots, is the body, 0x000 to 0x413. A free slot has usage INVALID and algorithm
0. Which slot holds whose signature is not fixed: it is found by the signer's usage.

Source: SEV API specification (AMD 55766), certificate format; bytes of real Naples and Rome chains.
"""

from __future__ import annotations

from typing import ClassVar

from sev.abi import id_block
from sev.abi.record import Record
from sev.errors import MalformedInput
from sev.records import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Self

SIZE = 0x824
BODY_SIZE = 0x414
KEY_SIZE = 0x404
SIGNATURE_SIZE = 512
CHAIN_SIZE = 3 * SIZE
"""PEK, OCA and CEK in a row, as PDH_CERT_EXPORT gives them."""

VERSION = 1

ARK, ASK, INVALID, OCA, PEK, PDH, CEK = 0x0000, 0x0013, 0x1000, 0x1001, 0x1002, 0x1003, 0x1004
"""Usages."""

USAGE_NAMES = {ARK: "ARK", ASK: "ASK", INVALID: "INVALID", OCA: "OCA", PEK: "PEK", PDH: "PDH", CEK: "CEK"}

NONE = 0
RSA_SHA256, ECDSA_SHA256, ECDH_SHA256 = 0x001, 0x002, 0x003
RSA_SHA384, ECDSA_SHA384, ECDH_SHA384 = 0x101, 0x102, 0x103
"""Algorithms."""

ALGORITHM_NAMES = {
    NONE: "none",
    RSA_SHA256: "RSA SHA-256",
    ECDSA_SHA256: "ECDSA SHA-256",
    ECDH_SHA256: "ECDH SHA-256",
    RSA_SHA384: "RSA SHA-384",
    ECDSA_SHA384: "ECDSA SHA-384",
    ECDH_SHA384: "ECDH SHA-384",
}
_RSA = (RSA_SHA256, RSA_SHA384)

ALGORITHM_OF = {OCA: ECDSA_SHA256, PEK: ECDSA_SHA256, PDH: ECDH_SHA256, CEK: ECDSA_SHA256}
"""Algorithm of the key by usage, on every platform; all are of P-384."""

_RSA_NUMBER = 512
RSA_EXPONENT = 65537


@record
class Signature(Record):
    """One signature slot, 520 bytes.

    Attributes:
        usage: Usage of the key that signed; INVALID in a free slot.
        algorithm: Of the signature; 0 in a free slot.
        data: 512 bytes. ECDSA: R and S in 72 bytes each, little-endian; RSA: the number, little-endian.
    """

    usage: int = INVALID
    algorithm: int = NONE
    data: bytes = bytes(SIGNATURE_SIZE)

    FORMAT: ClassVar[str] = "I I 512s"

    @property
    def free(self) -> bool:
        """There is no signature here."""
        return self.usage == INVALID and self.algorithm == NONE


@record
class SevCertificate(Record):
    """A certificate. Every byte is kept: what was decoded is encoded as it was.

    Attributes:
        version: 1.
        api_major: API version of the firmware that made it.
        api_minor: The same.
        reserved: Zero in every certificate seen.
        usage: What the key is for: OCA, PEK, PDH or CEK.
        algorithm: Of the key.
        key: Key record, 1028 bytes.
        signature1: First slot.
        signature2: Second slot.
    """

    version: int
    api_major: int
    api_minor: int
    reserved: int
    usage: int
    algorithm: int
    key: bytes
    signature1: Signature = Signature()
    signature2: Signature = Signature()

    FORMAT: ClassVar[str] = "I B B H I I 1028s 520s 520s"
    NESTED: ClassVar[dict[str, type[Record]]] = {"signature1": Signature, "signature2": Signature}

    @classmethod
    def read(cls, data: bytes | bytearray | memoryview, what: str = "SEV certificate") -> Self:
        """A certificate of this version from exactly 2084 bytes; its key and signatures are not looked at yet.

        Raises:
            MalformedInput: Another length or version.
        """
        if len(data) != SIZE:
            raise MalformedInput(f"{what}: {len(data)} bytes where exactly {SIZE} were expected", field=what)
        certificate = cls.decode(data)
        if certificate.version != VERSION:
            raise MalformedInput(
                f"{what}: version {certificate.version} at 0x0, expected {VERSION}", field=what, remedy=_HINT
            )
        return certificate

    @classmethod
    def of_key(cls, usage: int, public_key: Any, api: tuple[int, int]) -> Self:
        """An unsigned certificate of a P-384 public key (pyca's EllipticCurvePublicKey).

        Args:
            usage: OCA, PEK, PDH or CEK.
            public_key: The key.
            api: API version of the maker, two bytes.
        """
        numbers = public_key.public_numbers()
        key = id_block.encode_key(numbers.x, numbers.y)
        return cls(VERSION, api[0], api[1], 0, usage, ALGORITHM_OF[usage], key)

    @property
    def name(self) -> str:
        """What it is called by its usage, such as "PEK"."""
        return USAGE_NAMES.get(self.usage, f"usage 0x{self.usage:x}")

    @property
    def body(self) -> bytes:
        """The 1044 bytes that are signed."""
        return self.encode()[:BODY_SIZE]

    @property
    def signatures(self) -> tuple[Signature, Signature]:
        """Both slots."""
        return self.signature1, self.signature2

    def signed(self, slot: int, signature: Signature) -> SevCertificate:
        """The certificate with this signature in slot 1 or 2."""
        first, second = (signature, self.signature2) if slot == 1 else (self.signature1, signature)
        return SevCertificate(
            self.version, self.api_major, self.api_minor, self.reserved, self.usage, self.algorithm, self.key,
            first, second,
        )  # fmt: skip

    def public_key(self) -> Any:
        """The key: pyca's EllipticCurvePublicKey on P-384, or RSAPublicKey.

        Raises:
            MalformedInput: No algorithm of a key, another curve, a coordinate too large, a point that is not on the
                curve, or RSA numbers that are no key.
        """
        if self.algorithm in _RSA:
            return self._rsa_key()
        if self.algorithm not in ALGORITHM_NAMES or self.algorithm == NONE:
            raise MalformedInput(
                f"{self.name}: key algorithm 0x{self.algorithm:x} at 0xc is unknown", field="algorithm"
            )
        from cryptography.hazmat.primitives.asymmetric import ec

        try:
            x, y = id_block.decode_key(self.key)
        except MalformedInput as error:
            raise MalformedInput(f"{self.name}, key at 0x10: {error.message}", field="key") from None
        try:
            return ec.EllipticCurvePublicNumbers(x, y, ec.SECP384R1()).public_key()
        except ValueError:
            raise MalformedInput(f"{self.name}: the key at 0x10 is not a point of P-384", field="key") from None

    def _rsa_key(self) -> Any:
        from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicNumbers

        bits = int.from_bytes(self.key[:4], "little")
        exponent = int.from_bytes(self.key[4 : 4 + _RSA_NUMBER], "little")
        modulus = int.from_bytes(self.key[4 + _RSA_NUMBER :], "little")
        if bits not in (2048, 4096) or modulus.bit_length() != bits or not modulus & 1 or exponent != RSA_EXPONENT:
            raise MalformedInput(
                f"{self.name}: RSA key of {bits} bits at 0x10, expected 2048 or 4096, a modulus of that length and "
                f"exponent {RSA_EXPONENT}",
                field="key",
            )
        return RSAPublicNumbers(exponent, modulus).public_key()


_HINT = "SEV certificates have version 1 at their start; look whether this file is one."


def split(data: bytes, what: str = "certificate chain") -> tuple[SevCertificate, ...]:
    """Certificates that stand in a row.

    Raises:
        MalformedInput: Not a whole number of certificates, or one of another version.
    """
    if not data or len(data) % SIZE:
        raise MalformedInput(f"{what}: {len(data)} bytes, expected a multiple of {SIZE}", field=what)
    return tuple(
        SevCertificate.read(data[at : at + SIZE], f"{what}, certificate at {at:#x}") for at in range(0, len(data), SIZE)
    )
