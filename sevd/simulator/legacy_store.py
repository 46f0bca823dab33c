"""The persistent store of legacy SEV: the platform's key pairs and certificates, sealed for one chip.

It lies in the chip's own flash, or after INIT_EX in 32 KiB of the host's memory. Nobody but the chip can read it or
make one that it takes. The model's layout, little-endian; all that follows is 0xFF:

    0x00   4  "SVNV"; 0xFF in all four bytes: the store is empty     owned u32 | OCA scalar 48, zero if not ours
    0x04  16  IV                                                     PEK scalar 48 | PDH scalar 48
    0x14   4  bytes of ciphertext                                    OCA certificate | PEK's | PDH's, 2084 each
    0x18      AES-128-CTR of what stands on the right
          32  HMAC-SHA256 of IV and ciphertext

Source for what is stored and how it is protected: behaviour of AMD's published Genoa firmware.
"""

from __future__ import annotations

import hmac
import struct

from cryptography.hazmat.primitives.asymmetric import ec

from sev.abi.sev_certificate import SIZE, SevCertificate
from sev.records import record

NV_SIZE = 32 << 10
"""Bytes of the store in the host's memory."""

IV_SIZE = 16
EMPTY = b"\xff" * 4
_MAGIC = b"SVNV"
_HEAD = struct.Struct("<4s16sI")
_TAG = 32
_BODY = struct.Struct(f"<I48s48s48s{SIZE}s{SIZE}s{SIZE}s")

Key = ec.EllipticCurvePrivateKey


@record
class Identity:
    """The keys and certificates of a platform. Secret.

    Attributes:
        oca: OCA certificate.
        oca_key: Its key; None where it belongs to somebody else, who then owns the platform.
        pek: PEK certificate, signed by OCA and CEK.
        pek_key: Its key.
        pdh: PDH certificate, signed by the PEK.
        pdh_key: Its key.
    """

    oca: SevCertificate
    oca_key: Key | None
    pek: SevCertificate
    pek_key: Key
    pdh: SevCertificate
    pdh_key: Key

    @property
    def owned(self) -> bool:
        """Somebody outside owns the platform."""
        return self.oca_key is None

    def __repr__(self) -> str:
        return f"<Identity {'owned' if self.owned else 'self-owned'}>"


def seal(identity: Identity, keys: tuple[bytes, bytes], iv: bytes) -> bytes:
    """The store's bytes, without the filling behind them.

    Args:
        identity: What is stored.
        keys: The chip's keys (`Chip.storage_keys`).
        iv: 16 bytes, never used twice with one chip.
    """
    oca_key = bytes(48) if identity.oca_key is None else _scalar(identity.oca_key)
    body = _BODY.pack(
        int(identity.owned), oca_key, _scalar(identity.pek_key), _scalar(identity.pdh_key),
        identity.oca.encode(), identity.pek.encode(), identity.pdh.encode(),
    )  # fmt: skip
    sealed = _ctr(keys[0], iv, body)
    return _HEAD.pack(_MAGIC, iv, len(sealed)) + sealed + hmac.digest(keys[1], iv + sealed, "sha256")


def unseal(data: bytes, keys: tuple[bytes, bytes]) -> Identity | None:
    """The identity in a store that is not empty; None if this chip did not make it, or it was changed."""
    end = _HEAD.size + _BODY.size
    if len(data) < end + _TAG:
        return None
    magic, iv, size = _HEAD.unpack_from(data)
    sealed, tag = data[_HEAD.size : end], data[end : end + _TAG]
    expected = hmac.digest(keys[1], iv + sealed, "sha256")
    if magic != _MAGIC or size != _BODY.size or not hmac.compare_digest(tag, expected):
        return None
    owned, oca_key, pek_key, pdh_key, oca, pek, pdh = _BODY.unpack(_ctr(keys[0], iv, sealed))
    return Identity(
        SevCertificate.decode(oca), None if owned else private_key(oca_key),
        SevCertificate.decode(pek), private_key(pek_key),
        SevCertificate.decode(pdh), private_key(pdh_key),
    )  # fmt: skip


def is_empty(data: bytes | bytearray) -> bool:
    """Whether a store holds nothing: no bytes at all, or four of 0xFF at its start."""
    return not data or data[:4] == EMPTY


def private_key(scalar: bytes) -> Key:
    """A P-384 key from its scalar, 48 bytes big-endian."""
    return ec.derive_private_key(int.from_bytes(scalar, "big"), ec.SECP384R1())


def _scalar(key: Key) -> bytes:
    return key.private_numbers().private_value.to_bytes(48, "big")


def _ctr(key: bytes, iv: bytes, data: bytes) -> bytes:
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes  # no start needs them

    cipher = Cipher(algorithms.AES128(key), modes.CTR(iv)).encryptor()
    return cipher.update(data) + cipher.finalize()
