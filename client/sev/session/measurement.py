"""The launch measurement of SEV and SEV-ES: what LAUNCH_MEASURE answers, and what the guest owner expects of it.

48 bytes: the measure (HMAC-SHA256 with the TIK), 32, and the firmware's nonce, 16. Firmware with an API before 0.17
leaves its version and the leading 0x04 out of what is authenticated (SEV API specification, LAUNCH_MEASURE).
"""

from __future__ import annotations

import hmac
from hashlib import sha256

from sev.errors import MalformedInput, UsageError, VerificationError
from sev.records import record
from sev.session import kdf

BLOB_SIZE = 48
"""Bytes that LAUNCH_MEASURE answers."""
MEASURE_SIZE = 32
MNONCE_SIZE = 16
DIGEST_SIZE = 32
"""Bytes of a launch digest (SHA-256)."""

VERSIONED_SINCE = (0, 17)
"""API version from which the measure covers the firmware's version, and a secret's MAC the measure."""

_CONTEXT = b"\x04"


class BadMeasurement(VerificationError):
    """The guest that was launched is not the guest that was expected."""

    reason = "BAD_LAUNCH_MEASUREMENT"


@record
class Launch:
    """What a measure is about.

    Attributes:
        digest: Launch digest, 32 bytes (`sev.measurement`, or a `RunningDigest`).
        policy: Guest policy, 32 bits.
        api_major: API version of the firmware that launched, as PLATFORM_STATUS tells it; 8 bits.
        api_minor: 8 bits.
        build: Its build, 8 bits.
    """

    digest: bytes
    policy: int
    api_major: int
    api_minor: int
    build: int

    def __post_init__(self) -> None:
        if len(self.digest) != DIGEST_SIZE:
            raise MalformedInput(
                f"launch digest: {len(self.digest)} bytes where exactly {DIGEST_SIZE} were expected", field="digest"
            )
        for name, bits in (("policy", 32), ("api_major", 8), ("api_minor", 8), ("build", 8)):
            value = getattr(self, name)
            if not 0 <= value < 1 << bits:
                raise UsageError(f"{name}: {value} does not fit in {bits} bits", field=name)


def compute(tik: bytes, launch: Launch, mnonce: bytes) -> bytes:
    """The measure, 32 bytes, that firmware answers for this launch with this nonce (16 bytes)."""
    if len(mnonce) != MNONCE_SIZE:
        raise MalformedInput(f"mnonce: {len(mnonce)} bytes where exactly {MNONCE_SIZE} were expected", field="mnonce")
    if len(tik) != kdf.KEY_SIZE:
        raise MalformedInput(f"tik: {len(tik)} bytes where exactly {kdf.KEY_SIZE} were expected", field="tik")
    head = b""
    if versioned(launch.api_major, launch.api_minor):
        head = _CONTEXT + bytes((launch.api_major, launch.api_minor, launch.build))
    return kdf.mac(tik, head + launch.policy.to_bytes(4, "little") + launch.digest + mnonce)


def build(tik: bytes, launch: Launch, mnonce: bytes) -> bytes:
    """What LAUNCH_MEASURE answers for this launch: measure and nonce, 48 bytes."""
    return compute(tik, launch, mnonce) + mnonce


def check(tik: bytes, blob: bytes, launch: Launch) -> bytes:
    """The measure (32 bytes) of a blob of LAUNCH_MEASURE, if it is this launch's; a secret is bound to it.

    Raises:
        MalformedInput: Not 48 bytes.
        BadMeasurement: Another guest, policy, firmware or key.
    """
    measure, mnonce = split(blob)
    if not hmac.compare_digest(compute(tik, launch, mnonce), measure):
        raise BadMeasurement(
            "the measurement is not that of the expected launch",
            remedy="Compare firmware image, kernel, vCPUs, policy and firmware version with what the host launched: "
            "any difference gives another measurement. Do not hand out a secret.",
            field="measurement",
        )
    return measure


def split(blob: bytes) -> tuple[bytes, bytes]:
    """(measure, nonce) of what LAUNCH_MEASURE answered. Raises MalformedInput unless it is exactly 48 bytes."""
    if len(blob) != BLOB_SIZE:
        raise MalformedInput(
            f"measurement: {len(blob)} bytes where exactly {BLOB_SIZE} were expected: measure 32, nonce 16",
            field="measurement",
        )
    return bytes(blob[:MEASURE_SIZE]), bytes(blob[MEASURE_SIZE:])


def versioned(api_major: int, api_minor: int) -> bool:
    """Whether firmware of this API covers its own version with the measure."""
    return (api_major, api_minor) >= VERSIONED_SINCE


class RunningDigest:
    """The launch digest of regions in the order in which the host encrypts them: SHA-256 over their plain content."""

    __slots__ = ("_hash",)

    def __init__(self) -> None:
        self._hash = sha256()

    def update(self, region: bytes | bytearray | memoryview) -> None:
        """One LAUNCH_UPDATE_DATA or LAUNCH_UPDATE_VMSA."""
        self._hash.update(region)

    def digest(self) -> bytes:
        """The digest so far, 32 bytes."""
        return self._hash.digest()
