"""Attestation: find the report (`recognise`), is it genuine (`verify`), is it what I want (`appraise`).

No clock and no network: the time of verification and every certificate are arguments. Everything is loaded when first
used; reading a report needs no cryptography.

    evidence = sev.attestation.recognise(data)
    verified = sev.attestation.verify(evidence.report, Collateral(vek=der), at=datetime.now(UTC))
    appraisal = sev.attestation.appraise(verified, Policy.load(text, "toml"))
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sev.abi.report import Report
    from sev.attestation.appraisal import Appraisal, Check, appraise
    from sev.attestation.collateral import Collateral
    from sev.attestation.evidence import Evidence, recognise
    from sev.attestation.policy import Policy
    from sev.attestation.steps import Step
    from sev.attestation.verification import VerifiedReport, verify
    from sev.certs.roots import Roots

__all__ = [
    "Appraisal", "Check", "Collateral", "Evidence", "Policy", "Report", "Roots", "Step", "VerifiedReport", "appraise",
    "errors", "recognise", "verify",
]  # fmt: skip

_NAMES = {
    "Appraisal": "sev.attestation.appraisal",
    "Check": "sev.attestation.appraisal",
    "Collateral": "sev.attestation.collateral",
    "Evidence": "sev.attestation.evidence",
    "Policy": "sev.attestation.policy",
    "Report": "sev.abi.report",
    "Roots": "sev.certs.roots",
    "Step": "sev.attestation.steps",
    "VerifiedReport": "sev.attestation.verification",
    "appraise": "sev.attestation.appraisal",
    "recognise": "sev.attestation.evidence",
    "verify": "sev.attestation.verification",
}


def __getattr__(name: str) -> object:
    """Loads a public name on first use (PEP 562)."""
    from importlib import import_module

    if name in _NAMES:
        return getattr(import_module(_NAMES[name]), name)
    if name == "errors":
        return import_module("sev.attestation.errors")
    raise AttributeError(f"module 'sev.attestation' has no attribute {name!r}")
