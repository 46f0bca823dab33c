"""Key derivation of SEV sessions: NIST SP 800-108 in counter mode with HMAC-SHA256, and what is derived with it.

Unlike most users of the standard, SEV writes the counter and the length of the output little-endian (SEV API
specification, section 2.2.2 "Key derivation").
"""

from __future__ import annotations

import hmac
from hashlib import sha256

KEY_SIZE = 16
"""Bytes of every symmetric key of a session."""

NONCE_SIZE = 16

_HASH_SIZE = 32


def derive(key: bytes, label: str, context: bytes = b"", size: int = KEY_SIZE) -> bytes:
    """A key of `size` bytes from a key, a label (ASCII) and a context."""
    bits = (8 * size).to_bytes(4, "little")
    fixed = label.encode("ascii") + b"\0" + context + bits
    blocks = range(1, -(-size // _HASH_SIZE) + 1)
    return b"".join(mac(key, number.to_bytes(4, "little") + fixed) for number in blocks)[:size]


def mac(key: bytes, data: bytes) -> bytes:
    """HMAC-SHA256, 32 bytes."""
    return hmac.digest(key, data, sha256)


def transport(shared_secret: bytes, nonce: bytes) -> tuple[bytes, bytes]:
    """(KEK, KIK), 16 bytes each, that wrap the transport keys.

    Args:
        shared_secret: X coordinate of the ECDH point of the platform's PDH and the owner's key, 48 bytes, big-endian.
        nonce: 16 bytes.
    """
    master = derive(shared_secret, "sev-master-secret", nonce)
    return derive(master, "sev-kek"), derive(master, "sev-kik")


def ctr(key: bytes, iv: bytes, data: bytes) -> bytes:
    """AES-128 in counter mode, the 16 bytes of `iv` as the first big-endian counter; encrypts and decrypts alike."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    cipher = Cipher(algorithms.AES(key), modes.CTR(iv)).encryptor()
    return cipher.update(data) + cipher.finalize()


class Counter:
    """AES-128 in counter mode with one key, for many messages; not for several threads at once.

    Args:
        key: 16 bytes.
    """

    __slots__ = ("_context",)

    def __init__(self, key: bytes) -> None:
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

        self._context = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()

    def run(self, iv: bytes, data: bytes) -> bytes:
        """As `ctr` with this key."""
        self._context.reset_nonce(iv)
        return self._context.update(data)
