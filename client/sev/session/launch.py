"""A guest owner's session with one platform: what LAUNCH_START takes, made from the platform's verified chain."""

from __future__ import annotations

from sev.abi import sev_certificate as abi
from sev.abi.sev_certificate import SevCertificate
from sev.abi.sev_policy import RESERVED, SevPolicy
from sev.errors import UsageError
from sev.records import record
from sev.session import blob as blobs
from sev.session.keys import TransportKeys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from sev.certs.sev_chain import VerifiedChain

OWNER_API = (0, 0)
"""API version in an owner's certificate: no firmware made it, and none looks at it."""


@record
class LaunchStart:
    """What the host hands to LAUNCH_START; nothing in it is secret.

    Attributes:
        policy: Guest policy.
        certificate: The owner's ECDH certificate, 2084 bytes.
        session: The launch blob, 128 bytes.
    """

    policy: int
    certificate: bytes
    session: bytes


class Session:
    """The owner's side of one guest. Keep `keys`: they check the measurement and encrypt the secrets.

    Attributes:
        policy: Guest policy.
        keys: Transport keys, secret.
    """

    __slots__ = ("keys", "policy")

    def __init__(self, policy: SevPolicy, keys: TransportKeys) -> None:
        """
        Raises:
            UsageError: Reserved bits in the policy.
        """
        if policy.raw & RESERVED:
            raise UsageError(f"policy {policy}: reserved bits must be zero", field="policy")
        self.policy = policy
        self.keys = keys

    @classmethod
    def create(cls, policy: SevPolicy | int) -> Session:
        """A session with fresh keys."""
        return cls(SevPolicy(policy) if isinstance(policy, int) else policy, TransportKeys.generate())

    def start(
        self,
        chain: VerifiedChain,
        *,
        key: Any = None,
        nonce: bytes | None = None,
        iv: bytes | None = None,
    ) -> LaunchStart:
        """The launch blob for the platform whose chain this is.

        Args:
            chain: What `sev.certs.sev_chain.verify` answered.
            key: Private P-384 key of the owner; a fresh one if none is given, which is best.
            nonce: 16 bytes; fresh ones if not given.
            iv: 16 bytes; fresh ones if not given.
        """
        return self.start_unverified(chain.pdh, key=key, nonce=nonce, iv=iv)

    def start_unverified(
        self,
        pdh: SevCertificate,
        *,
        key: Any = None,
        nonce: bytes | None = None,
        iv: bytes | None = None,
    ) -> LaunchStart:
        """As `start`, for a PDH that nobody vouches for: whoever made it can read the guest.

        Raises:
            UsageError: Not a PDH, or a key of another curve.
            MalformedInput: Its key is not a point of P-384.
        """
        from cryptography.hazmat.primitives.asymmetric import ec

        if pdh.usage != abi.PDH or pdh.algorithm not in (abi.ECDH_SHA256, abi.ECDH_SHA384):
            raise UsageError(f"a launch blob is made for a PDH, and this is a {pdh.name}", field="pdh")
        if key is None:
            key = ec.generate_private_key(ec.SECP384R1())
        if not isinstance(getattr(key, "curve", None), ec.SECP384R1):
            raise UsageError("the owner's key must be of P-384", field="key")
        shared = key.exchange(ec.ECDH(), pdh.public_key())
        made = blobs.wrap(self.keys, shared, self.policy.raw, nonce=nonce, iv=iv)
        certificate = SevCertificate.of_key(abi.PDH, key.public_key(), OWNER_API)
        return LaunchStart(self.policy.raw, certificate.encode(), made.encode())
