"""QEMU's CPU models by name and the CPUID signature that their boot vCPU finds in RDX.

Source: QEMU target/i386/cpu.c (builtin_x86_defs). A version of a model changes features, never the signature.
"""

from __future__ import annotations

from sev.errors import UsageError
from sev.products import cpuid_signature

_MODELS = (
    # (name, family, model, stepping, versions known)
    ("EPYC", 23, 1, 2, 5),
    ("EPYC-IBPB", 23, 1, 2, 0),
    ("EPYC-Rome", 23, 49, 0, 5),
    ("EPYC-Milan", 25, 1, 1, 3),
    ("EPYC-Genoa", 25, 17, 0, 2),
    ("EPYC-Turin", 26, 0, 0, 2),
)

NAMES = tuple(
    name + suffix
    for name, _, _, _, versions in _MODELS
    for suffix in ("", *(f"-v{version}" for version in range(1, versions + 1)))
)
"""Every name that `signature` takes."""


def signature(name: str) -> int:
    """The CPUID signature (leaf 1, EAX) of a CPU model, its name in any case.

    Raises:
        UsageError: There is no such model; names the nearest.
    """
    wanted = name.strip().lower()
    model, _, version = wanted.partition("-v")
    for name_known, family, number, stepping, versions in _MODELS:
        if model == name_known.lower() and (wanted == model or version in map(str, range(1, versions + 1))):
            return cpuid_signature(family, number, stepping)
    from difflib import get_close_matches

    near = get_close_matches(name, NAMES, n=1)
    raise UsageError(
        f"unknown CPU type {name!r}",
        remedy=(f"Did you mean {near[0]}? " if near else "")
        + "Types are those of QEMU, such as EPYC-v4, EPYC-Milan, EPYC-Genoa, EPYC-Turin; for any other CPU give its "
        "signature or its family, model and stepping.",
        field="vcpu_type",
    )
