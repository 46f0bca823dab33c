"""The `[[identity]]` tables of the configuration: who, with which role, and with which limits of its own.

    [[identity]]
    match = "unit:orchestrator.service"
    role = "launcher"
    guests = 200

`match` is one of

- `user:NAME` or `uid:N`: a user of this host;
- `group:NAME` or `gid:N`: the members of a group, by primary or supplementary membership;
- `unit:NAME.service`: a unit of the system's service manager, whoever it runs as;
- `uri:…`: a URI in the subject alternative names of a client's certificate, such as a SPIFFE id;
- `dns:NAME`: a DNS name there.

Which of several that match decides is told in `sevd.access.policy`.
"""

from __future__ import annotations

import re

from sev.errors import UsageError
from sev.records import field, record
from sevd.access.limits import IdentityLimits
from sevd.access.roles import Role

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

IDENTITIES = 4096
"""Most tables in one configuration."""

NAME_CHARACTERS = 2048
"""Longest name: a SPIFFE id has at most so many bytes."""

UNITS = (".service", ".scope")
"""Kinds of units that processes are in."""

_NUMBER = re.compile(r"[0-9]{1,10}", re.ASCII)
_ACCOUNT = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.@$ -]{0,255}", re.ASCII)
_UNIT = re.compile(r"[A-Za-z0-9:_.\\@-]{1,255}", re.ASCII)
_DNS = re.compile(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*", re.ASCII)
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[!-~]+", re.ASCII)
_LARGEST_ID = (1 << 32) - 2  # (uid_t) -1 means nobody
_LARGEST = 1 << 62

LIMITS: Mapping[str, tuple[int, int, str]] = {
    "connections": (1, 1 << 16, "connections"),
    "calls": (1, 1 << 16, "calls"),
    "guests": (0, 1 << 16, "guests"),
    "guest_memory": (0, _LARGEST, "bytes"),
    "watches": (0, 1 << 16, "streams"),
    "launches_per_minute": (0, 1 << 16, "launches"),
    "bytes_in_flight": (64 << 10, 1 << 40, "bytes"),
}
"""(least, most, unit) of every limit that an identity may have of its own."""


@record
class Identity:
    """One table.

    Attributes:
        kind: "user", "uid", "group", "gid", "unit", "uri" or "dns".
        name: What follows the colon; a DNS name in lower case.
        role: Its role; None: it has none, whatever else would give it one.
        limits: Limits of its own.
        where: Its place in the configuration, such as "identity[2]".
    """

    kind: str
    name: str
    role: Role | None
    limits: IdentityLimits = field(default_factory=IdentityLimits)
    where: str = "identity"

    @property
    def match(self) -> str:
        """As the configuration has it."""
        return f"{self.kind}:{self.name}"

    def table(self) -> str:
        """The table in one line of TOML."""
        role = "none" if self.role is None else self.role.text
        escaped = self.match.replace("\\", "\\\\")  # of what a match may hold, nothing else means something in TOML
        parts = [f'match = "{escaped}"', f'role = "{role}"']
        for name in LIMITS:
            value = getattr(self.limits, name)
            if value is not None:
                parts.append(f"{name} = {value}")
        return "{ " + ", ".join(parts) + " }"


def parse(entries: object, source: str) -> tuple[Identity, ...]:
    """The identities of a configuration: `entries` is what TOML has under `identity`.

    Raises:
        UsageError: No array of tables, too many, an unknown key, a value of another type or range, no match or role,
            or the same match twice; `field` is its place, counted from 1, such as "identity[2].guests".
    """
    if not isinstance(entries, list):
        raise UsageError(f"{source}: identity: expected an array of tables, [[identity]]", field="identity")
    if len(entries) > IDENTITIES:
        raise UsageError(f"{source}: {len(entries)} identities, expected at most {IDENTITIES}", field="identity")
    found: dict[str, Identity] = {}
    for number, entry in enumerate(entries, 1):
        one = _identity(entry, f"identity[{number}]", source)
        if one.match in found:
            where = f"{one.where}.match"
            raise UsageError(f"{source}: {where}: {one.match!r} is {found[one.match].where} already", field=where)
        found[one.match] = one
    return tuple(found.values())


def _identity(entry: object, where: str, source: str) -> Identity:
    if not isinstance(entry, dict):
        raise UsageError(f"{source}: {where}: expected a table", field=where)
    for key in entry:
        if key not in ("match", "role", *LIMITS):
            known = ", ".join(("match", "role", *LIMITS))
            raise UsageError(
                f"{source}: there is no setting {where}.{key}", field=f"{where}.{key}", remedy=f"There is: {known}."
            )
    kind, name = _match(entry.get("match"), f"{where}.match", source)
    role = _role(entry.get("role"), f"{where}.role", source)
    limits = {key: _limit(key, entry[key], f"{where}.{key}", source) for key in LIMITS if key in entry}
    return Identity(kind, name, role, IdentityLimits(**limits), where)


def _is_account(name: str) -> bool:
    return _ACCOUNT.fullmatch(name) is not None


def _is_id(name: str) -> bool:
    return _NUMBER.fullmatch(name) is not None and int(name) <= _LARGEST_ID


def _is_unit(name: str) -> bool:
    return _UNIT.fullmatch(name) is not None and name.endswith(UNITS) and name not in UNITS


def _is_uri(name: str) -> bool:
    return len(name) <= NAME_CHARACTERS and _URI.fullmatch(name) is not None and '"' not in name


def _is_dns(name: str) -> bool:
    return len(name) <= 253 and _DNS.fullmatch(name) is not None


_FITS: Mapping[str, Callable[[str], bool]] = {
    "user": _is_account,
    "uid": _is_id,
    "group": _is_account,
    "gid": _is_id,
    "unit": _is_unit,
    "uri": _is_uri,
    "dns": _is_dns,
}


def _match(value: object, where: str, source: str) -> tuple[str, str]:
    if value is None:
        raise UsageError(f"{source}: {where} is missing", field=where, remedy=_EXPECTED)
    if not isinstance(value, str):
        raise UsageError(f"{source}: {where} is {value!r:.80}, expected a text", field=where, remedy=_EXPECTED)
    kind, _, name = value.partition(":")
    if kind == "dns":
        name = name.lower().removesuffix(".")
    fits = _FITS.get(kind)
    if fits is None or not fits(name):
        raise UsageError(f"{source}: {where} is {value!r:.160}, which matches nobody", field=where, remedy=_EXPECTED)
    return kind, str(int(name)) if kind in ("uid", "gid") else name


_EXPECTED = (
    "Expected user:NAME, uid:N, group:NAME, gid:N, unit:NAME.service, uri:URI (such as uri:spiffe://domain/path) "
    "or dns:NAME."
)


def _role(value: object, where: str, source: str) -> Role | None:
    if value == "none":
        return None
    try:
        return Role.parse(value if isinstance(value, str) else "")
    except ValueError:
        said = "is missing" if value is None else f"is {value!r:.80}"
        raise UsageError(
            f"{source}: {where} {said}, expected 'viewer', 'launcher', 'admin' or 'none'", field=where
        ) from None


def _limit(name: str, value: object, where: str, source: str) -> int:
    least, most, unit = LIMITS[name]
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise UsageError(
            f"{source}: {where} is {value!r:.80}, expected a whole number from {least} to {most} {unit}", field=where
        )
    return value
