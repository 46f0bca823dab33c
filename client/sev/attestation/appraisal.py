"""Is this genuine report what I want? Every field against a policy; the result lists them all.

Only a `VerifiedReport` is appraised: what a report says means nothing before it is known to be genuine.
"""

from __future__ import annotations

from sev.abi.report import FIELDS, PLATFORM_BITS
from sev.attestation.rules import KINDS
from sev.errors import AppraisalError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from sev.abi.report import Report
    from sev.attestation.policy import Policy
    from sev.attestation.verification import VerifiedReport

PASSED, FAILED, NOT_ASKED = "passed", "failed", "not_asked"


class Check:
    """One field against the policy.

    Attributes:
        field: The field; bits as "policy.debug".
        result: "passed", "failed" or "not_asked".
        expected: What the policy says, in JSON; None where it says nothing.
        actual: What the report says, in JSON; None where it has no such field.
    """

    __slots__ = ("actual", "expected", "field", "result")

    def __init__(self, field: str, result: str, expected: object, actual: object) -> None:
        self.field = field
        self.result = result
        self.expected = expected
        self.actual = actual

    def document(self) -> dict[str, object]:
        """The JSON form."""
        return {"field": self.field, "result": self.result, "expected": self.expected, "actual": self.actual}

    def __repr__(self) -> str:
        return f"<Check {self.field} {self.result}>"


class Appraisal:
    """The result: every field that a policy can speak of.

    Attributes:
        accepted: Whether nothing that was asked for failed.
        checks: One for each field, in the order of the report.
    """

    __slots__ = ("accepted", "checks")

    def __init__(self, checks: tuple[Check, ...]) -> None:
        self.checks = checks
        self.accepted = all(check.result != FAILED for check in checks)

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if check.result == FAILED)

    def require(self) -> None:
        """Does nothing if the report is accepted.

        Raises:
            AppraisalError: It is not; names every field that failed.
        """
        if not self.accepted:
            names = ", ".join(check.field for check in self.failed)
            raise AppraisalError(
                f"the report is genuine, but not as the policy asks: {names}",
                field=self.failed[0].field,
                remedy="Compare expected and actual of each; change the guest, the host, or the policy.",
            )

    def document(self) -> dict[str, object]:
        """The JSON form."""
        return {"accepted": self.accepted, "checks": [check.document() for check in self.checks]}

    def __repr__(self) -> str:
        return f"<Appraisal {'accepted' if self.accepted else 'refused'}>"


def appraise(verified: VerifiedReport, policy: Policy) -> Appraisal:
    """Every field of a genuine report against a policy; does not stop at the first that fails."""
    checks: list[Check] = []
    for field, kind in KINDS.items():
        found = actual(verified, field)
        shown = None if found is None else kind.show(found)
        asked = policy.get(field)
        if asked is None:
            checks.append(Check(field, NOT_ASKED, None, shown))
        else:
            checks.append(Check(field, PASSED if asked.holds(found) else FAILED, asked.show(), shown))
    return Appraisal(tuple(checks))


def actual(verified: VerifiedReport, field: str) -> object:
    """What a genuine report (or its certificate) says in a field of a policy; None where it has no such field.

    Raises:
        KeyError: A policy cannot speak of such a field.
    """
    report = verified.report
    word, dot, bit = field.partition(".")
    if dot:
        return _BITS[word](report, bit)
    derived = _DERIVED.get(field)
    return derived(verified) if derived is not None else FIELDS[field].read(report)


def _policy_bit(report: Report, bit: str) -> object:
    policy = report.policy
    return (policy.abi_major, policy.abi_minor) if bit == "abi" else getattr(policy, bit)


def _platform_bit(report: Report, bit: str) -> object:
    if bit == "unknown":
        return report.platform_info_unknown
    return bool(report.platform_info >> PLATFORM_BITS[bit] & 1)


_BITS: dict[str, Callable[[Report, str], object]] = {"policy": _policy_bit, "platform_info": _platform_bit}

_DERIVED: dict[str, Callable[[VerifiedReport], object]] = {
    "policy": lambda verified: verified.report.policy.raw,
    "platform_info": lambda verified: verified.report.platform_info,
    "author_key_en": lambda verified: verified.report.author_key_en,
    "mask_chip_key": lambda verified: verified.report.mask_chip_key,
    "signing_key": lambda verified: verified.report.signing_key,
    "product": lambda verified: verified.product.name,
    "csp_id": lambda verified: verified.leaf.csp_id,
    "provisional": lambda verified: verified.report.provisional,
    "current_major": lambda verified: verified.report.current_version[0],
    "current_minor": lambda verified: verified.report.current_version[1],
    "current_build": lambda verified: verified.report.current_version[2],
    "committed_major": lambda verified: verified.report.committed_version[0],
    "committed_minor": lambda verified: verified.report.committed_version[1],
    "committed_build": lambda verified: verified.report.committed_version[2],
}
