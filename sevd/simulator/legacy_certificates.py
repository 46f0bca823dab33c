"""What the firmware of legacy SEV makes of certificates that it is given: a certificate, or a status.

A slot with exactly one of usage and algorithm free is BAD_SIGNATURE; no slot of the expected signer is
INVALID_CERTIFICATE; one that does not verify is BAD_SIGNATURE. A body must have version 1, the usage and algorithm that
belong together, and a point of P-384.

Source: behaviour of AMD's published Genoa firmware.
"""

from __future__ import annotations

from sev import status
from sev.abi import amd_certificate
from sev.abi import sev_certificate as abi
from sev.abi.amd_certificate import AmdCertificate
from sev.abi.sev_certificate import SevCertificate
from sev.errors import MalformedInput
from sevd.simulator.firmware_status import FirmwareStatus


def judged(data: bytes, usage: int) -> SevCertificate:
    """A certificate (2084 bytes) whose body is what it must be for this usage; else INVALID_CERTIFICATE."""
    certificate = SevCertificate.decode(data)
    expected = (abi.VERSION, usage, abi.ALGORITHM_OF[usage])
    try:
        if (certificate.version, certificate.usage, certificate.algorithm) != expected:
            raise FirmwareStatus(status.INVALID_CERTIFICATE)
        certificate.public_key()
    except MalformedInput:
        raise FirmwareStatus(status.INVALID_CERTIFICATE) from None
    return certificate


def need_signature(certificate: SevCertificate, signer: SevCertificate | AmdCertificate) -> None:
    """The signer's signature in either slot, or a status."""
    from sev.certs import sev_signatures  # a start checks nothing

    for each in certificate.signatures:
        if (each.usage == abi.INVALID) != (each.algorithm == abi.NONE):
            raise FirmwareStatus(status.BAD_SIGNATURE)
    try:
        sev_signatures.verify(certificate, signer)
    except sev_signatures.NotSignedBy:
        raise FirmwareStatus(status.INVALID_CERTIFICATE) from None
    except sev_signatures.SevSignatureInvalid:
        raise FirmwareStatus(status.BAD_SIGNATURE) from None
    except MalformedInput:
        raise FirmwareStatus(status.INVALID_CERTIFICATE) from None


def authorities(data: bytes, own: bytes) -> AmdCertificate:
    """The ASK of a platform that migration goes to: signed by the ARK that this chip knows from its fuses.

    Args:
        data: ASK and ARK of that platform, in any order.
        own: ASK and ARK of this chip's line.

    Raises:
        FirmwareStatus: INVALID_CERTIFICATE: another ARK, or none of the two; BAD_SIGNATURE.
    """
    from sev.certs import sev_signatures

    try:
        found = {each.usage: each for each in amd_certificate.split(data)}
        fused = {each.usage: each for each in amd_certificate.split(own)}[abi.ARK]
        ask, ark = found[abi.ASK], found[abi.ARK]
    except (MalformedInput, KeyError):
        raise FirmwareStatus(status.INVALID_CERTIFICATE) from None
    if (ark.key_id, ark.modulus, ark.exponent) != (fused.key_id, fused.modulus, fused.exponent):
        raise FirmwareStatus(status.INVALID_CERTIFICATE)
    try:
        sev_signatures.verify_authority(ark, fused)
        sev_signatures.verify_authority(ask, fused)
    except sev_signatures.NotSignedBy:
        raise FirmwareStatus(status.INVALID_CERTIFICATE) from None
    except (sev_signatures.SevSignatureInvalid, MalformedInput):
        raise FirmwareStatus(status.BAD_SIGNATURE) from None
    return ask
