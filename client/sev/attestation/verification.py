"""Is this report genuine? Twelve numbered steps, from bytes to chip, each of which passes, is skipped or ends it.

Sources: SEV-SNP firmware ABI (AMD 56860) for the report, VCEK/VLEK specification (AMD 57230) for certificates.

 1 format            1184 bytes, version 2 or later, ECDSA P-384 with SHA-384, the signature's unused bytes zero
 2 signing_key       signing_key says VCEK or VLEK, and the VCEK is not masked
 3 vmpl              a guest at level 0 to 3 asked; a report that the host asked for only where the caller allows it
 4 leaf              a certificate of that kind is at hand, with the extensions of its kind
 5 intermediate      its issuer's name belongs to an authority that reaches a trusted root
 6 leaf_signature    that authority's key signed it
 7 validity          leaf, authority and root were valid at the time given
 8 revocation        the root's list does not name them; skipped if no list was given
 9 product           CPUID, productName, authority (and the caller) name the same processor line
10 report_signature  the leaf's key signed bytes 0x000 to 0x29F as they were received
11 tcb               every patch level of the leaf equals the same component of reported_tcb
12 chip_id           hwID equals chip_id (VCEK); skipped for a VLEK, which names no chip

What the guest runs, and whether its platform is good enough, is not asked here: that is `appraise`.
"""

from __future__ import annotations

from sev.attestation import errors
from sev.attestation.checks import CHECKS, Checks
from sev.attestation.steps import Step, complete
from sev.certs.roots import Roots
from sev.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from datetime import datetime

    from sev.abi.report import Report
    from sev.attestation.collateral import Collateral
    from sev.certs.x509 import Certificate
    from sev.products import Product


class VerifiedReport:
    """A report that is genuine, and what shows it.

    Attributes:
        report: The report, TCB versions readable (its product is known now).
        leaf: The VCEK or VLEK that signed it.
        chain: Leaf, authority, root.
        product: The processor line.
        at: The time that was verified for.
    """

    __slots__ = ("_run", "at", "chain", "leaf", "product", "report")

    report: Report
    leaf: Certificate
    product: Product

    def __init__(self, run: Checks) -> None:
        self._run = run
        self.chain = run.chain
        self.leaf = run.leaf
        self.product = run.product
        self.at = run.at
        self.report = run.report if run.of_report is not None else run.report.for_product(run.product)

    @property
    def steps(self) -> tuple[Step, ...]:
        """The twelve steps, in order, each with its reason."""
        return complete(self._run.told(len(CHECKS)))

    def __repr__(self) -> str:
        return f"<VerifiedReport {self.product.name}, measurement {self.report.measurement.hex()[:16]}…>"


def verify(
    report: Report | bytes,
    collateral: Collateral,
    *,
    at: datetime,
    roots: Roots | None = None,
    product: Product | None = None,
    allow_host_report: bool = False,
    allow_masked_chip_id: bool = False,
) -> VerifiedReport:
    """Runs the twelve steps and answers the report with what shows that it is genuine; raises at the first that fails.

    Args:
        report: The report, or its 1184 bytes.
        collateral: Certificates and lists that came with it.
        at: The time to verify for; it must have a time zone.
        roots: What the chain may end in; AMD's built-in keys if not given.
        product: The processor line that the caller expects.
        allow_host_report: Take a report that the host asked for.
        allow_masked_chip_id: Take a report whose chip id the host masked.

    Raises:
        VerificationError: Not genuine; the subclass (sev.attestation.errors) says which failure, `.steps` how far it
            came.
        CollateralError: It cannot be told, in the same way.
        UsageError: `at` has no time zone.
    """
    if at.tzinfo is None:
        raise UsageError("the time of verification has no time zone; use UTC", field="at")
    run = Checks(report, collateral, at, Roots.amd() if roots is None else roots, product)
    run.allow_host_report, run.allow_masked_chip_id = allow_host_report, allow_masked_chip_id
    count = 0
    try:
        for _, check, _ in CHECKS:
            check(run)
            count += 1
    except (errors.NotGenuine, errors.Undecided) as error:
        error.steps = complete(run.told(count), CHECKS[count][0], error.message)
        raise
    return VerifiedReport(run)
