"""What AMD issues for legacy SEV: ARK and ASK in their own form, and the CEK's certificate.

As on real parts from Milan on, the keys are those of the X.509 certificates. Identifiers of keys are the model's
choice: the first half of the SHA-256 of the modulus.

Source: SEV API specification (AMD 55766), certificates of AMD; CEK certificates as the KDS serves them.
"""

from __future__ import annotations

import hashlib

from cryptography.hazmat.primitives.asymmetric import ec, rsa

from sev.abi import amd_certificate, sev_certificate
from sev.certs import sev_signatures

CEK_API = (0, 14)
"""API version in the CEK certificates that the KDS serves, whatever the platform runs."""


def bundle(ask: rsa.RSAPrivateKey, ark: rsa.RSAPrivateKey) -> bytes:
    """ASK and ARK in a row, as in AMD's download; both signed by the ARK."""
    issuer = _key_id(ark)
    certificates = (
        _certificate(amd_certificate.ASK, ask, issuer),
        _certificate(amd_certificate.ARK, ark, issuer),
    )
    return b"".join(sev_signatures.sign_authority(each, ark).encode() for each in certificates)


def endorse(cek: ec.EllipticCurvePrivateKey, ask: rsa.RSAPrivateKey) -> bytes:
    """The certificate of a CEK, signed by the ASK in slot 1; 2084 bytes."""
    bare = sev_certificate.SevCertificate.of_key(sev_certificate.CEK, cek.public_key(), CEK_API)
    return sev_signatures.sign(bare, ask, sev_certificate.ASK, slot=1).encode()


def _certificate(usage: int, key: rsa.RSAPrivateKey, issuer: bytes) -> amd_certificate.AmdCertificate:
    numbers = key.public_key().public_numbers()
    return amd_certificate.AmdCertificate(_key_id(key), issuer, usage, numbers.e, numbers.n, key.key_size)


def _key_id(key: rsa.RSAPrivateKey) -> bytes:
    modulus = key.public_key().public_numbers().n.to_bytes(key.key_size // 8, "little")
    return hashlib.sha256(modulus).digest()[:16]
