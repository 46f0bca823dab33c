"""Owners and chains of legacy SEV for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric import ec

from sev.abi import amd_certificate
from sev.abi import sev_certificate as abi
from sev.abi.sev_certificate import SevCertificate
from sev.certs import sev_signatures
from sevd.simulator import Simulator
from sevd.simulator.ca import CertificateAuthority


class Boot(Protocol):
    """Powers a test's host on, in a kernel era."""

    def __call__(self, era: str = "C", *, init_ex_path: Path | None = None) -> Simulator: ...


class Owner:
    """Somebody who owns platforms: an OCA key and its certificate."""

    def __init__(self, number: int = 0x0C0A) -> None:
        self.key = ec.derive_private_key(number, ec.SECP384R1())
        bare = SevCertificate.of_key(abi.OCA, self.key.public_key(), (1, 55))
        self.certificate = sev_signatures.sign(bare, self.key, abi.OCA, slot=1, deterministic=True)

    @property
    def oca(self) -> bytes:
        """The certificate, 2084 bytes."""
        return self.certificate.encode()

    def sign(self, csr: bytes) -> bytes:
        """The PEK certificate that a platform imports."""
        return sev_signatures.sign(SevCertificate.read(csr), self.key, abi.OCA, slot=1, deterministic=True).encode()


def check_chain(pdh: bytes, chain: bytes, ca: CertificateAuthority) -> tuple[SevCertificate, ...]:
    """PDH, PEK, OCA and CEK as they were exported, every signature checked up to the authority's ARK.

    The exported CEK has no signature; the one that the authority issues stands in for it and has the same key.
    """
    exported = (SevCertificate.read(pdh), *abi.split(chain))
    pdh_, pek, oca, cek = exported
    assert [each.name for each in exported] == ["PDH", "PEK", "OCA", "CEK"]
    ask, ark = amd_certificate.split(ca.legacy_ca())
    signed = SevCertificate.read(ca.cek_certificate())
    assert all(each.free for each in cek.signatures)
    assert signed.key == cek.key
    sev_signatures.verify_authority(ark, ark)
    sev_signatures.verify_authority(ask, ark)
    assert sev_signatures.verify(signed, ask) == 1
    assert sev_signatures.verify(oca, oca) == 1
    assert (sev_signatures.verify(pek, oca), sev_signatures.verify(pek, signed)) == (1, 2)
    assert sev_signatures.verify(pdh_, pek) == 1
    return exported
