"""The attestation report of SEV and SEV-ES (command ATTESTATION): 208 bytes, signed by the platform's PEK.

mnonce 16 | launch digest 32 | policy u32 | signature usage u32 | signature algorithm u32 | reserved u32 |
signature 144: r and s, 72 bytes each, little-endian. Signed are the first 52 bytes, by ECDSA on P-384 with SHA-256
(SEV API specification, ATTESTATION).
"""

from __future__ import annotations

from sev.abi.sev_policy import SevPolicy
from sev.errors import MalformedInput
from sev.records import record

SIZE = 208
"""Bytes of the report."""
SIGNED = 52
"""Bytes that the signature covers."""

USAGE_PEK = 0x1002
ALGORITHM_ECDSA_SHA256 = 0x2

_R, _S, _PART = 64, 136, 72
_COORDINATE = 48
"""Bytes of a number on P-384; the rest of its 72 bytes is zero."""


@record
class LegacyReport:
    """A report as it was received.

    Attributes:
        raw: All 208 bytes.
    """

    raw: bytes

    @classmethod
    def parse(cls, data: bytes) -> LegacyReport:
        """Reads a report. Raises MalformedInput unless it is exactly 208 bytes."""
        if len(data) != SIZE:
            raise MalformedInput(
                f"SEV attestation report: {len(data)} bytes where exactly {SIZE} were expected", field="report"
            )
        return cls(bytes(data))

    @property
    def mnonce(self) -> bytes:
        """The nonce that whoever asked gave, 16 bytes."""
        return self.raw[:16]

    @property
    def launch_digest(self) -> bytes:
        """Launch digest, 32 bytes."""
        return self.raw[16:48]

    @property
    def policy(self) -> SevPolicy:
        """Guest policy."""
        return SevPolicy(int.from_bytes(self.raw[48:52], "little"))

    @property
    def signature_usage(self) -> int:
        """What signed it; 0x1002 is the PEK. Not covered by the signature."""
        return int.from_bytes(self.raw[52:56], "little")

    @property
    def signature_algorithm(self) -> int:
        """How; 2 is ECDSA with SHA-256. Not covered by the signature."""
        return int.from_bytes(self.raw[56:60], "little")

    @property
    def signed(self) -> bytes:
        """The bytes that the signature covers, 52."""
        return self.raw[:SIGNED]

    @property
    def signature(self) -> tuple[int, int]:
        """(r, s). Raises MalformedInput if either is longer than 48 bytes."""
        return _number(self.raw, _R), _number(self.raw, _S)

    def document(self) -> dict[str, object]:
        """The JSON form; byte strings in hex."""
        return {
            "mnonce": self.mnonce.hex(),
            "launch_digest": self.launch_digest.hex(),
            "policy": self.policy.document(),
            "signature_usage": self.signature_usage,
            "signature_algorithm": self.signature_algorithm,
        }


def encode(mnonce: bytes, digest: bytes, policy: int, r: int, s: int) -> bytes:
    """A report signed by a PEK, 208 bytes.

    Args:
        mnonce: 16 bytes.
        digest: 32 bytes.
        policy: 32 bits.
        r: Of the signature.
        s: Of the signature.
    """
    head = mnonce + digest + policy.to_bytes(4, "little")
    names = USAGE_PEK.to_bytes(4, "little") + ALGORITHM_ECDSA_SHA256.to_bytes(4, "little") + bytes(4)
    return head + names + r.to_bytes(_PART, "little") + s.to_bytes(_PART, "little")


def _number(raw: bytes, offset: int) -> int:
    if any(raw[offset + _COORDINATE : offset + _PART]):
        raise MalformedInput(
            f"SEV attestation report: offset 0x{offset:x}: a signature part longer than {_COORDINATE} bytes",
            field="signature",
        )
    return int.from_bytes(raw[offset : offset + _COORDINATE], "little")
