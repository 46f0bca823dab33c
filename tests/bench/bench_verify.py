"""Verification against the primitives that it cannot do without, as ratios of one run.

    python -m tests.bench.bench_verify

Two pairs, measured alternately in short rounds so that a busy machine disturbs both alike; the ratio is the median of
the rounds' ratios.

    full    a report with its VCEK, AMD's keys built in, nothing known of the leaf: parse both, build the chain, all twelve
            steps; against one RSA-4096 PSS check, loading the P-384 key, and one P-384 check
    known   the same with leaf and chain known from before; against one P-384 check

The evidence is real where it lies beside the repository, else forged for the run.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from time import perf_counter

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from sev.attestation import Collateral, Report, Roots, verify
from sev.certs import Certificate, builtin, chain, files, roots, x509
from sev.products import GENOA
from tests.support import forge

ROUNDS = 41
CALLS = 12
_DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "snp"


class Evidence:
    """What both sides of a pair work on."""

    def __init__(self) -> None:
        real = _DATA / "genoa-v5-generic.report.bin"
        self.at = datetime(2026, 8, 25, tzinfo=UTC)
        self.real = real.exists()
        if self.real:
            self.report = real.read_bytes()
            self.leaf = (_DATA / "genoa-v5-generic.vcek.der").read_bytes()
            self.roots = Roots.amd()
            self.others: list[Certificate] = []
            issuer = builtin(GENOA).ask
        else:
            world = forge.World(GENOA, "bench")
            forge.rsa_key("bench ask", 4096)
            self.report, self.leaf, self.roots = world.report(), world.leaf(), world.roots()
            self.others = [Certificate.parse(world.authority("ask"))]
            issuer = roots.Authority.of(self.others[0])
        self.issuer_key = issuer.public_key()
        certificate = Certificate.parse(self.leaf)
        self.certificate = certificate
        self.point = certificate.spki[-97:]
        self.leaf_key = certificate.public_key()
        report = Report.parse(self.report)
        self.signed = report.signed
        self.signature = encode_dss_signature(report.signature_r, report.signature_s)

    def forget(self) -> None:
        """Makes the leaf unknown again: what was read and checked of certificates."""
        for remembered in (files.load_all, x509._parse, roots._signed, chain.find):
            remembered.cache_clear()

    def full(self) -> None:
        collateral = Collateral(self.leaf, self.others)
        verify(self.report, collateral, at=self.at, roots=self.roots)

    def known(self) -> None:
        verify(self.report, Collateral(self.leaf, self.others), at=self.at, roots=self.roots)

    def primitives(self) -> None:
        digest = hashes.SHA384()
        self.issuer_key.verify(
            self.certificate.signature, self.certificate.tbs, padding.PSS(padding.MGF1(digest), 48), digest
        )
        key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP384R1(), self.point)
        key.verify(self.signature, self.signed, ec.ECDSA(digest))

    def ecdsa(self) -> None:
        self.leaf_key.verify(self.signature, self.signed, ec.ECDSA(hashes.SHA384()))


def compare(
    ours: Callable[[], None], floor: Callable[[], None], before: Callable[[], None], rounds: int = ROUNDS
) -> tuple[float, float, float]:
    """Median ratio of the rounds, and the median microseconds of one call of each side.

    `before` runs before each call and is not counted.
    """
    times: list[tuple[float, float]] = []
    for call in (ours, floor):
        for _ in range(CALLS):
            call()
    for count in range(rounds):
        pair = [0.0, 0.0]
        order = (0, 1) if count % 2 else (1, 0)
        for _ in range(CALLS):
            for side in order:
                before()
                start = perf_counter()
                (ours, floor)[side]()
                pair[side] += perf_counter() - start
        times.append((pair[0] / CALLS, pair[1] / CALLS))
    ratio = median(own / bare for own, bare in times)
    return ratio, 1e6 * median(own for own, _ in times), 1e6 * median(bare for _, bare in times)


def _nothing() -> None:
    """Leaves everything known."""


def main() -> None:
    evidence = Evidence()
    print(f"evidence: {'real, Genoa, report version 5' if evidence.real else 'forged'}")
    for label, ours, floor, before, what, goal in (
        ("full", evidence.full, evidence.primitives, evidence.forget, "RSA-4096 PSS + key load + P-384", 1.2),
        ("known", evidence.known, evidence.ecdsa, _nothing, "P-384", 1.1),
    ):
        ratio, own, bare = compare(ours, floor, before)
        print(f"{label:6} {own:7.0f} µs against {bare:7.0f} µs of {what}: ratio {ratio:.3f} (goal {goal})")
    leaf, at = Certificate.parse(evidence.leaf), evidence.at
    linked = chain.issuers(leaf, evidence.roots, evidence.others)
    chain.check_dates(chain.build(leaf, linked), at)
    parts = (
        ("Report.parse", lambda: Report.parse(evidence.report)),
        ("Certificate.parse", lambda: x509._parse.__wrapped__(evidence.leaf)),
    )
    for label, call in parts:
        start = perf_counter()
        for _ in range(500):
            call()
        print(f"{label:18} {1e6 * (perf_counter() - start) / 500:6.1f} µs")


if __name__ == "__main__":
    main()
