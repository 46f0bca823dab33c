"""Rules of a policy: for each field, what may stand there; and the table of all fields.

A rule is one or more alternatives, of which one must hold. An alternative is a value, a floor and a ceiling, or (for
TCB versions) these for each component.
"""

from __future__ import annotations

from sev.abi.policy import BITS
from sev.abi.report import PLATFORM_BITS
from sev.attestation.values import Bit, Flag, Kind, Mask, Number, Octets, ProductName, Tcb, Text, Version, Word
from sev.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

MAX_ALTERNATIVES = 4096
"""Longer lists are refused."""

_U32, _U64, _BYTE, _TCB, _VERSION, _BIT, _FLAG = Number(32), Mask(64), Number(8), Tcb(), Version(3), Bit(), Flag()

KINDS: dict[str, Kind] = {
    "version": _U32,
    "guest_svn": _U32,
    "policy": Word(),
    "policy.abi": Version(2),
    "policy.abi_major": _BYTE,
    "policy.abi_minor": _BYTE,
    **{f"policy.{name}": _BIT for name in (*BITS, "unknown")},
    "family_id": Octets(16),
    "image_id": Octets(16),
    "vmpl": _U32,
    "signature_algo": _U32,
    "current_tcb": _TCB,
    "platform_info": Word(),
    **{f"platform_info.{name}": _BIT for name in (*PLATFORM_BITS, "unknown")},
    "key_info": _U32,
    "author_key_en": _FLAG,
    "mask_chip_key": _FLAG,
    "signing_key": Text("vcek", "vlek"),
    "report_data": Octets(64),
    "measurement": Octets(48),
    "host_data": Octets(32),
    "id_key_digest": Octets(48),
    "author_key_digest": Octets(48),
    "report_id": Octets(32),
    "report_id_ma": Octets(32),
    "reported_tcb": _TCB,
    "cpuid_fam_id": _BYTE,
    "cpuid_mod_id": _BYTE,
    "cpuid_step": _BYTE,
    "product": ProductName(),
    "csp_id": Text(),
    "chip_id": Octets(64),
    "committed_tcb": _TCB,
    "current_version": _VERSION,
    "current_major": _BYTE,
    "current_minor": _BYTE,
    "current_build": _BYTE,
    "committed_version": _VERSION,
    "committed_major": _BYTE,
    "committed_minor": _BYTE,
    "committed_build": _BYTE,
    "provisional": _FLAG,
    "launch_tcb": _TCB,
    "launch_mit_vector": _U64,
    "current_mit_vector": _U64,
}
"""Every field that a policy can speak of, in the order of the result; bits as "policy.debug"."""


class Alternative:
    """One way for a field to be as expected: equal to `exact`, and between `floor` and `ceiling`, where given."""

    __slots__ = ("ceiling", "exact", "floor")

    def __init__(self, exact: Any = None, floor: Any = None, ceiling: Any = None) -> None:
        self.exact = exact
        self.floor = floor
        self.ceiling = ceiling

    def holds(self, kind: Kind, actual: Any) -> bool:
        """Whether the report's value is as expected; never where the report has none."""
        if actual is None:
            return False
        if self.exact is not None and not kind.equal(actual, self.exact):
            return False
        if self.floor is not None and not kind.at_least(actual, self.floor):
            return False
        return self.ceiling is None or kind.at_most(actual, self.ceiling)

    def show(self, kind: Kind) -> object:
        """The alternative in JSON, as a policy would say it."""
        if self.floor is None and self.ceiling is None:
            return kind.show(self.exact)
        out: dict[str, object] = {}
        if self.floor is not None:
            out["min"] = kind.show(self.floor)
        if self.ceiling is not None:
            out["max"] = kind.show(self.ceiling)
        if self.exact is not None:
            out["exact"] = kind.show(self.exact)
        return out


class Rule:
    """What is expected of one field: one of these alternatives."""

    __slots__ = ("alternatives", "kind", "one")

    def __init__(self, kind: Kind, alternatives: tuple[Alternative, ...], *, one: bool) -> None:
        self.kind = kind
        self.alternatives = alternatives
        self.one = one

    def holds(self, actual: Any) -> bool:
        """Whether the report's value is as expected."""
        return any(alternative.holds(self.kind, actual) for alternative in self.alternatives)

    def show(self) -> object:
        """The rule in JSON, as a policy would say it."""
        shown = [alternative.show(self.kind) for alternative in self.alternatives]
        return shown[0] if self.one else shown


def rule(field: str, value: object) -> Rule:
    """The rule that a policy's value for a field says.

    Raises:
        UsageError: An unknown field, or a value that the field cannot have.
    """
    kind = KINDS.get(field)
    if kind is None:
        raise UsageError(
            f"policy: unknown field {field!r}",
            field=field,
            remedy="Use the report's field names, as sev report show --json prints them.",
        )
    if not isinstance(value, list | tuple | set | frozenset):
        return Rule(kind, (_alternative(kind, value, field),), one=True)
    if not value or len(value) > MAX_ALTERNATIVES:
        raise UsageError(
            f"policy: {field} is a list of {len(value)}, expected 1 to {MAX_ALTERNATIVES} values", field=field
        )
    return Rule(kind, tuple(_alternative(kind, one, field) for one in value), one=False)


def bit_rules(field: str, value: object) -> dict[str, Rule]:
    """The rules for `policy` or `platform_info`: one for a number, one for each bit of a table.

    Raises:
        UsageError: An unknown bit, or a value that it cannot have.
    """
    if not isinstance(value, dict):
        return {field: rule(field, value)}
    if not value:
        raise UsageError(f"policy: {field} is an empty table, expected bits by name", field=field)
    out: dict[str, Rule] = {}
    for name, wanted in value.items():
        if f"{field}.{name}" not in KINDS:
            known = ", ".join(key.partition(".")[2] for key in KINDS if key.startswith(f"{field}."))
            raise UsageError(f"policy: {field} has no bit {name!r}; it has {known}", field=f"{field}.{name}")
        out[f"{field}.{name}"] = rule(f"{field}.{name}", wanted)
    return out


def _alternative(kind: Kind, value: object, field: str) -> Alternative:
    if not isinstance(value, dict):
        return Alternative(exact=kind.read(value, field))
    if set(value) & {"min", "max"}:
        return _bounds(kind, value, field)
    if isinstance(kind, Tcb):
        return _by_component(kind, value, field)
    raise UsageError(f"policy: {field} is a table, expected {kind.what}, or min and max", field=field)


def _bounds(kind: Kind, value: Mapping[str, object], field: str) -> Alternative:
    if not kind.ordered:
        raise UsageError(f"policy: {field} has no order, so no min or max; expected {kind.what}", field=field)
    for name in value:
        if name not in ("min", "max"):
            raise UsageError(f"policy: {field} has min or max, and {name!r}, which is unknown there", field=field)
    floor = kind.read(value["min"], field) if "min" in value else None
    ceiling = kind.read(value["max"], field) if "max" in value else None
    return Alternative(floor=floor, ceiling=ceiling)


def _by_component(kind: Tcb, value: Mapping[str, object], field: str) -> Alternative:
    """A TCB version by component, each a number or a table with min and max."""
    parts: dict[str, dict[str, object]] = {"exact": {}, "min": {}, "max": {}}
    for name, level in value.items():
        if not isinstance(level, dict):
            parts["exact"][name] = level
            continue
        if not level or set(level) - {"min", "max"}:
            raise UsageError(f"policy: {field}.{name} is {level!r}, expected a number, or min and max", field=field)
        for bound, number in level.items():
            parts[bound][name] = number
    read = {bound: kind.read(levels, field) if levels else None for bound, levels in parts.items()}
    if not any(parts.values()):
        raise UsageError(f"policy: {field} is an empty table, expected {kind.what}", field=field)
    return Alternative(exact=read["exact"], floor=read["min"], ceiling=read["max"])
