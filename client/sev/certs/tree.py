"""Any set of certificates of both systems as a tree: who signed whom, with a reason at every edge.

SEV certificates are taken as those of one platform; X.509 leaves are taken one by one. The tree is good when every
leaf reaches a trusted root. Only the part that is asked for is loaded (`sev.certs.tree_sev`, `sev.certs.tree_x509`).
"""

from __future__ import annotations

from sev.certs.steps import FAILED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from sev.certs.roots import Roots
    from sev.certs.sev_roots import SevRoots


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
        roots: Trusted X.509 roots; AMD's if none are given for either system, else none.
        sev_roots: Trusted SEV roots; likewise.

    Raises:
        MalformedInput: A file is none of these.
        UsageError: SEV certificates of two platforms.
    """
    modern: list[bytes] = []
    older: list[bytes] = []
    for data in contents:
        (modern if is_x509(data) else older).append(data)
    own = roots is not None or sev_roots is not None
    edges: list[Edge] = []
    leaves: list[str] = []
    if older:
        from sev.certs import tree_sev

        edges, leaves = tree_sev.edges_of(older, sev_roots, own=own)
    if modern:
        from sev.certs import tree_x509

        more_edges, more_leaves = tree_x509.edges_of(modern, roots, at, own=own)
        edges, leaves = edges + more_edges, leaves + more_leaves
    return Tree(edges, leaves)


def is_x509(data: bytes) -> bool:
    """Whether a file looks like X.509 in DER or PEM; SEV's own certificates begin with their version."""
    return data[:1] == b"\x30" or (b"-----BEGIN " in data and 0 not in data)
