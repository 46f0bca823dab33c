"""The part of a tree of certificates (`sev.certs.tree`) that is SEV's own: one platform's, and AMD's ASK and ARK."""

from __future__ import annotations

from sev.abi import sev_certificate as abi
from sev.certs import sev_chain, sev_signatures
from sev.certs.errors import NotGenuine
from sev.certs.sev_roots import SevRoots, whose
from sev.certs.steps import FAILED, PASSED, SKIPPED
from sev.certs.tree import Edge
from sev.errors import MalformedInput, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from sev.abi.amd_certificate import AmdCertificate
    from sev.abi.sev_certificate import SevCertificate

_SIGNERS = ((abi.PDH, abi.PEK), (abi.PEK, abi.OCA), (abi.OCA, abi.OCA), (abi.PEK, abi.CEK))
"""(subject, signer) among SEV certificates; the CEK's signer is an ASK."""
_OPTIONAL = frozenset({(abi.PEK, abi.OCA)})
"""Edges that a chain to AMD's root can do without."""


def edges_of(contents: Iterable[bytes], roots: SevRoots | None, *, own: bool) -> tuple[list[Edge], list[str]]:
    """The edges above every leaf, and the leaves' names.

    Args:
        contents: Files of certificates in a row.
        roots: Trusted roots.
        own: Without `roots` nothing is trusted, instead of AMD's keys.

    Raises:
        MalformedInput: A file holds something else.
        UsageError: Certificates of two platforms.
    """
    platform: dict[int, SevCertificate] = {}
    authorities: list[AmdCertificate] = []
    for data in contents:
        certificates, more = sev_chain.split(data)
        authorities += more
        for one in certificates:
            if platform.setdefault(one.usage, one) != one:
                raise UsageError(
                    f"two different {one.name} certificates: they are of two platforms",
                    remedy="Verify one platform's certificates at a time.",
                )
    if roots is None:
        roots = SevRoots((), ()) if own else SevRoots.amd()
    return _legacy(platform, authorities, roots)


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
