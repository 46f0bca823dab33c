"""The steps of a verification, as they are numbered and shown."""

from __future__ import annotations

STEPS: dict[str, str] = {
    "format": "the report is well-formed",
    "signing_key": "a VCEK or VLEK signed it",
    "vmpl": "a guest asked for it",
    "leaf": "the certificate of that key is at hand",
    "intermediate": "its issuer reaches a trusted root",
    "leaf_signature": "the issuer signed it",
    "validity": "every certificate was valid at the time",
    "revocation": "the root has not revoked the issuer",
    "product": "report and certificates are of one processor line",
    "report_signature": "the certificate's key signed the report",
    "tcb": "the certificate is for the reported TCB",
    "chip_id": "the certificate is for this chip",
}
"""What each step establishes, by id, in order: step 1 is the first."""

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"


class Step:
    """One step.

    Attributes:
        id: A key of STEPS.
        result: "passed", "failed" or "skipped".
        reason: Why, as one sentence without a full stop.
    """

    __slots__ = ("id", "reason", "result")

    def __init__(self, name: str, result: str, reason: str) -> None:
        self.id = name
        self.result = result
        self.reason = reason

    def document(self) -> dict[str, str]:
        """The JSON form."""
        return {"id": self.id, "result": self.result, "reason": self.reason}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Step) and self.document() == other.document()

    def __hash__(self) -> int:
        return hash((self.id, self.result, self.reason))

    def __repr__(self) -> str:
        return f"<Step {self.id} {self.result}: {self.reason}>"


def number(name: str) -> int:
    """The number of a step, from 1; 0 for steps that are not of the report's own verification."""
    for count, known in enumerate(STEPS, 1):
        if known == name:
            return count
    return 0


def complete(done: list[Step], failed: str = "", reason: str = "") -> tuple[Step, ...]:
    """The steps done, the one that failed, and every later one as skipped because of it."""
    out = list(done)
    if failed:
        out.append(Step(failed, FAILED, reason))
        seen = {step.id for step in out}
        out += [Step(name, SKIPPED, f"not reached: {failed} failed") for name in STEPS if name not in seen]
    return tuple(out)
