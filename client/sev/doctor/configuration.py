"""The daemon's configuration, as far as it may leave the machine: what is not known to be harmless is withheld."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sev.doctor.redact import Redactor

SYSTEM_FILE = "/etc/sevd/sevd.toml"
"""The configuration of a daemon that runs as root."""

LIMIT = 1 << 20

_WITHHELD = "(withheld)"

_WORDS = frozenset(
    (
        "daemon.log_level",
        "daemon.socket_group",
        "logs.format",
        "guests.technologies",
        "simulation.product",
        "simulation.firmware_version",
        "identity.role",
    )
)
"""Settings whose texts are words of a small set."""

_PATHS = frozenset(
    (
        "daemon.state_dir",
        "daemon.socket",
        "daemon.monitor_socket",
        "daemon.admin_socket",
        "daemon.fd_socket",
        "devices.sev",
        "devices.kvm",
        "simulation.directory",
        "endorsements.certificate_table",
        "audit.file",
        "remote.certificate",
        "remote.client_ca",
        "remote.crl",
        "remote.listen",
        "metrics.listen",
    )
)
"""Settings that are paths or places to listen at: shown, without the names in them."""

_NUMBERS_WITHHELD = frozenset(("simulation.seed",))
"""Numbers that keys are made of."""


def find(uid: int) -> str | None:
    """The configuration file of a daemon of this user, if there is one."""
    if uid == 0:
        return SYSTEM_FILE if os.path.exists(SYSTEM_FILE) else None
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.join(os.environ.get("HOME") or "/nonexistent", ".config")
    for path in (os.path.join(home, "sevd", "sevd.toml"), SYSTEM_FILE):
        if os.path.exists(path):
            return path
    return None


def configuration(path: str, redactor: Redactor) -> dict[str, object]:
    """The settings of a file, by name.

    Raises:
        OSError: It cannot be read.
    """
    import tomllib

    with open(path, "rb") as file:
        data = file.read(LIMIT + 1)
    if len(data) > LIMIT:
        return {"unreadable": f"larger than {LIMIT} bytes"}
    try:
        tables = tomllib.loads(data.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError):
        # The reason may quote the line, and the line may be anything.
        return {"unreadable": "no valid TOML; sevd --check-config says where"}
    out: dict[str, object] = {}
    for table, content in tables.items():
        entries = content if isinstance(content, list) else [content]
        for number, entry in enumerate(entries):
            name = f"{table}[{number}]" if isinstance(content, list) else table
            if not isinstance(entry, dict):
                out[name] = _WITHHELD
                continue
            for key, value in entry.items():
                out[f"{name}.{key}"] = _shown(f"{table}.{key}", value, redactor)
    return out


def _shown(name: str, value: object, redactor: Redactor) -> object:
    if isinstance(value, bool) or (isinstance(value, int | float) and name not in _NUMBERS_WITHHELD):
        return value
    if name in _WORDS:
        return value
    if name in _PATHS and isinstance(value, str):
        return value  # names in it are replaced with the rest of the document
    if name == "identity.match" and isinstance(value, str):
        kind, colon, who = value.partition(":")
        redactor.learn(kind, [who])
        return f"{kind}:{who}" if colon else _WITHHELD
    if name.startswith("access.") and isinstance(value, list):
        names = [str(one) for one in value]
        redactor.learn("user" if name.endswith("users") else "group", names)
        return names if redactor.names else f"({len(names)} names)"
    if isinstance(value, list):
        return f"(withheld: {len(value)} values)"
    return _WITHHELD
