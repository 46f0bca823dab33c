"""Attestation reports: which key signs, what stands in them, and the signature.

The layout follows AMD 56860, ATTESTATION_REPORT; versions 2, 3 and 5 differ in what they fill: CPUID from 3 on, the
mitigation vectors from 5 on. Integers are little-endian, so are R and S of the signature (72 bytes each).
"""

from __future__ import annotations

import struct

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from sev import status
from sev.records import record
from sevd.simulator import hash_sticks
from sevd.simulator.firmware_platform import Platform
from sevd.simulator.firmware_status import FirmwareStatus
from sevd.simulator.gctx import GuestContext

REPORT_SIZE = 0x4A0
SIGNED_SIZE = 0x2A0
HOST_VMPL = 0xFFFFFFFF
"""VMPL of a report that the host asked for."""

SIGNER_VCEK, SIGNER_VLEK, SIGNER_NONE = 0, 1, 7
ANY_KEY, VCEK_ONLY, VLEK_ONLY = 0, 1, 2

_ECDSA_P384_SHA384 = 1


@record
class Signer:
    """A choice of key.

    Attributes:
        number: SIGNING_KEY of the report: 0 VCEK, 1 VLEK, 7 none.
        secret: The 48 bytes under the key; empty for none.
    """

    number: int
    secret: bytes

    def __repr__(self) -> str:
        return f"<Signer {self.number}>"

    def private_key(self) -> ec.EllipticCurvePrivateKey | None:
        """The P-384 key; None where reports go unsigned."""
        if self.number == SIGNER_NONE:
            return None
        label = hash_sticks.VLEK_LABEL if self.number == SIGNER_VLEK else hash_sticks.VCEK_LABEL
        return hash_sticks.private_key(self.secret, label)


def choose_signer(platform: Platform, guest: GuestContext, key_selection: int) -> Signer:
    """The key for a request's key_sel (0 VLEK if loaded else VCEK, 1 VCEK, 2 VLEK).

    Raises:
        FirmwareStatus: INVALID_KEY: a reserved selection, no VLEK loaded, or VCEK use disabled for the guest.
    """
    if key_selection in (ANY_KEY, VLEK_ONLY) and platform.vlek is not None:
        return Signer(SIGNER_VLEK, platform.vlek[-1])
    if key_selection not in (ANY_KEY, VCEK_ONLY) or guest.vcek_disabled:
        raise FirmwareStatus(status.INVALID_KEY)
    if platform.mask_chip_key:
        return Signer(SIGNER_NONE, b"")
    return Signer(SIGNER_VCEK, platform.chip.vcek_hash(platform.reported_tcb))


def report(platform: Platform, guest: GuestContext, report_data: bytes, vmpl: int, key_selection: int) -> bytes:
    """A signed report, 1184 bytes.

    Raises:
        FirmwareStatus: INVALID_KEY, as `choose_signer`.
    """
    signer = choose_signer(platform, guest, key_selection)
    body = _body(platform, guest, report_data, vmpl, signer.number)
    key = signer.private_key()
    return body + (bytes(REPORT_SIZE - SIGNED_SIZE) if key is None else _sign(key, body, platform.deterministic))


def _body(platform: Platform, guest: GuestContext, report_data: bytes, vmpl: int, signer: int) -> bytes:
    release = platform.release
    out = bytearray(SIGNED_SIZE)
    struct.pack_into("<IIQ", out, 0x000, release.report_version, guest.guest_svn, guest.policy)
    out[0x010:0x030] = guest.family_id + guest.image_id
    struct.pack_into("<II8sQ", out, 0x030, vmpl, _ECDSA_P384_SHA384, platform.current_tcb, platform.platform_info)
    out[0x048] = int(guest.auth_key_en) | int(platform.mask_chip_key) << 1 | signer << 2
    out[0x050:0x090] = report_data
    out[0x090:0x0C0] = guest.digest
    out[0x0C0:0x0E0] = guest.host_data
    out[0x0E0:0x140] = guest.id_key_digest + guest.author_key_digest
    out[0x140:0x180] = guest.report_id + guest.report_id_ma
    out[0x180:0x188] = platform.reported_tcb
    if release.report_version >= 3:
        out[0x188:0x18B] = bytes(platform.product.sample_cpuid)
    if not platform.mask_chip_id:
        out[0x1A0:0x1E0] = platform.chip.identifier
    out[0x1E0:0x1E8] = platform.committed_tcb
    out[0x1E8:0x1F0] = bytes((*reversed(platform.version), 0, *reversed(platform.committed_version), 0))
    out[0x1F0:0x1F8] = guest.launch_tcb
    if release.report_version >= 5:
        struct.pack_into("<QQ", out, 0x1F8, guest.launch_mitigations, release.mitigations)
    return bytes(out)


def _sign(key: ec.EllipticCurvePrivateKey, body: bytes, deterministic: bool) -> bytes:
    """The 512-byte signature field; by RFC 6979 where runs must repeat."""
    algorithm = ec.ECDSA(hashes.SHA384())
    if deterministic:
        try:
            algorithm = ec.ECDSA(hashes.SHA384(), deterministic_signing=True)
        except UnsupportedAlgorithm:  # an OpenSSL before 3.2: signatures then differ from run to run
            algorithm = ec.ECDSA(hashes.SHA384())
    r, s = decode_dss_signature(key.sign(body, algorithm))
    return r.to_bytes(72, "little") + s.to_bytes(72, "little") + bytes(REPORT_SIZE - SIGNED_SIZE - 144)
