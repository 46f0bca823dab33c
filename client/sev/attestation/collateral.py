"""Collateral: the certificates and revocation lists that come with a report, none of them trusted for being there."""

from __future__ import annotations

from sev.abi import cert_table
from sev.certs.crl import Crl
from sev.certs.errors import CertificateUnreadable, CrlUnreadable, LeafMissing
from sev.certs.files import load_all, load_certificates, load_crls
from sev.certs.x509 import Certificate
from sev.errors import MalformedInput

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from sev.abi.report import Report

MAX_CERTIFICATES = 64
"""More certificates or lists than this in one collateral are refused."""

LEAF_KINDS = ("vcek", "vlek")


class Collateral:
    """What a verification may use beside the report and the roots.

    Args:
        vek: The VCEK or VLEK, DER or PEM; a file that also holds its chain will do.
        certificates: Further certificates, DER or PEM, several in one item if need be: authorities, and leaves to
            choose from where `vek` is not given.
        crls: Revocation lists, DER or PEM.
        certificate_table: The host's certificate table (GHCB); its leaf is used where `vek` is not given.
    """

    __slots__ = ("_certificate_table", "_certificates", "_crls", "_read", "_vek")

    def __init__(
        self,
        vek: bytes | Certificate | None = None,
        certificates: Sequence[bytes | Certificate] = (),
        crls: Sequence[bytes | Crl] = (),
        certificate_table: bytes | None = None,
    ) -> None:
        self._vek = vek
        self._certificates = certificates
        self._crls = crls
        self._certificate_table = certificate_table
        self._read: tuple[tuple[Certificate, ...], tuple[Certificate, ...], tuple[Certificate, ...]] | None = None

    def _contents(self) -> tuple[tuple[Certificate, ...], tuple[Certificate, ...], tuple[Certificate, ...]]:
        """What `vek` holds, all other certificates, and those of both that are no leaf; read once."""
        if self._read is None:
            own = _certificates(self._vek, "the VCEK or VLEK") if self._vek is not None else ()
            others: list[Certificate] = []
            for item in self._certificates:
                others += _certificates(item, "a certificate")
            if self._certificate_table is not None:
                others += read_table(self._certificate_table)
            if len(own) + len(others) > MAX_CERTIFICATES:
                raise CertificateUnreadable(f"more than {MAX_CERTIFICATES} certificates were given")
            authorities = [one for one in (*own, *others) if one.kind not in LEAF_KINDS]
            self._read = own, tuple(others), tuple(authorities)
        return self._read

    def leaf(self, report: Report) -> Certificate:
        """The certificate of the key that signed this report: `vek` if it was given, else the best fit of the others.

        Raises:
            LeafMissing: None of the right kind was given.
            CertificateUnreadable: A certificate that was given cannot be read.
        """
        own, others, _ = self._contents()
        if own:
            return next((one for one in own if one.kind in LEAF_KINDS), own[0])
        wanted = report.signing_key
        fitting = [one for one in others if one.kind == wanted]
        if not fitting:
            have = ", ".join(sorted({one.kind.upper() for one in others})) or "nothing"
            raise LeafMissing(f"the report is signed with a {wanted.upper()}, which was not given (given: {have})")
        if len(fitting) == 1:
            return fitting[0]
        return max(fitting, key=lambda one: _fit(one, report))

    def authorities(self) -> tuple[Certificate, ...]:
        """Every certificate that is no leaf."""
        return self._contents()[2]

    def crls(self) -> list[Crl]:
        """The revocation lists.

        Raises:
            CrlUnreadable: One of them cannot be read, or there are more than 64.
        """
        found = [crl for item in self._crls for crl in _lists(item)]
        if len(found) > MAX_CERTIFICATES:
            raise CrlUnreadable(f"more than {MAX_CERTIFICATES} revocation lists were given")
        return found


def read_table(table: bytes) -> list[Certificate]:
    """The certificates of a certificate table.

    Authorities that cannot be read are passed over, because hosts fill those entries carelessly and the chain is built
    in; so are unknown GUIDs and revocation lists, which prove nothing when the host itself chooses them.

    Raises:
        CertificateUnreadable: The table, or the VCEK or VLEK in it, is malformed.
    """
    certificates: list[Certificate] = []
    try:
        entries = cert_table.parse(table)
    except MalformedInput as error:
        raise CertificateUnreadable(f"the certificate table cannot be read: {error.message}") from error
    for guid, content in entries:
        name = cert_table.NAMES.get(guid, "")
        if name in LEAF_KINDS:
            certificates += _certificates(content, f"the {name.upper()} in the certificate table")
        elif name in ("ask", "ark"):
            try:
                certificates += load_all(content)[0]
            except MalformedInput:
                continue
    return certificates


def _certificates(item: bytes | Certificate, what: str) -> tuple[Certificate, ...]:
    if isinstance(item, Certificate):
        return (item,)
    try:
        return load_certificates(item)
    except MalformedInput as error:
        raise CertificateUnreadable(f"{what} cannot be read: {error.message}") from error


def _lists(item: bytes | Crl) -> tuple[Crl, ...]:
    if isinstance(item, Crl):
        return (item,)
    try:
        return tuple(load_crls(item))
    except MalformedInput as error:
        raise CrlUnreadable(f"the revocation list cannot be read: {error.message}") from error


def _fit(certificate: Certificate, report: Report) -> tuple[bool, bool]:
    """How well a leaf fits a report: the same chip, then the same TCB."""
    hwid = certificate.hwid
    same_chip = hwid is None or report.chip_id.startswith(hwid)
    product = certificate.product
    if product is None or not product.has_snp:
        return same_chip, False
    raw = report.tcb_raw("reported_tcb")
    places = dict(product.tcb_bytes)
    levels = certificate.tcb
    return same_chip, all(levels.get(name) == raw >> 8 * place & 0xFF for name, place in places.items())
