"""Certificates and lists from a key distribution service, each checked before it is answered.

An answer that is not what was asked for is an error: of another chip, another TCB, another key, or not signed up to a
trusted root. Where the roots are not AMD's (a simulator's), they have to be given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sev.errors import MalformedInput
from sev.kds import urls
from sev.kds.errors import KdsUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from datetime import datetime
    from typing import Protocol, TypeVar

    from sev.abi.amd_certificate import AmdCertificate
    from sev.abi.sev_certificate import SevCertificate
    from sev.abi.tcb import TcbVersion
    from sev.certs import Certificate, Crl, Roots
    from sev.certs.sev_roots import SevRoots
    from sev.products import Product

    T = TypeVar("T")
    Moment = datetime | Callable[[], datetime] | None

    class Service(Protocol):
        """Whom to ask: sev.kds.service.Service, or who asks for us.

        Attributes:
            url: The service's base URL.
        """

        url: str

        def get(self, url: str, what: str, limit: int = ..., *, content: bytes | None = None) -> bytes:
            """What is at an address. Raises KdsUnavailable."""


CERTIFICATE_LIMIT = 16 << 10
"""Bytes of a certificate or list at most; real ones have under 2000."""

STICKS_LIMIT = 80 << 10
"""Bytes of an answer with hash sticks at most: those of 64 chips."""

NOT_FOUND = "not found"
"""What the service answers for a chip that it does not know."""

_STICK_TCB = slice(0x190, 0x198)

_OTHER_ROOTS = "For a simulator's service name its roots (roots/ark.pem) with --roots; do not use it otherwise."


def cek(
    service: Service,
    chip_id: bytes,
    *,
    exported: bytes = b"",
    roots: SevRoots | None = None,
    authorities: Iterable[AmdCertificate] = (),
) -> SevCertificate:
    """The signed certificate of a chip's CEK.

    Args:
        service: Whom to ask.
        chip_id: As GET_ID gives it, 64 bytes.
        exported: The CEK as the chip's firmware exports it, 2084 bytes: the key must be the same.
        roots: Trusted roots; AMD's if none are given.
        authorities: ASKs at hand beside the roots' own.

    Raises:
        KdsUnavailable: The service does not answer, or does not know the chip.
        MalformedInput: It answers something that is no certificate.
        WrongCek: The CEK of another chip, or no CEK.
        NotGenuine: Signed by no ASK of a trusted root.
    """
    from sev.abi import sev_certificate as abi
    from sev.certs import sev_chain, sev_signatures
    from sev.certs.sev_roots import SevRoots

    trusted = roots or SevRoots.amd()
    given = tuple(authorities)
    answer = service.get(urls.cek(chip_id, service=service.url), "the CEK of this chip", CERTIFICATE_LIMIT)
    certificate = _read(service, "the CEK", lambda: abi.SevCertificate.read(answer, "CEK"))
    if certificate.usage != abi.CEK:
        raise sev_chain.WrongCek(f"{service.url} answers a certificate of {certificate.name} for a CEK", field="CEK")
    if exported:
        sev_chain.same_cek(answer, exported)
    ask = sev_chain.issuer_of(certificate, given, trusted)
    if ask is None:
        raise sev_signatures.NotSignedBy(
            f"the CEK from {service.url} is signed by no ASK of the trusted roots",
            field="CEK",
            remedy="For a simulator's service name its roots (roots/legacy-ca.cert) with --roots.",
        )
    sev_chain.root_of(ask, given, trusted)
    return certificate


def ca(service: Service, product: Product, key: str = "vcek", *, roots: Roots | None = None) -> tuple[Certificate, ...]:
    """The authorities above a kind of key: ASK (ASVK above a VLEK), then ARK.

    Args:
        service: Whom to ask.
        product: Processor line.
        key: "vcek" or "vlek".
        roots: Trusted roots; AMD's if none are given.

    Raises:
        KdsUnavailable: The service does not answer, or something else.
        MalformedInput: It answers something that are no certificates.
        NotGenuine: Not of a trusted root.
    """
    from sev.certs import Roots, files
    from sev.certs.errors import IntermediateSignatureInvalid
    from sev.certs.roots import Authority

    trusted = roots or Roots.amd()
    what = f"the authorities above the {key.upper()} of {product.kds_name}"
    answer = service.get(urls.ca(product, key, service=service.url), what)
    found = _read(service, what, lambda: files.load(answer))
    wanted = ["ask" if key == "vcek" else "asvk", "ark"]
    by_kind = {one.kind: one for one in found}
    if sorted(by_kind) != sorted(wanted) or len(found) != len(wanted):
        raise KdsUnavailable(f"{service.url} answers {', '.join(by_kind) or 'nothing'} for {what}", field="kds")
    middle, ark = (by_kind[kind] for kind in wanted)
    for root in trusted.named(ark.subject):
        if (
            root in trusted.arks
            and root.signed(ark)
            and root.signed(middle)
            and Authority.of(middle).may_sign_certificates()
        ):
            return middle, ark
    raise IntermediateSignatureInvalid(
        f"{what} from {service.url} do not end in a trusted root",
        field="ark",
        remedy=_OTHER_ROOTS,
    )


def vcek(
    service: Service,
    product: Product,
    chip_id: bytes,
    tcb: TcbVersion,
    *,
    at: Moment = None,
    roots: Roots | None = None,
    given: Iterable[Certificate] = (),
) -> Certificate:
    """The VCEK of a chip at a TCB.

    Args:
        service: Whom to ask.
        product: Processor line.
        chip_id: As reports show it.
        tcb: The TCB, that of the report that it is to verify.
        at: The time for which it must be valid (aware), or what tells it when it has come; then, if none is given.
        roots: Trusted roots; AMD's if none are given.
        given: Authorities at hand beside the roots' own.

    Raises:
        KdsUnavailable, MalformedInput: As in `ca`.
        NotGenuine: Not of a trusted root, of another chip or TCB, or not valid at that time.
    """
    from sev.attestation.errors import ChipIdMismatch

    what = f"the VCEK of {product.kds_name} chip {chip_id[:8].hex()}… at {tcb}"
    answer = service.get(urls.vcek(product, chip_id, tcb, service=service.url), what, CERTIFICATE_LIMIT)
    leaf = _leaf(service, answer, "vcek", what, tcb, at, roots, given)
    size = product.chip_id_bytes
    if (leaf.hwid or b"")[:size] != chip_id[:size]:
        raise ChipIdMismatch(f"{service.url} answers the VCEK of another chip", field="vcek")
    return leaf


def vlek(
    service: Service,
    product: Product,
    tcb: TcbVersion,
    *,
    at: Moment = None,
    roots: Roots | None = None,
    given: Iterable[Certificate] = (),
) -> Certificate:
    """The VLEK of a cloud provider, who shows a client certificate (Service's `client_file`). Raises as `vcek`."""
    what = f"the VLEK of {product.kds_name} at {tcb}"
    answer = service.get(urls.vlek(product, tcb, service=service.url), what, CERTIFICATE_LIMIT)
    return _leaf(service, answer, "vlek", what, tcb, at, roots, given)


def crl(service: Service, product: Product, key: str = "vcek", *, at: Moment = None, roots: Roots | None = None) -> Crl:
    """The revocation list of a processor line's root.

    Raises:
        KdsUnavailable, MalformedInput: As in `ca`.
        CrlOfAnotherIssuer, CrlSignatureInvalid, CrlStale, CrlNotYetValid: One per failure.
    """
    from sev.certs import Roots, errors, files, signatures

    trusted = roots or Roots.amd()
    what = f"the revocation list of {product.kds_name}"
    answer = service.get(urls.crl(product, key, service=service.url), what)
    found = _read(service, what, lambda: files.load_crls(answer))[0]
    above = [root for root in trusted.named(found.issuer) if root in trusted.arks]
    if not above:
        raise errors.CrlOfAnotherIssuer(f"{what}: of {found.issuer_cn!r}, which is no trusted root", field="crl")
    signed = (
        root.may_sign_lists() and signatures.verifies(root.public_key(), found.signature, found.tbs) for root in above
    )
    if not any(signed):
        raise errors.CrlSignatureInvalid(f"{what} is not signed by {found.issuer_cn!r}", field="crl")
    at = _moment(at)
    if at < found.this_update:
        raise errors.CrlNotYetValid(f"{what} is of {found.this_update:%Y-%m-%dT%H:%M:%SZ}", field="crl")
    if at >= found.next_update:
        raise errors.CrlStale(f"{what} ran out on {found.next_update:%Y-%m-%dT%H:%M:%SZ}", field="crl")
    return found


def hash_sticks(
    service: Service, product: Product, tcb: TcbVersion, chip_ids: Sequence[bytes]
) -> Mapping[bytes, bytes | None]:
    """A cloud provider's VLEK, wrapped for chips at a TCB, as SNP_VLEK_LOAD takes it.

    Nothing but the chip itself can tell whether a stick is genuine: what is checked is that each has 432 bytes and
    names this TCB.

    Args:
        service: Whom to ask, with the provider's client certificate.
        product: Processor line.
        tcb: The TCB that the chips report.
        chip_ids: The chips, at most 64.

    Returns:
        432 bytes for each chip identifier; None for a chip that the service does not know.

    Raises:
        KdsUnavailable, MalformedInput: As in `ca`.
        TcbMismatch: A stick for another TCB.
    """
    import json

    from sev.abi import sev_device
    from sev.attestation.errors import TcbMismatch

    wanted = {urls.hwid(product, chip_id): chip_id for chip_id in chip_ids}
    what = f"the hash sticks of {len(wanted)} {product.kds_name} chips at {tcb}"
    content = json.dumps({"hwids": list(wanted)}).encode()
    answer = service.get(urls.hash_sticks(product, tcb, service=service.url), what, STICKS_LIMIT, content=content)
    found: dict[bytes, bytes | None] = {}
    for hwid, text in _read(service, what, lambda: _sticks(answer)).items():
        if hwid not in wanted:
            continue
        try:
            stick = None if text == NOT_FOUND else bytes.fromhex(text)
        except ValueError:
            stick = b""
        if stick is not None and len(stick) != sev_device.VLEK_BLOB_SIZE:
            raise MalformedInput(f"{service.url} answers something else for {what}: no stick of 432 bytes", field="kds")
        if stick is not None and stick[_STICK_TCB] != tcb.encode():
            raise TcbMismatch(f"{service.url} answers a hash stick of another TCB for {what}", field="vlek")
        found[wanted[hwid]] = stick
    if len(found) != len(wanted):
        raise KdsUnavailable(f"{service.url} answers for {len(found)} chips, asked about {len(wanted)}", field="kds")
    return found


def _sticks(answer: bytes) -> dict[str, str]:
    """Sticks by chip, as text. Raises MalformedInput."""
    import json

    try:
        results = json.loads(answer)["results"]
        pairs = [(hwid.lower(), stick) for result in results for hwid, stick in result.items()]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        pairs = [("", None)]
    if not all(isinstance(stick, str) for _, stick in pairs):
        raise MalformedInput("no JSON of hash sticks")
    return dict(pairs)


def _leaf(
    service: Service,
    answer: bytes,
    kind: str,
    what: str,
    tcb: TcbVersion,
    at: Moment,
    roots: Roots | None,
    given: Iterable[Certificate],
) -> Certificate:
    from sev.attestation.errors import TcbMismatch
    from sev.certs import Roots, chain, files
    from sev.certs.errors import NotGenuine

    found = _read(service, what, lambda: files.load(answer))
    if len(found) != 1 or found[0].kind != kind:
        raise KdsUnavailable(f"{service.url} answers {', '.join(one.kind for one in found)} for {what}", field="kds")
    leaf = found[0]
    try:
        link = chain.find(leaf, roots or Roots.amd(), tuple(given))
    except NotGenuine as error:
        if roots is None:
            error.remedy = _OTHER_ROOTS
        raise
    chain.check_dates(link, _moment(at))
    own = {name: level for name, level in leaf.tcb.items() if name in tcb.product.components}
    if own != tcb.components():
        raise TcbMismatch(f"{service.url} answers a certificate of another TCB for {what}", field=kind)
    return leaf


def _moment(at: Moment) -> datetime:
    """The time for which something that has come must be valid: services issue it when they are asked."""
    if at is None:
        from datetime import UTC, datetime

        return datetime.now(UTC)
    return at() if callable(at) else at


def _read(service: Service, what: str, read: Callable[[], T]) -> T:
    """What `read` makes of an answer. Raises MalformedInput that names whose answer it is."""
    try:
        return read()
    except MalformedInput as error:
        raise MalformedInput(
            f"{service.url} answers something else for {what}: {error.message}",
            field="kds",
            remedy="Something between here and the service may answer in its place; look at what it says.",
        ) from error
