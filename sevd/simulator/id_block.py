"""The firmware's check of an ID block and its authentication page, in the firmware's order.

ID block, 96 bytes: launch digest 48, family id 16, image id 16, version u32, guest SVN u32, policy u64.
ID authentication, 4096 bytes: ID key algorithm u32, author key algorithm u32, ID block signature at 0x040, ID key at
0x240, ID key signature at 0x680, author key at 0x880. Keys are 0x404 bytes, signatures 512, integers little-endian.

Source: SEV-SNP firmware ABI (AMD 56860), SNP_LAUNCH_FINISH; behaviour of AMD's published Genoa firmware.
"""

from __future__ import annotations

import hashlib

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from sev import status
from sev.records import record
from sevd.simulator.firmware_status import FirmwareStatus
from sevd.simulator.gctx import GuestContext
from sevd.simulator.hash_sticks import P384_ORDER

BLOCK_SIZE = 96
AUTH_SIZE = 4096
KEY_SIZE = 0x404
SIGNATURE_SIZE = 512
ECDSA_P384_SHA384 = 1
CURVE_P384 = 2

_BLOCK_SIGNATURE, _ID_KEY, _KEY_SIGNATURE, _AUTHOR_KEY = 0x40, 0x240, 0x680, 0x880


@record
class Identity:
    """What a good ID block says about a guest."""

    family_id: bytes
    image_id: bytes
    guest_svn: int
    id_key_digest: bytes
    author_key_digest: bytes


def check(guest: GuestContext, block: bytes, auth: bytes, auth_key_en: bool) -> Identity:
    """The identity in an ID block.

    Raises:
        FirmwareStatus: BAD_MEASUREMENT for another launch digest, POLICY_FAILURE for another policy, INVALID_PARAM for
            a wrong size or algorithm, BAD_SIGNATURE for a bad key or signature; in this order.
    """
    if len(block) != BLOCK_SIZE or len(auth) != AUTH_SIZE:
        raise FirmwareStatus(status.INVALID_PARAM)
    if block[:48] != guest.digest:
        raise FirmwareStatus(status.BAD_MEASUREMENT)
    if int.from_bytes(block[0x58:0x60], "little") != guest.policy:
        raise FirmwareStatus(status.POLICY_FAILURE)
    algorithms = (int.from_bytes(auth[0:4], "little"), int.from_bytes(auth[4:8], "little"))
    if algorithms[0] != ECDSA_P384_SHA384 or (auth_key_en and algorithms[1] != ECDSA_P384_SHA384):
        raise FirmwareStatus(status.INVALID_PARAM)
    id_key = auth[_ID_KEY : _ID_KEY + KEY_SIZE]
    _verify(id_key, auth[_BLOCK_SIGNATURE : _BLOCK_SIGNATURE + SIGNATURE_SIZE], block)
    author_digest = bytes(48)
    if auth_key_en:
        author_key = auth[_AUTHOR_KEY : _AUTHOR_KEY + KEY_SIZE]
        _verify(author_key, auth[_KEY_SIGNATURE : _KEY_SIGNATURE + SIGNATURE_SIZE], id_key)
        author_digest = hashlib.sha384(author_key).digest()
    return Identity(
        family_id=block[0x30:0x40],
        image_id=block[0x40:0x50],
        guest_svn=int.from_bytes(block[0x54:0x58], "little"),
        id_key_digest=hashlib.sha384(id_key).digest(),
        author_key_digest=author_digest,
    )


def _verify(key: bytes, signature: bytes, message: bytes) -> None:
    """ECDSA P-384 with SHA-384 over `message`; anything wrong with key or signature is BAD_SIGNATURE."""
    x, y = int.from_bytes(key[4:76], "little"), int.from_bytes(key[76:148], "little")
    r, s = int.from_bytes(signature[:72], "little"), int.from_bytes(signature[72:144], "little")
    bad = FirmwareStatus(status.BAD_SIGNATURE)
    if int.from_bytes(key[:4], "little") != CURVE_P384 or not (0 < r < P384_ORDER and 0 < s < P384_ORDER):
        raise bad
    try:
        public = ec.EllipticCurvePublicNumbers(x, y, ec.SECP384R1()).public_key()
        public.verify(encode_dss_signature(r, s), message, ec.ECDSA(hashes.SHA384()))
    except (ValueError, InvalidSignature):
        raise bad from None
