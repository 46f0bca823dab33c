"""ID block and ID authentication page of SNP_LAUNCH_FINISH, with the keys and signatures in them.

Integers are little-endian; so are coordinates and signature halves, 72 bytes each with 48 that mean something.

    ID block, 96 bytes             ID authentication, 4096 bytes
    0x00  48  launch digest        0x000     4  algorithm of the ID key, 1
    0x30  16  family id            0x004     4  algorithm of the author key, 1
    0x40  16  image id             0x040   512  signature of the ID block, by the ID key
    0x50   4  version, 1           0x240  1028  ID key
    0x54   4  guest SVN            0x680   512  signature of the ID key's 1028 bytes, by the author key
    0x58   8  policy               0x880  1028  author key

    key, 1028 bytes                signature, 512 bytes
    0x00   4  curve, 2 = P-384     0x00  72  R
    0x04  72  QX                   0x48  72  S
    0x4c  72  QY

Everything else is reserved and zero. Algorithm 1 is ECDSA over P-384 with SHA-384.

Source: SEV-SNP firmware ABI (AMD 56860), SNP_LAUNCH_FINISH, structures ID_BLOCK and ID_AUTH_INFO.
"""

from __future__ import annotations

from hashlib import sha384
from struct import Struct

from sev.errors import MalformedInput

BLOCK_SIZE = 96
AUTH_SIZE = 4096
KEY_SIZE = 0x404
SIGNATURE_SIZE = 512

ALGORITHM_ECDSA_P384_SHA384 = 1
CURVE_P384 = 2

BLOCK_VERSION = 1
"""The only version of the ID block."""

_BLOCK = Struct("<48s16s16sIIQ")
_HALF = 72
_P384_BYTES = 48


class IdBlock:
    """The identity that a guest owner gives to a launch. Immutable by convention; two are equal if their bytes are.

    Attributes:
        launch_digest: 48 bytes: the launch fails if the guest measures otherwise.
        family_id: 16 bytes of the owner's choice.
        image_id: 16 bytes of the owner's choice.
        guest_svn: Security version of the guest, 32 bits.
        policy: The guest policy, 64 bits: the launch fails if it was started with another.
        version: 1; kept as read.
    """

    __slots__ = ("family_id", "guest_svn", "image_id", "launch_digest", "policy", "version")

    def __init__(
        self,
        launch_digest: bytes,
        *,
        family_id: bytes = bytes(16),
        image_id: bytes = bytes(16),
        guest_svn: int = 0,
        policy: int = 0x30000,
        version: int = BLOCK_VERSION,
    ) -> None:
        _check_size("launch_digest", launch_digest, 48)
        _check_size("family_id", family_id, 16)
        _check_size("image_id", image_id, 16)
        self.launch_digest = launch_digest
        self.family_id = family_id
        self.image_id = image_id
        self.guest_svn = guest_svn
        self.policy = policy
        self.version = version

    def __eq__(self, other: object) -> bool:
        return isinstance(other, IdBlock) and self.encode() == other.encode()

    def __hash__(self) -> int:
        return hash(self.encode())

    def encode(self) -> bytes:
        """The 96 bytes.

        Raises:
            struct.error: A number does not fit its field.
        """
        return _BLOCK.pack(self.launch_digest, self.family_id, self.image_id, self.version, self.guest_svn, self.policy)

    @classmethod
    def decode(cls, data: bytes) -> IdBlock:
        """From 96 bytes.

        Raises:
            MalformedInput: It is not 96 bytes.
        """
        _check_size("ID block", data, BLOCK_SIZE)
        digest, family_id, image_id, version, guest_svn, policy = _BLOCK.unpack(data)
        return cls(digest, family_id=family_id, image_id=image_id, guest_svn=guest_svn, policy=policy, version=version)


class IdAuth:
    """Signatures and keys for an ID block.

    Attributes:
        id_key: Key record, 1028 bytes.
        block_signature: Signature record, 512 bytes, of the ID block.
        author_key: Key record; zeros without an author.
        id_key_signature: Signature record of the ID key's record; zeros without an author.
        id_key_algorithm: 1; kept as read, as is `author_key_algorithm`.
    """

    __slots__ = (
        "author_key", "author_key_algorithm", "block_signature", "id_key", "id_key_algorithm", "id_key_signature",
    )  # fmt: skip

    def __init__(
        self,
        id_key: bytes,
        block_signature: bytes,
        author_key: bytes = bytes(KEY_SIZE),
        id_key_signature: bytes = bytes(SIGNATURE_SIZE),
        *,
        id_key_algorithm: int = ALGORITHM_ECDSA_P384_SHA384,
        author_key_algorithm: int = ALGORITHM_ECDSA_P384_SHA384,
    ) -> None:
        _check_size("id_key", id_key, KEY_SIZE)
        _check_size("block_signature", block_signature, SIGNATURE_SIZE)
        _check_size("author_key", author_key, KEY_SIZE)
        _check_size("id_key_signature", id_key_signature, SIGNATURE_SIZE)
        self.id_key = id_key
        self.block_signature = block_signature
        self.author_key = author_key
        self.id_key_signature = id_key_signature
        self.id_key_algorithm = id_key_algorithm
        self.author_key_algorithm = author_key_algorithm

    @property
    def has_author(self) -> bool:
        """There is an author key."""
        return any(self.author_key)

    def encode(self) -> bytes:
        """The 4096 bytes."""
        page = bytearray(AUTH_SIZE)
        page[0:4] = self.id_key_algorithm.to_bytes(4, "little")
        page[4:8] = self.author_key_algorithm.to_bytes(4, "little")
        page[0x040:0x240] = self.block_signature
        page[0x240:0x644] = self.id_key
        page[0x680:0x880] = self.id_key_signature
        page[0x880:0xC84] = self.author_key
        return bytes(page)

    @classmethod
    def decode(cls, data: bytes) -> IdAuth:
        """From 4096 bytes. Reserved bytes are not looked at: the firmware does not look either.

        Raises:
            MalformedInput: It is not 4096 bytes.
        """
        _check_size("ID authentication page", data, AUTH_SIZE)
        return cls(
            data[0x240:0x644],
            data[0x040:0x240],
            data[0x880:0xC84],
            data[0x680:0x880],
            id_key_algorithm=int.from_bytes(data[0:4], "little"),
            author_key_algorithm=int.from_bytes(data[4:8], "little"),
        )


def encode_key(x: int, y: int) -> bytes:
    """The record, 1028 bytes, of a P-384 public key with these coordinates.

    Raises:
        OverflowError: A coordinate is above 2^576.
    """
    body = CURVE_P384.to_bytes(4, "little") + x.to_bytes(_HALF, "little") + y.to_bytes(_HALF, "little")
    return body.ljust(KEY_SIZE, b"\0")


def decode_key(record: bytes) -> tuple[int, int]:
    """Coordinates (x, y) of a key record. Whether the point is on the curve is not checked.

    Raises:
        MalformedInput: It is not 1028 bytes, not of P-384, or a coordinate has more than 48 bytes.
    """
    _check_size("key", record, KEY_SIZE)
    curve = int.from_bytes(record[:4], "little")
    if curve != CURVE_P384:
        raise MalformedInput(f"key: curve {curve} at 0x0: expected {CURVE_P384}, P-384", field="curve")
    return _number("key: QX", record, 4), _number("key: QY", record, 4 + _HALF)


def encode_signature(r: int, s: int) -> bytes:
    """The record, 512 bytes, of an ECDSA signature.

    Raises:
        OverflowError: A half is above 2^576.
    """
    return (r.to_bytes(_HALF, "little") + s.to_bytes(_HALF, "little")).ljust(SIGNATURE_SIZE, b"\0")


def decode_signature(record: bytes) -> tuple[int, int]:
    """(R, S) of a signature record.

    Raises:
        MalformedInput: It is not 512 bytes, or a half has more than 48 bytes.
    """
    _check_size("signature", record, SIGNATURE_SIZE)
    return _number("signature: R", record, 0), _number("signature: S", record, _HALF)


def key_digest(record: bytes) -> bytes:
    """SHA-384 of the whole key record, 48 bytes: what reports show as ID key digest and author key digest.

    Raises:
        MalformedInput: It is not 1028 bytes.
    """
    _check_size("key", record, KEY_SIZE)
    return sha384(record).digest()


def _number(name: str, record: bytes, offset: int) -> int:
    if any(record[offset + _P384_BYTES : offset + _HALF]):
        raise MalformedInput(
            f"{name} at {offset:#x}: expected at most {_P384_BYTES} bytes that are not zero", field=name
        )
    return int.from_bytes(record[offset : offset + _P384_BYTES], "little")


def _check_size(name: str, data: bytes, size: int) -> None:
    if len(data) != size:
        raise MalformedInput(f"{name}: expected {size} bytes, not {len(data)}", field=name)
