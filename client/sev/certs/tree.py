"""Any set of certificates of both systems as a tree: who signed whom, with a reason at every edge.

SEV certificates are taken as those of one platform; X.509 leaves are taken one by one. The tree is good when every
leaf reaches a trusted root.
"""

from __future__ import annotations

from sev.abi import sev_certificate as abi
from sev.certs import chain, sev_chain, sev_signatures
from sev.certs.errors import NotGenuine, Undecided
from sev.certs.roots import Roots
from sev.certs.sev_roots import SevRoots, whose
from sev.certs.steps import FAILED, PASSED, SKIPPED
from sev.errors import MalformedInput, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from sev.abi.amd_certificate import AmdCertificate
    from sev.abi.sev_certificate import SevCertificate
    from sev.certs.x509 import Certificate

_SIGNERS = ((abi.PDH, abi.PEK), (abi.PEK, abi.OCA), (abi.OCA, abi.OCA), (abi.PEK, abi.CEK))
"""(subject, signer) among SEV certificates; the CEK's signer is an ASK."""
_OPTIONAL = frozenset({(abi.PEK, abi.OCA)})
"""Edges that a chain to AMD's root can do without."""


class Edge:
    """One line of the tree.

    Attributes:
        subject: What is signed.
        signer: By what it must be signed; "trust" where the question is whether a root is trusted.
        result: "passed", "failed" or "skipped".
        reason: Why.
    """

    __slots__ = ("reason", "result", "signer", "subject")

    def __init__(self, subject: str, signer: str, result: str, reason: str) -> None:
        self.subject = subject
        self.signer = signer
        self.result = result
        self.reason = reason

    def document(self) -> dict[str, str]:
        """The JSON form."""
        return {"subject": self.subject, "signer": self.signer, "result": self.result, "reason": self.reason}


class Tree:
    """What a set of certificates amounts to.

    Attributes:
        edges: Leaves first.
        leaves: Names of the certificates that sign none of the others.
    """

    __slots__ = ("edges", "leaves")

    def __init__(self, edges: list[Edge], leaves: list[str]) -> None:
        self.edges = edges
        self.leaves = leaves

    @property
    def verified(self) -> bool:
        """There is a leaf, and no edge failed."""
        return bool(self.leaves) and not any(edge.result == FAILED for edge in self.edges)


def verify(
    contents: Iterable[bytes], *, at: datetime, roots: Roots | None = None, sev_roots: SevRoots | None = None
) -> Tree:
    """The tree of everything that files hold.

    Args:
        contents: Files: SEV certificates, AMD's, chains of them, X.509 in DER or PEM.
        at: For which time X.509 certificates must be valid.
        roots: Trusted X.509 roots; AMD's if none are given.
        sev_roots: Trusted SEV roots; likewise.

    Raises:
        MalformedInput: A file is none of these.
        UsageError: SEV certificates of two platforms.
    """
    platform: dict[int, SevCertificate] = {}
    authorities: list[AmdCertificate] = []
    x509: list[Certificate] = []
    for data in contents:
        if _is_x509(data):
            from sev.certs.files import load_certificates

            x509 += load_certificates(data)
            continue
        certificates, more = sev_chain.split(data)
        authorities += more
        for one in certificates:
            if platform.setdefault(one.usage, one) != one:
                raise UsageError(
                    f"two different {one.name} certificates: they are of two platforms",
                    remedy="Verify one platform's certificates at a time.",
                )
    edges, leaves = _legacy(platform, authorities, sev_roots or SevRoots.amd())
    more_edges, more_leaves = _modern(x509, roots or Roots.amd(), at)
    return Tree(edges + more_edges, leaves + more_leaves)


def _is_x509(data: bytes) -> bool:
    return data[:1] == b"\x30" or (b"-----BEGIN " in data and 0 not in data)


def _legacy(
    platform: dict[int, SevCertificate], authorities: list[AmdCertificate], roots: SevRoots
) -> tuple[list[Edge], list[str]]:
    edges: list[Edge] = []
    signers = {signer for subject, signer in _SIGNERS if subject in platform and subject != signer}
    leaves = [one.name for usage, one in platform.items() if usage not in signers]
    for subject, signer in _SIGNERS:
        if subject not in platform:
            continue
        name, by = abi.USAGE_NAMES[subject], abi.USAGE_NAMES[signer]
        if signer not in platform:
            missing = SKIPPED if (subject, signer) in _OPTIONAL else FAILED
            edges.append(Edge(name, by, missing, f"no {by} is at hand"))
            continue
        try:
            slot = sev_signatures.verify(platform[subject], platform[signer])
        except (NotGenuine, MalformedInput) as error:
            edges.append(Edge(name, by, FAILED, error.message))
        else:
            reason = "self-signed" if subject == signer else f"signature {slot}"
            edges.append(Edge(name, by, PASSED, reason))
    if platform.keys() == {abi.OCA}:
        edges.append(Edge("OCA", "trust", FAILED, "an owner's certificate alone reaches no root of AMD's"))
    if abi.CEK in platform:
        edges += _above_cek(platform[abi.CEK], authorities, roots)
    elif authorities and not platform:
        asks = [one for one in authorities if one.name == "ASK"]
        leaves += [one.name for one in asks or authorities]
        for ask in asks:
            edges += _above_ask(ask, authorities, roots)
        if not asks:
            edges += [_trust(one, roots) for one in authorities]
    return edges, leaves


def _above_cek(cek: SevCertificate, authorities: list[AmdCertificate], roots: SevRoots) -> list[Edge]:
    ask = sev_chain.issuer_of(cek, authorities, roots)
    if ask is None:
        hint = " (the firmware exports the CEK unsigned: the signed one is AMD's to give)"
        return [Edge("CEK", "ASK", FAILED, f"no ASK at hand signed it{hint if sev_chain.unsigned(cek) else ''}")]
    origin = "given" if ask in authorities else "built in" if roots.built_in else "of the roots given"
    return [Edge("CEK", "ASK", PASSED, f"{ask.key_id.hex()}, {origin}"), *_above_ask(ask, authorities, roots)]


def _above_ask(ask: AmdCertificate, authorities: list[AmdCertificate], roots: SevRoots) -> list[Edge]:
    try:
        ark = sev_chain.root_of(ask, authorities, roots)
    except NotGenuine as error:
        return [Edge("ASK", "ARK", FAILED, error.message)]
    return [Edge("ASK", "ARK", PASSED, ark.key_id.hex()), _trust(ark, roots)]


def _trust(ark: AmdCertificate, roots: SevRoots) -> Edge:
    if not roots.trusts(ark):
        return Edge("ARK", "trust", FAILED, f"the key {ark.key_id.hex()} is no trusted root's")
    return Edge("ARK", "trust", PASSED, whose(roots.product.get(ark.modulus, "")))


def _modern(x509: list[Certificate], roots: Roots, at: datetime) -> tuple[list[Edge], list[str]]:
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
    from sev.certs.roots import Authority

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
