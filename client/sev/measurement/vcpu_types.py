"""QEMU's CPU models by name and the CPUID signature that their boot vCPU finds in RDX.

Source: QEMU target/i386/cpu.c (builtin_x86_defs). A version of a model changes features, never the signature.
"""

from __future__ import annotations

from sev.errors import UsageError
from sev.products import cpuid_signature

_EPYC = (23, 1, 2)
_ROME = (23, 49, 0)
_MILAN = (25, 1, 1)
_GENOA = (25, 17, 0)
_TURIN = (26, 0, 0)

MODELS = {
    "EPYC": _EPYC,
    "EPYC-v1": _EPYC,
    "EPYC-v2": _EPYC,
    "EPYC-v3": _EPYC,
    "EPYC-v4": _EPYC,
    "EPYC-v5": _EPYC,
    "EPYC-IBPB": _EPYC,
    "EPYC-Rome": _ROME,
    "EPYC-Rome-v1": _ROME,
    "EPYC-Rome-v2": _ROME,
    "EPYC-Rome-v3": _ROME,
    "EPYC-Rome-v4": _ROME,
    "EPYC-Rome-v5": _ROME,
    "EPYC-Milan": _MILAN,
    "EPYC-Milan-v1": _MILAN,
    "EPYC-Milan-v2": _MILAN,
    "EPYC-Milan-v3": _MILAN,
    "EPYC-Genoa": _GENOA,
    "EPYC-Genoa-v1": _GENOA,
    "EPYC-Genoa-v2": _GENOA,
    "EPYC-Turin": _TURIN,
    "EPYC-Turin-v1": _TURIN,
    "EPYC-Turin-v2": _TURIN,
}
"""CPU model to (family, model, stepping)."""

NAMES = tuple(MODELS)
"""Every name that `signature` takes."""


def signature(name: str) -> int:
    """The CPUID signature (leaf 1, EAX) of a CPU model, its name in any case.

    Raises:
        UsageError: There is no such model; names the nearest.
    """
    found = MODELS.get(name)
    if found is None:
        wanted = name.strip().lower()
        found = next((numbers for known, numbers in MODELS.items() if known.lower() == wanted), None)
    if found is not None:
        return cpuid_signature(*found)
    from difflib import get_close_matches

    near = [known for known in NAMES if known.lower() in get_close_matches(wanted, map(str.lower, NAMES), n=1)]
    raise UsageError(
        f"unknown CPU type {name!r}",
        remedy=(f"Did you mean {near[0]}? " if near else "")
        + "Types are those of QEMU, such as EPYC-v4, EPYC-Milan, EPYC-Genoa, EPYC-Turin; for any other CPU give its "
        "signature or its family, model and stepping.",
        field="vcpu_type",
    )
