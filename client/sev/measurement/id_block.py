"""Making and checking ID blocks: what a guest owner signs so that only the expected guest gets its identity."""

from __future__ import annotations

from sev.abi.id_block import (
    ALGORITHM_ECDSA_P384_SHA384,
    IdAuth,
    IdBlock,
    decode_key,
    decode_signature,
    encode_key,
    encode_signature,
    key_digest,
)
from sev.errors import VerificationError
from sev.p384 import load_private_key, load_public_key

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sev.p384 import PrivateKey, PublicKey

__all__ = [
    "BadIdSignature", "authenticate", "load_private_key", "load_public_key", "public_digest", "public_record", "verify",
]  # fmt: skip


class BadIdSignature(VerificationError):
    """A signature in an ID authentication page is not what it should be; the firmware would answer BAD_SIGNATURE."""

    reason = "BAD_ID_SIGNATURE"


def public_record(key: PublicKey) -> bytes:
    """The key record, 1028 bytes, of a P-384 public key."""
    numbers = key.public_numbers()
    return encode_key(numbers.x, numbers.y)


def public_digest(key: PublicKey) -> bytes:
    """The key digest, 48 bytes, of a P-384 public key."""
    return key_digest(public_record(key))


def authenticate(block: IdBlock, id_key: PrivateKey, author_key: PrivateKey | None = None) -> IdAuth:
    """Signs an ID block with the ID key, and the ID key with the author's where there is one.

    ECDSA signatures differ each time; both verify.
    """
    record = public_record(id_key.public_key())
    signature = _sign(id_key, block.encode())
    if author_key is None:
        return IdAuth(record, signature)
    return IdAuth(record, signature, public_record(author_key.public_key()), _sign(author_key, record))


def verify(block: IdBlock, auth: IdAuth) -> None:
    """Checks what the firmware checks at SNP_LAUNCH_FINISH about the signatures.

    (1) The ID key's algorithm is ECDSA P-384 with SHA-384. (2) The ID key signed the block. (3) If there is an author
    key, its algorithm is the same, and (4) it signed the ID key.

    Raises:
        BadIdSignature: A step failed.
        MalformedInput: A key or signature record is not of P-384.
    """
    _check_algorithm("ID key", auth.id_key_algorithm)  # (1)
    _check_signature("ID key", auth.id_key, auth.block_signature, block.encode())  # (2)
    if auth.has_author:
        _check_algorithm("author key", auth.author_key_algorithm)  # (3)
        _check_signature("author key", auth.author_key, auth.id_key_signature, auth.id_key)  # (4)


def _sign(key: PrivateKey, data: bytes) -> bytes:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, utils

    return encode_signature(*utils.decode_dss_signature(key.sign(data, ec.ECDSA(hashes.SHA384()))))


def _check_algorithm(name: str, algorithm: int) -> None:
    if algorithm != ALGORITHM_ECDSA_P384_SHA384:
        raise BadIdSignature(f"{name}: algorithm {algorithm}: expected 1, ECDSA P-384 with SHA-384", field=name)


def _check_signature(name: str, record: bytes, signature: bytes, data: bytes) -> None:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, utils

    try:
        key = ec.EllipticCurvePublicNumbers(*decode_key(record), ec.SECP384R1()).public_key()
    except ValueError:
        raise BadIdSignature(f"{name}: its coordinates are not a point of P-384", field=name) from None
    try:
        key.verify(utils.encode_dss_signature(*decode_signature(signature)), data, ec.ECDSA(hashes.SHA384()))
    except InvalidSignature:
        raise BadIdSignature(f"{name}: its signature does not verify", field=name) from None
