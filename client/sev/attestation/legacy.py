"""Verifying the attestation report of SEV and SEV-ES: signed by a PEK that reaches AMD's root.

No session is involved, so this is how somebody other than the guest owner attests such a guest. The nonce proves that
the report is fresh; usage and algorithm of the signature are not covered by it and must be what they are.
"""

from __future__ import annotations

import hmac

from sev.abi.legacy_report import ALGORITHM_ECDSA_SHA256, USAGE_PEK, LegacyReport
from sev.certs import sev_chain, steps
from sev.certs.errors import NotGenuine
from sev.certs.sev_chain import SevChain, VerifiedChain
from sev.certs.sev_roots import whose
from sev.certs.sev_signatures import p384_verifies
from sev.certs.steps import Step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sev.certs.sev_roots import SevRoots

STEPS: dict[str, str] = {
    "format": "the report is well-formed",
    "signing_key": "a PEK signed it",
    "chain": "the PEK reaches a trusted root",
    "report_signature": "that PEK signed the report",
    "mnonce": "it answers this nonce",
    "measurement": "the guest is the one expected",
}
"""What each step establishes, by id, in order."""


class LegacyReportInvalid(NotGenuine):
    """A step failed; `steps` has all of them."""

    reason = "LEGACY_REPORT_INVALID"


class VerifiedLegacyReport:
    """A report whose every step passed or was not asked for.

    Attributes:
        report: The report.
        chain: The platform's chain.
        steps: All steps.
    """

    __slots__ = ("chain", "report", "steps")

    def __init__(self, report: LegacyReport, chain: VerifiedChain, steps: tuple[Step, ...]) -> None:
        self.report = report
        self.chain = chain
        self.steps = steps


def verify(
    report: LegacyReport,
    chain: SevChain,
    *,
    roots: SevRoots | None = None,
    mnonce: bytes | None = None,
    measurement: bytes | None = None,
) -> VerifiedLegacyReport:
    """Verifies a report.

    Args:
        report: The report.
        chain: The chain of the platform that the guest runs on.
        roots: Trusted roots; AMD's if none are given.
        mnonce: The nonce that was asked with, 16 bytes; not checked if not given.
        measurement: The launch digest expected, 32 bytes; not checked if not given.

    Raises:
        LegacyReportInvalid: A step failed.
    """
    found: list[VerifiedChain] = []

    def signer() -> str:
        usage, algorithm = report.signature_usage, report.signature_algorithm
        if (usage, algorithm) != (USAGE_PEK, ALGORITHM_ECDSA_SHA256):
            raise NotGenuine(f"signature of usage 0x{usage:x} with algorithm 0x{algorithm:x}, expected 0x1002 and 0x2")
        return "PEK, ECDSA P-384 with SHA-256"

    def reaches() -> str:
        found.append(sev_chain.verify(chain, roots=roots))
        return whose(found[0].product)

    def signature() -> str:
        if not p384_verifies(chain.pek.public_key(), report.signature, report.signed):
            raise NotGenuine("the signature over the first 52 bytes does not verify")
        return "over the 52 bytes as received"

    def nonce() -> str | None:
        if mnonce is not None and not hmac.compare_digest(mnonce, report.mnonce):
            raise NotGenuine(f"the report answers {report.mnonce.hex()}, not the nonce that was given")
        return None if mnonce is None else mnonce.hex()

    def digest() -> str | None:
        if measurement is not None and not hmac.compare_digest(measurement, report.launch_digest):
            raise NotGenuine(f"the guest measures {report.launch_digest.hex()}, not as expected")
        return None if measurement is None else measurement.hex()

    done = steps.run(
        (
            ("format", lambda: "208 bytes"),
            ("signing_key", signer),
            ("chain", reaches),
            ("report_signature", signature),
            ("mnonce", nonce),
            ("measurement", digest),
        ),
        LegacyReportInvalid,
    )
    return VerifiedLegacyReport(report, found[0], done)
