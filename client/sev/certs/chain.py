"""Chains: from a VCEK or VLEK through its ASK or ASVK to a trusted ARK, with dates and revocation.

Names are compared as DER bytes, signatures are RSASSA-PSS with SHA-384; nothing that came with the evidence is trusted
for being there. The three steps are apart because a verification shows them apart: `issuers` finds the authorities that
reach a root, `build` picks the one that signed the leaf, `check_dates` and `check_revocation` look at a finished chain.
"""

from __future__ import annotations

from functools import lru_cache

from sev.certs.crl import Crl
from sev.certs.errors import (
    CertificateExpired,
    CertificateNotYetValid,
    CrlNotYetValid,
    CrlOfAnotherIssuer,
    CrlSignatureInvalid,
    CrlStale,
    IntermediateMissing,
    IntermediateSignatureInvalid,
    IssuerRevoked,
    LeafSignatureInvalid,
    NotAnAuthority,
    NotGenuine,
    Undecided,
    WrongIssuerName,
)
from sev.certs.roots import Authority, builtin
from sev.errors import MalformedInput

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from sev.certs.roots import Roots
    from sev.certs.x509 import Certificate

ISSUER_KIND = {"vcek": "ask", "vlek": "asvk"}
"""Which kind of authority signs which kind of leaf."""

MAX_CANDIDATES = 8
"""At most so many authorities of one name are tried; the others are not looked at."""


class Chain:
    """A leaf, the authority that signed it, and the trusted root that signed that.

    Attributes:
        leaf: VCEK or VLEK.
        issuer: ASK or ASVK.
        root: ARK.
        not_before, not_after: First and last second at which all three are valid.
    """

    __slots__ = ("issuer", "leaf", "not_after", "not_before", "root")

    def __init__(self, leaf: Certificate, issuer: Authority, root: Authority) -> None:
        self.leaf = leaf
        self.issuer = issuer
        self.root = root
        self.not_before = max(leaf.not_before, issuer.not_before, root.not_before)
        self.not_after = min(leaf.not_after, issuer.not_after, root.not_after)

    def __repr__(self) -> str:
        return f"<Chain {self.leaf.subject_cn} < {self.issuer.common_name} < {self.root.common_name}>"


@lru_cache(maxsize=1024)
def find(leaf: Certificate, roots: Roots, given: tuple[Certificate, ...] = ()) -> Chain:
    """`build` over `issuers`. Chains that were found are remembered; refusals are not.

    Raises:
        NotGenuine, Undecided: As these two.
    """
    return build(leaf, issuers(leaf, roots, given))


def issuers(leaf: Certificate, roots: Roots, given: Iterable[Certificate] = ()) -> list[tuple[Authority, Authority]]:
    """The authorities that bear the name of the leaf's issuer and reach a trusted root, each with that root.

    Built-in ones come first: their link to the root was checked when their numbers were taken.

    Raises:
        WrongIssuerName: The leaf names an issuer that is not of the kind for this kind of leaf.
        IntermediateMissing: No authority of that name is at hand.
        NotAnAuthority, IntermediateSignatureInvalid: The ones at hand do not reach a root; the first one's reason.
    """
    wanted = ISSUER_KIND.get(leaf.kind)
    found: list[tuple[Authority, Authority]] = []
    problem: NotGenuine | Undecided | None = None
    own = roots.named(leaf.issuer)
    for candidate in own:
        if candidate.certificate is None and candidate.product is not None and candidate.kind != "ark":
            found.append((candidate, builtin(candidate.product).ark))
    others = [one for one in own if one.certificate is not None]
    others += [Authority.of(one) for one in given if one.subject == leaf.issuer and one is not leaf]
    for candidate in others[:MAX_CANDIDATES]:
        try:
            found.append((candidate, _root_above(candidate, roots)))
        except (NotGenuine, Undecided) as error:
            problem = problem or error
    kinds = {one.kind for one in (*own, *others) if one.certificate is None or one.certificate.is_ca}
    if kinds and wanted is not None and wanted not in kinds:
        raise WrongIssuerName(
            f"the {leaf.kind.upper()} names {leaf.issuer_cn!r} as its issuer, which is no {wanted.upper()}",
            field=leaf.kind,
        )
    found = [(one, root) for one, root in found if one.kind == wanted or wanted is None]
    if not found:
        raise problem or IntermediateMissing(
            f"the issuer {leaf.issuer_cn!r} of the {leaf.kind.upper()} is neither built in nor given", field=leaf.kind
        )
    return found


def _root_above(candidate: Authority, roots: Roots) -> Authority:
    certificate = candidate.certificate
    if certificate is None or not candidate.may_sign_certificates():
        raise NotAnAuthority(f"{candidate.common_name!r} may not issue certificates", field=candidate.kind)
    above = [one for one in roots.named(certificate.issuer) if one in roots.arks]
    if not above:
        raise IntermediateSignatureInvalid(
            f"{candidate.common_name!r} names {certificate.issuer_cn!r} as its issuer, which is no trusted root",
            field=candidate.kind,
        )
    for root in above:
        if _signed(root, certificate):
            return root
    raise IntermediateSignatureInvalid(
        f"{candidate.common_name!r} is not signed by the trusted root {certificate.issuer_cn!r}", field=candidate.kind
    )


def build(leaf: Certificate, linked: Sequence[tuple[Authority, Authority]]) -> Chain:
    """The chain through the first of these authorities (of `issuers`) whose key signed the leaf.

    Raises:
        LeafSignatureInvalid: None of them did.
    """
    for authority, root in linked:
        if _signed(authority, leaf):
            return Chain(leaf, authority, root)
    raise LeafSignatureInvalid(
        f"the {leaf.kind.upper()} is not signed by {leaf.issuer_cn!r}, of which it bears the name", field=leaf.kind
    )


def _signed(authority: Authority, certificate: Certificate) -> bool:
    try:
        return authority.signed(certificate)
    except MalformedInput as error:
        raise NotAnAuthority(f"{authority.common_name!r}: {error.message}", field=authority.kind) from error


def check_dates(chain: Chain, at: datetime) -> None:
    """Whether all three were valid at this time.

    Raises:
        CertificateExpired, CertificateNotYetValid: One of them was not; says which, and its dates.
    """
    if chain.not_before <= at <= chain.not_after:
        return
    leaf = chain.leaf
    for kind, not_before, not_after in (
        (leaf.kind, leaf.not_before, leaf.not_after),
        (chain.issuer.kind, chain.issuer.not_before, chain.issuer.not_after),
        (chain.root.kind, chain.root.not_before, chain.root.not_after),
    ):
        if at > not_after:
            raise CertificateExpired(
                f"the {kind.upper()} ran out on {not_after:%Y-%m-%dT%H:%M:%SZ}, before {at:%Y-%m-%dT%H:%M:%SZ}",
                field=kind,
                remedy="Fetch the certificate again (AMD reissues it with new dates), or verify at another time.",
            )
        if at < not_before:
            raise CertificateNotYetValid(
                f"the {kind.upper()} is valid from {not_before:%Y-%m-%dT%H:%M:%SZ}, after {at:%Y-%m-%dT%H:%M:%SZ}",
                field=kind,
                remedy="Check the clock, or the time that was given.",
            )


def check_revocation(chain: Chain, crls: Sequence[Crl], at: datetime) -> Crl:
    """Whether the root's lists leave the chain's authorities alone; answers the list that says so.

    Lists of other issuers are passed over as long as one is of this root. A leaf cannot be named: its serial is 0.

    Raises:
        IssuerRevoked: A list signed by the root names the issuer or the root, however old that list is.
        CrlOfAnotherIssuer, CrlSignatureInvalid, CrlNotYetValid, CrlStale: No list is usable; the first one's reason.
    """
    problem: Undecided | None = None
    usable: Crl | None = None
    for crl in crls:
        if crl.issuer != chain.root.name:
            continue
        if not chain.root.may_sign_lists() or not _list_signed(chain.root, crl):
            problem = problem or CrlSignatureInvalid(
                f"the revocation list is not signed by {chain.root.common_name!r}, whose name it bears", field="crl"
            )
            continue
        for authority in (chain.issuer, chain.root):
            if authority.serial in crl.revoked:
                raise IssuerRevoked(
                    f"the {authority.kind.upper()} {authority.common_name!r}, serial {authority.serial:#x}, was "
                    f"revoked on {crl.revoked[authority.serial]:%Y-%m-%d} (list number {crl.number})",
                    field=authority.kind,
                )
        if at < crl.this_update:
            problem = problem or CrlNotYetValid(
                f"the revocation list is of {crl.this_update:%Y-%m-%dT%H:%M:%SZ}, after {at:%Y-%m-%dT%H:%M:%SZ}",
                field="crl",
            )
        elif at >= crl.next_update:
            problem = problem or CrlStale(
                f"the revocation list ran out on {crl.next_update:%Y-%m-%dT%H:%M:%SZ}, before {at:%Y-%m-%dT%H:%M:%SZ}",
                field="crl",
            )
        else:
            usable = usable or crl
    if usable is not None:
        return usable
    issuers_given = ", ".join(sorted({repr(crl.issuer_cn) for crl in crls})) or "none"
    raise problem or CrlOfAnotherIssuer(
        f"no revocation list of {chain.root.common_name!r} was given, but lists of {issuers_given}", field="crl"
    )


def _list_signed(root: Authority, crl: Crl) -> bool:
    from sev.certs.signatures import verifies

    try:
        return verifies(root.public_key(), crl.signature, crl.tbs)
    except MalformedInput:
        return False
