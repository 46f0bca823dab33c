"""A simulated SVSM: what a guest that runs under a Secure VM Service Module asks it for.

It sits at VMPL 0 and holds VMPCK 0; the guest runs at VMPL 2. Its attestation protocol answers a report whose report
data is SHA-512 of nonce and manifest, with that manifest. The one service it offers is a vTPM, whose manifest is the
public area of its endorsement key (TPMT_PUBLIC, big-endian, as the TPM 2.0 library writes it; TCG's template for
NIST P-256). No TPM stands behind it.

Manifest of all services, GUIDs in the mixed order of UUID.bytes_le, integers little-endian:

    0x00  16  GUID of the manifest     0x10  4  bytes of all of it     0x14  4  number of services
    then for each service 24 bytes: GUID, offset u32, size u32; then the services' own manifests

Source: AMD 58019, attestation and vTPM protocols.
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import struct
from uuid import UUID

from cryptography.hazmat.primitives.asymmetric import ec

from sev.abi import guest_device as abi
from sev.abi import guest_message as messages
from sevd.simulator.errnos import fail
from sevd.simulator.guest_channel import Call, GuestChannel

GUEST_VMPL = 2
"""Where the guest's kernel runs."""

PROVIDER = "svsm"
MANIFEST_GUID = UUID("63849ebb-3d92-4670-a1ff-58f9c94b87bb")
VTPM_GUID = UUID("c476f1eb-0123-45a5-9641-b4e7dde5bfe3")
MANIFEST_VERSION = 0
"""The only version of the vTPM's manifest."""

ENTRY_SIZE = 24
_CERTS_PAGES = abi.CERTS_MAX // abi.CERTS_PAGE

_ECC, _SHA256, _AES, _CFB, _NULL, _P256 = 0x0023, 0x000B, 0x0006, 0x0043, 0x0010, 0x0003
_EK_ATTRIBUTES = 0x000300B2
"""fixedTPM, fixedParent, sensitiveDataOrigin, adminWithPolicy, restricted, decrypt."""
_EK_POLICY = bytes.fromhex("837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa")
"""PolicySecret of the endorsement hierarchy."""


class Svsm:
    """One guest's SVSM.

    Args:
        channel: VMPCK 0.
        seed: What its vTPM's key is made of, secret.
    """

    def __init__(self, channel: GuestChannel, seed: bytes) -> None:
        self.channel = channel
        secret = int.from_bytes(hmac.digest(seed, b"vtpm endorsement key", "sha384"), "big")
        order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
        numbers = ec.derive_private_key(secret % (order - 1) + 1, ec.SECP256R1()).public_key().public_numbers()
        self._vtpm = public_area(numbers.x, numbers.y)

    def attest(self, nonce: bytes, service: bytes, version: int) -> tuple[bytes, bytes, bytes]:
        """SVSM_ATTEST_SERVICES, or SVSM_ATTEST_SINGLE_SERVICE.

        Args:
            nonce: What the guest wants to see in the report.
            service: GUID of a service, in the order of UUID.bytes_le; zeros: all of them.
            version: Version of that service's manifest.

        Returns:
            Report (1184 bytes), certificate table, manifest.

        Raises:
            OSError: EINVAL: no such service or version, or whatever else goes wrong, as the guest's kernel has it.
        """
        if not any(service):
            manifest = services_manifest([(VTPM_GUID, self._vtpm)])
        elif service == VTPM_GUID.bytes_le and version == MANIFEST_VERSION:
            manifest = self._vtpm
        else:
            fail(errno.EINVAL)
        request = abi.ReportRequest(hashlib.sha512(nonce + manifest).digest()).encode()
        call = Call(messages.REPORT_REQ, abi.MESSAGE_VERSION, request, abi.REPORT_RESPONSE_SIZE, _CERTS_PAGES)
        try:
            code, report = messages.report_response(self.channel.send(call))
        except OSError:
            fail(errno.EINVAL)
        if code:
            fail(errno.EINVAL)
        return report, call.certificates, manifest


def services_manifest(services: list[tuple[UUID, bytes]]) -> bytes:
    """The manifest of all services."""
    head, body = bytearray(), bytearray()
    start = ENTRY_SIZE * (len(services) + 1)
    for guid, manifest in services:
        head += guid.bytes_le + struct.pack("<II", start + len(body), len(manifest))
        body += manifest
    return MANIFEST_GUID.bytes_le + struct.pack("<II", start + len(body), len(services)) + bytes(head + body)


def public_area(x: int, y: int) -> bytes:
    """TPMT_PUBLIC of an endorsement key on NIST P-256: 122 bytes."""
    template = struct.pack(">HHIH", _ECC, _SHA256, _EK_ATTRIBUTES, len(_EK_POLICY)) + _EK_POLICY
    parameters = struct.pack(">HHHHHH", _AES, 128, _CFB, _NULL, _P256, _NULL)
    return template + parameters + b"".join(struct.pack(">H", 32) + part.to_bytes(32, "big") for part in (x, y))
