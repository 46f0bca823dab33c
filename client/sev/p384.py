"""P-384 keys in files, as an owner of guests or platforms has them: PEM or DER, private or public."""

from __future__ import annotations

from sev.errors import MalformedInput, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey

    PrivateKey = EllipticCurvePrivateKey
    PublicKey = EllipticCurvePublicKey

_MAKE_ONE = "Make one with: openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-384 -out id-key.pem"


def load_private_key(data: bytes, what: str = "key") -> PrivateKey:
    """A P-384 private key from PEM or DER (PKCS #8 or SEC 1), without a password.

    Args:
        data: The file's content.
        what: What it is in errors. The content never appears in one.

    Raises:
        MalformedInput: It is no private key that can be read.
        UsageError: It is encrypted, or not of P-384.
    """
    return _p384_private(_load(data, what, private=True), what)


def load_public_key(data: bytes, what: str = "key") -> PublicKey:
    """A P-384 public key from PEM or DER of a public key, or of a private key (whose public half is taken).

    Raises:
        MalformedInput: It is no key that can be read.
        UsageError: It is encrypted, or not of P-384.
    """
    key = _load(data, what, private=False)
    return _p384_public(key.public_key() if hasattr(key, "public_key") else key, what)


def _load(data: bytes, what: str, *, private: bool) -> object:
    """Whatever key is in PEM or DER; a public one only unless `private`."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization as forms

    pem = b"-----BEGIN" in data
    begin = data.find(b"-----BEGIN EC PRIVATE KEY")  # openssl ecparam writes the curve before it
    data = data[begin:] if begin > 0 else data
    try:
        return forms.load_pem_private_key(data, None) if pem else forms.load_der_private_key(data, None)
    except TypeError:
        raise UsageError(
            f"{what}: is encrypted with a password",
            remedy="Decrypt it first: openssl pkey -in KEY -out DECRYPTED (and guard the result).",
            field=what,
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        if private:
            raise _unreadable(what, "a private key") from None
    try:
        return forms.load_pem_public_key(data) if pem else forms.load_der_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        raise _unreadable(what, "a key") from None


def _unreadable(what: str, kind: str) -> MalformedInput:
    return MalformedInput(f"{what}: is not {kind} in PEM or DER", remedy=_MAKE_ONE, field=what)


def _p384_private(key: object, what: str) -> PrivateKey:
    from cryptography.hazmat.primitives.asymmetric import ec

    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP384R1):
        raise _wrong_curve(what)
    return key


def _p384_public(key: object, what: str) -> PublicKey:
    from cryptography.hazmat.primitives.asymmetric import ec

    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise _wrong_curve(what)
    return key


def _wrong_curve(what: str) -> UsageError:
    return UsageError(
        f"{what}: expected an elliptic-curve key on P-384, which is all that AMD's firmware takes",
        remedy=_MAKE_ONE,
        field=what,
    )
