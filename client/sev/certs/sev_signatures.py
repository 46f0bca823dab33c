"""Signatures of SEV's own certificates: making and checking them, in both slots.

    OCA     ECDSA P-384, SHA-256, by itself, slot 1            CEK   RSA-PSS by the ASK, slot 1: SHA-256 with 2048 bits
    PEK     by the OCA, slot 1, and by the CEK, slot 2               (Naples), SHA-384 with 4096 (Rome and later)
    PDH     by the PEK, slot 1                                 ASK, ARK    RSA-PSS by the ARK, at their end

Salts are as long as the hash. A signature is looked for in the slot whose usage is the signer's, whichever that is, as
the firmware does. Numbers are little-endian.

Source: SEV API specification (AMD 55766); real Naples and Rome chains.
"""

from __future__ import annotations

from sev.abi import id_block
from sev.abi import sev_certificate as abi
from sev.abi.amd_certificate import AmdCertificate
from sev.abi.sev_certificate import SevCertificate, Signature
from sev.certs.errors import NotGenuine
from sev.errors import MalformedInput, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_SHA384 = frozenset({abi.RSA_SHA384, abi.ECDSA_SHA384})
_RSA = {2048: abi.RSA_SHA256, 4096: abi.RSA_SHA384}
_ECDSA = frozenset({abi.ECDSA_SHA256, abi.ECDSA_SHA384})


class NotSignedBy(NotGenuine):
    """A certificate carries no signature of the key that must have signed it."""

    reason = "NOT_SIGNED_BY"
    default_remedy = "Ask the platform's owner for a chain whose certificates belong together."


class SevSignatureInvalid(NotGenuine):
    """A signature in an SEV or AMD certificate does not verify."""

    reason = "SEV_SIGNATURE_INVALID"
    default_remedy = "Do not trust this platform. Ask for its chain again; compare the product of ASK and CEK."


def sign(
    certificate: SevCertificate,
    key: Any,
    usage: int,
    *,
    slot: int | None = None,
    deterministic: bool = False,
) -> SevCertificate:
    """The certificate with a signature of this key.

    Args:
        certificate: What is signed.
        key: Private key: of P-384 for OCA, PEK and CEK, RSA of 2048 or 4096 bits for the ASK.
        usage: Usage of the key that signs.
        slot: 1 or 2, whatever is there; None for the first free one.
        deterministic: ECDSA as RFC 6979 has it, so that the same input gives the same signature.

    Raises:
        UsageError: Both slots are taken, or RSA of another size.
    """
    if slot is None:
        slot = next((number for number, each in enumerate(certificate.signatures, 1) if each.free), None)
        if slot is None:
            raise UsageError(f"{certificate.name}: both signature slots are taken", field="slot")
    body = certificate.body
    if hasattr(key, "key_size") and hasattr(key, "private_numbers") and not hasattr(key, "curve"):
        if key.key_size not in _RSA:
            raise UsageError(f"RSA key of {key.key_size} bits, expected 2048 or 4096", field="key")
        made = Signature(usage, _RSA[key.key_size], rsa_sign(key, body).ljust(abi.SIGNATURE_SIZE, b"\0"))
    else:
        made = Signature(usage, abi.ECDSA_SHA256, ecdsa_sign(key, body, deterministic=deterministic))
    return certificate.signed(slot, made)


def verify(certificate: SevCertificate, signer: SevCertificate | AmdCertificate, key: Any = None) -> int:
    """Checks that a certificate is signed by another's key (its own, for an OCA); answers the slot, 1 or 2.

    Args:
        certificate: What is signed.
        signer: Who should have.
        key: The signer's public key where it is loaded already.

    Raises:
        NotSignedBy: No slot has a signature of the signer's usage.
        SevSignatureInvalid: The one that has does not verify.
        MalformedInput: The signer's key is none, or the signature's form is wrong.
    """
    found = [number for number, each in enumerate(certificate.signatures, 1) if _claims(each, signer.usage)]
    if not found:
        raise NotSignedBy(f"{certificate.name}: it carries no signature of the {signer.name}", field=certificate.name)
    if key is None:
        key = signer.public_key()
    for number in found:
        if verifies(certificate.signatures[number - 1], key, certificate.body):
            return number
    raise SevSignatureInvalid(
        f"{certificate.name}: the signature of the {signer.name} in slot {found[0]} does not verify",
        field=certificate.name,
    )


def _claims(signature: Signature, usage: int) -> bool:
    return signature.usage == usage and not signature.free


def verifies(signature: Signature, key: Any, body: bytes) -> bool:
    """Whether a slot holds this key's signature over the body.

    Args:
        signature: The slot.
        key: Public key: of P-384, or RSA.
        body: The signed bytes.
    """
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

    if isinstance(key, RSAPublicKey):
        if signature.algorithm != _RSA.get(key.key_size):
            return False
        size = key.key_size // 8
        return not any(signature.data[size:]) and rsa_verifies(key, signature.data[:size], body)
    return signature.algorithm in _ECDSA and _ecdsa_verifies(signature, key, body)


def sign_authority(certificate: AmdCertificate, key: Any) -> AmdCertificate:
    """An ARK or ASK, signed with the ARK's private key (RSA of the same size)."""
    return AmdCertificate(
        certificate.key_id, certificate.certifying_id, certificate.usage, certificate.exponent, certificate.modulus,
        certificate.bits, rsa_sign(key, certificate.signed_bytes), certificate.reserved,
    )  # fmt: skip


def verify_authority(certificate: AmdCertificate, ark: AmdCertificate) -> None:
    """Checks that an ASK, or the ARK itself, is signed by the ARK.

    Raises:
        NotSignedBy: It names another key as its issuer, the signer is no ARK, or there is no signature.
        SevSignatureInvalid: The signature does not verify.
    """
    if ark.usage != abi.ARK or certificate.certifying_id != ark.key_id:
        raise NotSignedBy(
            f"{certificate.name}: its issuer is the key {certificate.certifying_id.hex()}, not the {ark.name} "
            f"{ark.key_id.hex()}",
            field=certificate.name,
        )
    if not certificate.signature:
        raise NotSignedBy(f"{certificate.name}: the file ends before the signature", field=certificate.name)
    if certificate.bits != ark.bits or not rsa_verifies(
        ark.public_key(), certificate.signature, certificate.signed_bytes
    ):
        raise SevSignatureInvalid(f"{certificate.name}: the signature of the ARK does not verify", field="signature")


def ecdsa_sign(key: Any, body: bytes, *, deterministic: bool = False) -> bytes:
    """The signature record, 512 bytes, of a P-384 key with SHA-256."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

    scheme = ec.ECDSA(hashes.SHA256(), deterministic_signing=True) if deterministic else ec.ECDSA(hashes.SHA256())
    return id_block.encode_signature(*decode_dss_signature(key.sign(body, scheme)))


def _ecdsa_verifies(signature: Signature, key: Any, body: bytes) -> bool:
    try:
        parts = id_block.decode_signature(signature.data)
    except MalformedInput:
        return False
    return p384_verifies(key, parts, body, sha384=signature.algorithm in _SHA384)


def p384_verifies(key: Any, parts: tuple[int, int], body: bytes, *, sha384: bool = False) -> bool:
    """Whether (r, s) is a P-384 key's signature over a body, with SHA-256 or SHA-384."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

    try:
        key.verify(encode_dss_signature(*parts), body, ec.ECDSA(hashes.SHA384() if sha384 else hashes.SHA256()))
    except (InvalidSignature, ValueError):
        return False
    return True


def rsa_sign(key: Any, message: bytes) -> bytes:
    """RSASSA-PSS over a message, the number little-endian, as long as the modulus."""
    padding, digest = _pss(key.key_size)
    signature: bytes = key.sign(message, padding, digest)
    return signature[::-1]


def rsa_verifies(key: Any, signature: bytes, message: bytes) -> bool:
    """Whether this little-endian number is the RSA key's signature over a message."""
    from cryptography.exceptions import InvalidSignature

    padding, digest = _pss(key.key_size)
    try:
        key.verify(signature[::-1], message, padding, digest)
    except (InvalidSignature, ValueError):
        return False
    return True


def _pss(bits: int) -> tuple[Any, Any]:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import padding

    digest = hashes.SHA384() if bits > 2048 else hashes.SHA256()
    return padding.PSS(padding.MGF1(digest), digest.digest_size), digest
