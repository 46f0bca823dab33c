"""Whether a certificate or list is worth keeping: genuine under the trusted roots, valid now, and of this chip.

1. An ARK is signed by the trusted root of its name: it is that root's own certificate.
2. An ASK or ASVK is signed by a trusted root of its product and may issue certificates.
3. A VCEK or VLEK hangs under its ASK or ASVK, built in, kept or given along.
4. All of them are valid now.
5. A VCEK is of this chip, a VLEK of this chip's processor line; both name a patch level for every TCB component.
6. A list is signed by a trusted root, and speaks now.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sev.abi.tcb import TcbVersion
from sev.attestation.errors import ChipIdMismatch, LeafIncomplete, ProductMismatch
from sev.certs import chain, signatures
from sev.certs.errors import (
    CertificateExpired,
    CertificateNotYetValid,
    CrlNotYetValid,
    CrlOfAnotherIssuer,
    CrlSignatureInvalid,
    CrlStale,
    IntermediateSignatureInvalid,
    NotAnAuthority,
)
from sev.certs.roots import Authority
from sev.errors import DeviceMissing, UsageError
from sevd.endorsements.model import EndorsementKind

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from sev.certs import Certificate, Crl, Roots
    from sev.products import Product
    from sevd.endorsements.model import ChipIdentity

KINDS = {
    "ark": EndorsementKind.ARK,
    "ask": EndorsementKind.ASK,
    "asvk": EndorsementKind.ASVK,
    "vcek": EndorsementKind.VCEK,
    "vlek": EndorsementKind.VLEK,
}
"""Kinds of certificates by the name that sev.certs gives them."""

LEAVES = (EndorsementKind.VCEK, EndorsementKind.VLEK)


def kind_of(certificate: Certificate) -> EndorsementKind:
    """What a certificate is. Raises UsageError if it is none of AMD's SNP certificates."""
    kind = KINDS.get(certificate.kind)
    if kind is None:
        raise UsageError(
            f"{certificate.subject_cn!r} is no ARK, ASK, ASVK, VCEK or VLEK",
            remedy="Give the certificates of AMD's key distribution service for this chip.",
        )
    return kind


def product_of(certificate: Certificate) -> Product:
    """Its processor line. Raises ProductMismatch if its names tell none that has SNP."""
    product = certificate.product
    if product is None or not product.has_snp:
        raise ProductMismatch(
            f"{certificate.subject_cn!r} names the product {certificate.product_name!r}, which has no SNP",
            field=certificate.kind,
        )
    return product


def tcb_of(leaf: Certificate) -> TcbVersion:
    """The TCB that a VCEK or VLEK endorses. Raises LeafIncomplete if a component has no patch level."""
    product = product_of(leaf)
    missing = [name for name in product.components if name not in leaf.tcb]
    if missing:
        raise LeafIncomplete(f"the {leaf.kind.upper()} names no patch level for {', '.join(missing)}", field=leaf.kind)
    levels = {name: value for name, value in leaf.tcb.items() if name in product.components}
    return TcbVersion.from_int(0, product).replace(**levels)


def check_genuine(certificate: Certificate, roots: Roots, given: Iterable[Certificate]) -> None:
    """Steps 1 to 3, and the patch levels: whether the certificate is what it says, whatever the time and the chip.

    Args:
        certificate: Any kind.
        roots: The trusted roots.
        given: Authorities at hand beside the built-in ones.

    Raises:
        VerificationError: Its subclasses, one per failure.
        CollateralError: The issuer is not at hand.
        UsageError: No certificate of AMD's SNP.
    """
    kind = kind_of(certificate)
    product_of(certificate)
    if kind is EndorsementKind.ARK:
        _check_root(certificate, roots)
    elif kind not in LEAVES:
        _check_intermediate(certificate, roots)
    else:
        chain.build(certificate, chain.issuers(certificate, roots, given))
        tcb_of(certificate)
        if kind is EndorsementKind.VCEK and certificate.hwid is None:
            raise LeafIncomplete("the VCEK names no chip (hwID)", field="vcek")


def check_certificate(
    certificate: Certificate,
    roots: Roots,
    given: Iterable[Certificate],
    identity: ChipIdentity | None,
    now: datetime,
) -> None:
    """Steps 1 to 5: whether the certificate is genuine, valid now, and of this chip.

    Args:
        certificate: Any kind.
        roots: The trusted roots.
        given: Authorities at hand beside the built-in ones.
        identity: This chip; None if it is not known.
        now: The time that dates are compared with.

    Raises:
        VerificationError, CollateralError, UsageError: As `check_genuine`.
        DeviceMissing: A VCEK, and this chip is not known.
    """
    kind, product = kind_of(certificate), product_of(certificate)
    if identity is not None and product is not identity.product:
        raise ProductMismatch(
            f"the {kind.name} is of {product.kds_name}, this host is {identity.product.kds_name}",
            field=certificate.kind,
            remedy=f"Give the certificates of {identity.product.kds_name}.",
        )
    check_genuine(certificate, roots, given)
    if kind is EndorsementKind.VCEK:
        _check_chip(certificate, product, identity)
    _check_dates(certificate, now)


def check_list(crl: Crl, roots: Roots, now: datetime | None) -> Product | None:
    """Raises unless a trusted root signed the list and it speaks now; answers the root's processor line.

    Raises:
        CrlOfAnotherIssuer, CrlSignatureInvalid, CrlNotYetValid, CrlStale: One per failure.
    """
    above = [root for root in roots.named(crl.issuer) if root in roots.arks]
    if not above:
        raise CrlOfAnotherIssuer(f"the list is of {crl.issuer_cn!r}, which is no trusted root", field="crl")
    for root in above:
        if root.may_sign_lists() and signatures.verifies(root.public_key(), crl.signature, crl.tbs):
            break
    else:
        raise CrlSignatureInvalid(f"the list is not signed by {crl.issuer_cn!r}, whose name it bears", field="crl")
    if now is not None and now < crl.this_update:
        raise CrlNotYetValid(f"the list is of {crl.this_update:%Y-%m-%dT%H:%M:%SZ}, in the future", field="crl")
    if now is not None and now >= crl.next_update:
        raise CrlStale(f"the list ran out on {crl.next_update:%Y-%m-%dT%H:%M:%SZ}", field="crl")
    return root.product


def _check_root(certificate: Certificate, roots: Roots) -> None:
    for root in roots.named(certificate.subject):
        # Signed with the trusted key: the certificate that the root came from, or one that was issued for it again.
        if root in roots.arks and root.signed(certificate):
            return
    raise IntermediateSignatureInvalid(
        f"the ARK {certificate.subject_cn!r} is none of the trusted roots",
        field="ark",
        remedy="Roots are built in and not imported; give the certificates below them.",
    )


def _check_intermediate(certificate: Certificate, roots: Roots) -> None:
    authority = Authority.of(certificate)
    if not authority.may_sign_certificates():
        raise NotAnAuthority(f"{certificate.subject_cn!r} may not issue certificates", field=certificate.kind)
    above = [root for root in roots.named(certificate.issuer) if root in roots.arks]
    if not any(root.signed(certificate) for root in above):
        raise IntermediateSignatureInvalid(
            f"the {certificate.kind.upper()} {certificate.subject_cn!r} is not signed by a trusted root",
            field=certificate.kind,
        )


def _check_chip(leaf: Certificate, product: Product, identity: ChipIdentity | None) -> None:
    if identity is None:
        raise DeviceMissing("the VCEK cannot be compared with this chip, whose identifier is not known", field="vcek")
    size, hwid = product.chip_id_bytes, leaf.hwid or b""
    if hwid[:size] != identity.chip_id[:size] or any(hwid[size:]):
        raise ChipIdMismatch(
            f"the VCEK is of chip {hwid[:size].hex()[:16]}…, this is {identity.chip_id.hex()[:16]}…",
            field="vcek",
            remedy="Fetch the VCEK for this chip's identifier (sev host show tells it).",
        )


def _check_dates(certificate: Certificate, now: datetime) -> None:
    kind = certificate.kind
    if now > certificate.not_after:
        raise CertificateExpired(
            f"the {kind.upper()} ran out on {certificate.not_after:%Y-%m-%dT%H:%M:%SZ}",
            field=kind,
            remedy="Fetch it again: AMD reissues certificates with new dates.",
        )
    if now < certificate.not_before:
        raise CertificateNotYetValid(
            f"the {kind.upper()} is valid from {certificate.not_before:%Y-%m-%dT%H:%M:%SZ}",
            field=kind,
            remedy="Check this machine's clock.",
        )
