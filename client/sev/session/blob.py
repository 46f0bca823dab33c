"""The launch blob (session buffer): the transport keys, wrapped for one platform. 128 bytes.

nonce 16 | wrapped TEK and TIK 32 | IV 16 | MAC of what is wrapped 32 | MAC of the policy 32 (SEV API specification,
LAUNCH_START and SEND_START, "session data"). The policy is u32, little-endian.
"""

from __future__ import annotations

import hmac
import os

from sev.errors import MalformedInput, VerificationError
from sev.records import record
from sev.session import kdf
from sev.session.keys import TransportKeys

SIZE = 128
"""Bytes of the blob."""

_SIZES = {"nonce": 16, "wrap_tk": 32, "wrap_iv": 16, "wrap_mac": 32, "policy_mac": 32}


class BadSession(VerificationError):
    """A launch blob was made for another platform, another policy, or was changed; firmware says BAD_MEASUREMENT."""

    reason = "BAD_SESSION"


@record
class SessionBlob:
    """A launch blob.

    Attributes:
        nonce: 16 bytes that make the wrapping keys fresh.
        wrap_tk: TEK and TIK, encrypted with the KEK, 32 bytes.
        wrap_iv: Counter block of that, 16 bytes.
        wrap_mac: HMAC of `wrap_tk` with the KIK, 32 bytes.
        policy_mac: HMAC of the guest policy with the TIK, 32 bytes.
    """

    nonce: bytes
    wrap_tk: bytes
    wrap_iv: bytes
    wrap_mac: bytes
    policy_mac: bytes

    @classmethod
    def decode(cls, data: bytes) -> SessionBlob:
        """Reads a blob. Raises MalformedInput unless it is exactly 128 bytes."""
        if len(data) != SIZE:
            raise MalformedInput(
                f"launch blob: {len(data)} bytes where exactly {SIZE} were expected", field="session", remedy=_HINT
            )
        parts, offset = [], 0
        for size in _SIZES.values():
            parts.append(bytes(data[offset : offset + size]))
            offset += size
        return cls(*parts)

    def encode(self) -> bytes:
        """The 128 bytes."""
        return self.nonce + self.wrap_tk + self.wrap_iv + self.wrap_mac + self.policy_mac


_HINT = "A launch blob is 128 bytes; sevctl and `sev session create` write it in base64."


def wrap(
    keys: TransportKeys,
    shared_secret: bytes,
    policy: int,
    *,
    nonce: bytes | None = None,
    iv: bytes | None = None,
) -> SessionBlob:
    """Wraps transport keys.

    Args:
        keys: What the platform is to get.
        shared_secret: X coordinate of the ECDH point, 48 bytes, big-endian.
        policy: Guest policy, 32 bits.
        nonce: 16 bytes; fresh ones if not given.
        iv: 16 bytes; fresh ones if not given. The same nonce and IV must never wrap two different pairs of keys.
    """
    nonce = os.urandom(kdf.NONCE_SIZE) if nonce is None else nonce
    iv = os.urandom(16) if iv is None else iv
    for name, value in (("nonce", nonce), ("iv", iv)):
        if len(value) != 16:
            raise MalformedInput(f"{name}: {len(value)} bytes where exactly 16 were expected", field=name)
    kek, kik = kdf.transport(shared_secret, nonce)
    wrapped = kdf.ctr(kek, iv, keys.tek + keys.tik)
    return SessionBlob(nonce, wrapped, iv, kdf.mac(kik, wrapped), policy_mac(keys.tik, policy))


def unwrap(blob: SessionBlob, shared_secret: bytes, policy: int) -> TransportKeys:
    """The platform's side: checks a blob and takes the keys out.

    Raises:
        BadSession: The wrapping or the policy is not what the owner made.
    """
    kek, kik = kdf.transport(shared_secret, blob.nonce)
    if not hmac.compare_digest(kdf.mac(kik, blob.wrap_tk), blob.wrap_mac):
        raise BadSession("the launch blob was made for another PDH, or was changed", field="session")
    clear = kdf.ctr(kek, blob.wrap_iv, blob.wrap_tk)
    keys = TransportKeys(clear[: kdf.KEY_SIZE], clear[kdf.KEY_SIZE :])
    if not hmac.compare_digest(policy_mac(keys.tik, policy), blob.policy_mac):
        raise BadSession(f"the launch blob was made for another policy than 0x{policy:x}", field="policy")
    return keys


def policy_mac(tik: bytes, policy: int) -> bytes:
    """HMAC of the guest policy (u32) with the TIK, 32 bytes."""
    return kdf.mac(tik, policy.to_bytes(4, "little"))
