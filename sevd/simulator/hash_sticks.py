"""Keys that depend on the TCB: VCEK and VLEK from "hash sticks", wrapping of VLEKs, and the KDF under all of it.

A hash stick of a component at version v is hashed 255 - v times from its base, so whoever holds one can make those of
every older version and of none newer. Eight components stand in the order of TCB_VERSION's bytes; a byte that a
processor line does not use counts as version 0.

    KDF(key, label, context, n) = K(1) || K(2) || ... cut to n bytes
    K(i) = HMAC-SHA256(key, LE32(i) || label || 0x00 || context || LE32(8 n))          (NIST SP 800-108, counter mode)

Sources: behaviour of AMD's published Genoa firmware; the wrapped blob's layout from AMD 56860, SNP_VLEK_LOAD. For Turin
and later the order of the sticks is not published; the same rule over TCB_VERSION's bytes is this model's choice.
"""

from __future__ import annotations

import hashlib
import hmac
from functools import lru_cache

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

COMPONENTS = 8
STICK_SIZE = 48
"""Bytes of one stick (SHA-384)."""

WRAPPED_SIZE = 432
"""Bytes of a wrapped VLEK: IV 12, reserved 4, ciphertext 384, TCB 8, reserved 8, tag 16."""

VCEK_LABEL = "sev-versioned-chip-endorsement-key"
VLEK_LABEL = "sev-versioned-loaded-attestation-key"
CEK_LABEL = "sev-chip-endorsement-key"
_WRAPPING_LABEL = "vlek-wrapping-key"

P384_ORDER = int("ffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf581a0db248b0a77aecec196accc52973", 16)


def kdf(key: bytes, label: str, context: bytes, size: int) -> bytes:
    """`size` bytes derived from `key` (any length) for a label and a context; counter and length are little-endian."""
    fixed = label.encode("ascii") + b"\0" + context + (size * 8).to_bytes(4, "little")
    out = b""
    counter = 1
    while len(out) < size:
        out += hmac.digest(key, counter.to_bytes(4, "little") + fixed, "sha256")
        counter += 1
    return out[:size]


def _components(tcb: bytes) -> bytes:
    if len(tcb) != COMPONENTS:
        raise ValueError(f"TCB version of {len(tcb)} bytes, expected {COMPONENTS}")
    return tcb


@lru_cache(maxsize=64)
def sticks(seed: bytes, tcb: bytes) -> tuple[bytes, ...]:
    """The eight sticks of 48 bytes for a TCB.

    Args:
        seed: The secret of the chip (VCEK) or of the provider (VLEK), 48 bytes.
        tcb: TCB_VERSION, 8 bytes as in memory.
    """
    out = []
    state = seed
    for version in _components(tcb):
        for _ in range(255 - version):
            state = hashlib.sha384(state).digest()
        out.append(hashlib.sha384(state).digest())
        state = hashlib.sha384(bytes(8) + state).digest()
    return tuple(out)


def tcb_hash(seed: bytes, tcb: bytes) -> bytes:
    """The 48 bytes from which the key of a TCB is derived: the last stick."""
    return sticks(seed, tcb)[-1]


def scalar(secret: bytes, label: str) -> int:
    """A P-384 private scalar: 56 derived bytes, little-endian, reduced into 1 .. n-1."""
    return int.from_bytes(kdf(secret, label, b"", 56), "little") % (P384_ORDER - 1) + 1


@lru_cache(maxsize=64)
def private_key(secret: bytes, label: str) -> ec.EllipticCurvePrivateKey:
    """The P-384 key pair of a stick (48 bytes) for `VCEK_LABEL` or `VLEK_LABEL`."""
    return ec.derive_private_key(scalar(secret, label), ec.SECP384R1())


def wrap_vlek(vcek_hash: bytes, vlek_sticks: tuple[bytes, ...], tcb: bytes, iv: bytes) -> bytes:
    """A VLEK's sticks wrapped for one chip, 432 bytes, as AMD's KDS hands them to a provider.

    Args:
        vcek_hash: `tcb_hash` of the chip for this TCB, 48 bytes.
        vlek_sticks: Eight sticks of 48 bytes.
        tcb: The TCB the sticks belong to, 8 bytes.
        iv: 12 bytes, never used twice with one chip and TCB.
    """
    trailer = _components(tcb) + bytes(8)
    sealed = AESGCM(kdf(vcek_hash, _WRAPPING_LABEL, b"", 32)).encrypt(iv, b"".join(vlek_sticks), trailer)
    return iv + bytes(4) + sealed[:-16] + trailer + sealed[-16:]


def unwrap_vlek(vcek_hash: bytes, blob: bytes) -> tuple[bytes, ...] | None:
    """The eight sticks in a wrapped VLEK of 432 bytes; None if its tag is wrong for this chip."""
    key = kdf(vcek_hash, _WRAPPING_LABEL, b"", 32)
    try:
        plain = AESGCM(key).decrypt(blob[:12], blob[0x10:0x190] + blob[0x1A0:], blob[0x190:0x1A0])
    except InvalidTag:
        return None
    return tuple(plain[at : at + STICK_SIZE] for at in range(0, len(plain), STICK_SIZE))
