"""Policies: what a caller expects of a genuine report, as a Python object, TOML or JSON, with the same names.

One table `[report]`; its keys are the report's field names (and a few derived ones). A value is what is expected, a
list is any of several, `{ min = …, max = … }` a floor and a ceiling. Bits of `policy` and `platform_info` are
"required", "forbidden" or "any". An unknown key is an error, never ignored; what is not mentioned is not checked.

    [report]
    measurement = "09ef32ac…"                            # 96 hexadecimal digits
    vmpl = 0
    reported_tcb = { min = { bootloader = 4, snp = 27 } }
    current_version = { min = "1.55.29" }
    policy = { debug = "forbidden", unknown = "forbidden" }
    platform_info = { alias_check_complete = "required" }
"""

from __future__ import annotations

from sev.attestation.rules import KINDS, Rule, bit_rules, rule
from sev.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

FORMS = ("toml", "json")
MAX_SIZE = 1 << 20


class Policy:
    """Rules by field; immutable in use.

    Build one from keyword arguments named like the fields, from a mapping, or from text:

        Policy(measurement=expected, vmpl=0, policy={"debug": "forbidden"})
        Policy.from_mapping({"report": {"vmpl": 0}})
        Policy.load('[report]\\nvmpl = 0', "toml")

    Raises:
        UsageError: An unknown field, a value of the wrong type or length, a table that says nothing.
    """

    __slots__ = ("_rules",)

    def __init__(self, **fields: object) -> None:
        self._rules: dict[str, Rule] = {}
        for name, value in fields.items():
            self._add(name, value)

    @classmethod
    def from_mapping(cls, document: Mapping[str, object]) -> Policy:
        """The policy of a whole document: one table `report`.

        Raises:
            UsageError: Another table or key, or no table `report`.
        """
        for name in document:
            if name != "report":
                raise UsageError(f"policy: unknown table or key {name!r}, expected [report] only", field=name)
        table = document.get("report")
        if not isinstance(table, dict):
            raise UsageError("policy: no table [report]", field="report")
        if not table:
            raise UsageError("policy: the table [report] is empty: it would accept everything", field="report")
        return cls(**table)

    @classmethod
    def load(cls, text: str, form: str) -> Policy:
        """The policy in a TOML or JSON text.

        Raises:
            UsageError: Not such a text, or not such a policy; for JSON also a name that stands twice.
        """
        if form not in FORMS:
            raise UsageError(f"policy form {form!r}, expected one of {', '.join(FORMS)}", field="form")
        if len(text) > MAX_SIZE:
            raise UsageError(f"policy: {len(text)} characters, expected at most {MAX_SIZE}", field="policy")
        document: object
        try:
            if form == "toml":
                from tomllib import loads

                document = loads(text)
            else:
                from json import loads as load_json

                document = load_json(text, object_pairs_hook=_once)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"policy: not {form.upper()}: {error}", field="policy") from None
        if not isinstance(document, dict):
            raise UsageError("policy: expected an object with one key, report", field="policy")
        return cls.from_mapping(document)

    def and_also(self, **fields: object) -> Policy:
        """A policy with more rules.

        Raises:
            UsageError: As the constructor, or a field that this policy has a rule for already.
        """
        out = Policy()
        out._rules.update(self._rules)
        for name, value in fields.items():
            out._add(name, value)
        return out

    def _add(self, name: str, value: object) -> None:
        added = bit_rules(name, value) if name in ("policy", "platform_info") else {name: rule(name, value)}
        for field, one in added.items():
            if field in self._rules:
                raise UsageError(f"policy: {field} is asked for twice", field=field)
            self._rules[field] = one

    def get(self, field: str) -> Rule | None:
        """The rule for a field ("vmpl", "policy.debug"); None if it is not asked for."""
        return self._rules.get(field)

    def __iter__(self) -> Iterator[str]:
        return iter(self._rules)

    def __len__(self) -> int:
        return len(self._rules)

    def __repr__(self) -> str:
        return f"<Policy about {', '.join(self._rules) or 'nothing'}>"


def fields() -> tuple[str, ...]:
    """Every field that a policy can speak of, bits as "policy.debug", in the order of the result."""
    return tuple(KINDS)


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    out: dict[str, object] = {}
    for name, value in pairs:
        if name in out:
            raise ValueError(f"{name!r} stands twice")
        out[name] = value
    return out
