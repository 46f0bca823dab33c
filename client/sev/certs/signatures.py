"""The one signature scheme of AMD's X.509 certificates and lists: RSASSA-PSS, SHA-384, MGF1 with SHA-384, salt 48.

Two spellings of its parameters are in the field: issues up to 2024 write out the default trailerField, later ones leave
it out as DER asks. Both are compared as bytes; nothing else is accepted.
"""

from __future__ import annotations

from functools import lru_cache

from sev.errors import MalformedInput

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cryptography.hazmat.primitives.asymmetric.padding import PSS
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
    from cryptography.hazmat.primitives.hashes import SHA384

_OID_AND_HASHES = (
    "06092a864886f70d01010a{rest}a00f300d06096086480165030402020500"
    "a11c301a06092a864886f70d010108300d06096086480165030402020500a203020130"
)
PSS_SHA384 = bytes.fromhex("3041" + _OID_AND_HASHES.format(rest="3034"))
"""AlgorithmIdentifier without the trailerField."""

PSS_SHA384_TRAILER = bytes.fromhex("3046" + _OID_AND_HASHES.format(rest="3039") + "a303020101")
"""AlgorithmIdentifier with the default trailerField written out."""

ACCEPTED = frozenset((PSS_SHA384, PSS_SHA384_TRAILER))

MIN_RSA_BITS, MAX_RSA_BITS = 2048, 8192
RSA_EXPONENT = 65537


@lru_cache(maxsize=1)
def _scheme() -> tuple[PSS, SHA384]:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import padding

    digest = hashes.SHA384()
    return padding.PSS(padding.MGF1(digest), digest.digest_size), digest


def verifies(key: RSAPublicKey, signature: bytes, message: bytes) -> bool:
    """Whether this is the key's signature over these bytes."""
    from cryptography.exceptions import InvalidSignature

    padding, digest = _scheme()
    try:
        key.verify(signature, message, padding, digest)
    except (InvalidSignature, ValueError):
        return False
    return True


def rsa_key(modulus: int, exponent: int, what: str) -> RSAPublicKey:
    """An RSA public key from its numbers.

    Raises:
        MalformedInput: Numbers that are no key: modulus even or not 2048 to 8192 bits, exponent not 65537.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicNumbers

    bits = modulus.bit_length()
    if not MIN_RSA_BITS <= bits <= MAX_RSA_BITS or not modulus & 1 or exponent != RSA_EXPONENT:
        raise MalformedInput(
            f"{what}: RSA key of {bits} bits with exponent {exponent}, "
            f"expected an odd modulus of {MIN_RSA_BITS} to {MAX_RSA_BITS} bits and {RSA_EXPONENT}",
            field=what,
        )
    try:
        return RSAPublicNumbers(exponent, modulus).public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise MalformedInput(f"{what}: not an RSA key ({error})", field=what) from None


def p384_key(point: bytes, what: str) -> Any:
    """A P-384 public key (pyca's EllipticCurvePublicKey) from its uncompressed point, 97 bytes.

    Raises:
        MalformedInput: Not a point of the curve.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, EllipticCurvePublicKey

    try:
        return EllipticCurvePublicKey.from_encoded_point(SECP384R1(), point)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise MalformedInput(f"{what}: not a point of P-384 ({error})", field=what) from None
