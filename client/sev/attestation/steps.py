"""The steps of a verification, as they are numbered and shown."""

from __future__ import annotations

from sev.certs.steps import FAILED, PASSED, SKIPPED, Step, not_reached

__all__ = ["FAILED", "PASSED", "SKIPPED", "STEPS", "Step", "complete", "number"]

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
        out += not_reached(failed, [name for name in STEPS if name not in seen])
    return tuple(out)
