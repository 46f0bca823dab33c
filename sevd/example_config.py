"""The example of the configuration file: every setting with its meaning, its range and its default, all commented out.

`python -m sevd.example_config > systemd/sevd.toml` writes it anew.
"""

from __future__ import annotations

import sys
import textwrap

from sevd.config import SETTINGS, Setting, Settings, resolved

_WIDTH = 100

_HEAD = """\
# Configuration of sevd, /etc/sevd/sevd.toml. Every setting is here, with its default (of the daemon as root): remove
# the "#" before one to change it. `sevd --check-config` says whether the file is right.
# "reload": `systemctl reload sevd` applies a change; "restart": it takes `systemctl restart sevd`.
"""


_IDENTITY = """\
# Who may do what, one table for each: match = user:NAME, uid:N, group:NAME, gid:N, unit:NAME.service, uri:URI or
# dns:NAME (the last two of a client's certificate); role = viewer, launcher, admin or none; and limits of its own:
# connections, calls, guests, guest_memory (bytes), watches, launches_per_minute, bytes_in_flight. The most specific one
# that matches decides. None is set. Reload.
#
#   [[identity]]
#   match = "unit:orchestrator.service"
#   role = "launcher"
#   guests = 200
"""


def text() -> str:
    """The file's content, TOML."""
    parts = [_HEAD]
    table = ""
    defaults = resolved(Settings(), 0, {})
    for setting in SETTINGS:
        name, _, key = setting.name.rpartition(".")
        if name != table:
            table = name
            parts.append(f"[{table}]\n")
        default = literal(getattr(defaults, setting.attribute))
        parts.append(f"{_about(setting)}#{key} = {default or _unset(setting)}\n")
    parts.append(_IDENTITY)
    return "\n".join(parts)


def literal(value: object) -> str:
    """A value in TOML; empty for one that is not set."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    if isinstance(value, tuple):
        return "[" + ", ".join(literal(one) for one in value) + "]"
    return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'


def _about(setting: Setting) -> str:
    lines = [setting.meaning, setting.risk]
    values = _values(setting)
    lines.append(f"{values}; {'reload' if setting.live else 'restart'}." if values else _takes(setting))
    return "".join(f"# {line}\n" for one in lines for line in textwrap.wrap(one, _WIDTH))


def _takes(setting: Setting) -> str:
    return "Reload." if setting.live else "Restart."


def _values(setting: Setting) -> str:
    """What a setting may be; empty if its default says it."""
    if setting.words:
        return "Of " + ", ".join(literal(word) for word in setting.words)
    if setting.kind == "number":
        unit = f" {setting.unit}" if setting.unit else ""
        return (
            f"{setting.least} and more{unit}" if setting.most == 1 << 62 else f"{setting.least} to {setting.most}{unit}"
        )
    return ""


def _unset(setting: Setting) -> str:
    """Some value for a setting that has no default."""
    return {"path": '"/some/directory"', "number": str(setting.least), "switch": "false"}[setting.kind] + "  # not set"


if __name__ == "__main__":
    sys.stdout.write(text())
