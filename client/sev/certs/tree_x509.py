"""The part of a tree of certificates (`sev.certs.tree`) that is X.509: who signed whom, up to a trusted root."""

from __future__ import annotations

from sev.certs import chain
from sev.certs.errors import NotGenuine, Undecided
from sev.certs.files import load_certificates
from sev.certs.roots import Authority, Roots
from sev.certs.steps import FAILED, PASSED
from sev.certs.tree import Edge

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from sev.certs.x509 import Certificate


def edges_of(
    contents: Iterable[bytes], roots: Roots | None, at: datetime, *, own: bool
) -> tuple[list[Edge], list[str]]:
    """The edges above every leaf, and the leaves' names.

    Args:
        contents: Files of certificates in DER or PEM.
        roots: Trusted roots.
        at: For which time they must be valid.
        own: Without `roots` nothing is trusted, instead of AMD's keys.

    Raises:
        MalformedInput: A file holds something else.
    """
    x509 = [one for data in contents for one in load_certificates(data)]
    if roots is None:
        roots = Roots((), ()) if own else Roots.amd()
    given = tuple(x509)
    above = {one.issuer for one in x509 if one.issuer != one.subject}
    edges: list[Edge] = []
    leaves: list[str] = []
    for one in x509:
        if one.kind in chain.ISSUER_KIND or one.subject not in above:
            leaves.append(one.subject_cn)
            edges += _above_leaf(one, given, roots, at)
    return edges, leaves


def _above_leaf(leaf: Certificate, given: tuple[Certificate, ...], roots: Roots, at: datetime) -> list[Edge]:
    name = leaf.subject_cn
    if leaf.kind not in chain.ISSUER_KIND:
        return _authority_alone(leaf, roots, at)
    try:
        found = chain.find(leaf, roots, given)
    except (NotGenuine, Undecided) as error:
        return [Edge(name, leaf.issuer_cn, FAILED, error.message)]
    edges = [
        Edge(name, found.issuer.common_name, PASSED, "signature"),
        Edge(found.issuer.common_name, found.root.common_name, PASSED, "signature"),
        Edge(found.root.common_name, "trust", PASSED, "AMD's root" if roots.built_in else "a root that was given"),
    ]
    try:
        chain.check_dates(found, at)
    except NotGenuine as error:
        edges.append(Edge(name, "dates", FAILED, error.message))
    return edges


def _authority_alone(one: Certificate, roots: Roots, at: datetime) -> list[Edge]:
    """An ARK, ASK or ASVK that signs nothing in this set."""
    name, root = one.subject_cn, None
    for ark in roots.named(one.issuer):
        if ark in roots.arks and ark.signed(one):
            root = ark
    if one.issuer == one.subject:
        trusted = any(Authority.of(one).sha256 == ark.sha256 for ark in roots.arks)
        result, reason = (PASSED, "a trusted root") if trusted else (FAILED, "no trusted root")
        edges = [Edge(name, "trust", result, reason)]
    elif root is None:
        edges = [Edge(name, one.issuer_cn, FAILED, "no trusted root signed it")]
    else:
        edges = [Edge(name, root.common_name, PASSED, "signature")]
    if not one.not_before <= at <= one.not_after:
        edges.append(Edge(name, "dates", FAILED, f"not valid on {at:%Y-%m-%d}"))
    return edges
