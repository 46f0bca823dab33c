"""The configuration file, which changes settings (`sevd.settings`), and the paths that nobody has chosen.

The file is TOML; a setting's name is its table and key, such as `limits.connections`. `[[identity]]` tables, any
number of them, are read by `sevd.access.identities`. An unknown key, a value of another type and a number outside its
range are errors: the daemon does not start, and a reload keeps what was. Options of the command line come last.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from sev.errors import UsageError
from sev.records import replace
from sevd.settings import KDS_AUTO, PRODUCTS, SETTINGS, TECHNOLOGIES, Setting, Settings

__all__ = ["PRODUCTS", "SETTINGS", "TECHNOLOGIES", "Setting", "Settings"]

CONFIG_BYTES = 1 << 20
"""Largest configuration file."""

AMD_KDS = "https://kdsintf.amd.com"
"""AMD's key distribution service (sev.kds.urls.AMD, which a start need not load)."""

_BY_NAME = {setting.name: setting for setting in SETTINGS}


def load(path: Path, base: Settings | None = None) -> Settings:
    """The settings of a file.

    Raises:
        UsageError: It cannot be read, is no TOML, or holds an unknown key or a bad value; `field` is the setting.
    """
    try:
        with path.open("rb") as file:
            data = file.read(CONFIG_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{path}: {os.strerror(error.errno or 0)}", field="config") from None
    if len(data) > CONFIG_BYTES:
        raise UsageError(f"{path}: larger than {CONFIG_BYTES} bytes", field="config")
    return parse(data, str(path), base)


def parse(data: bytes, source: str, base: Settings | None = None) -> Settings:
    """The settings of a file's content. Raises UsageError as `load`."""
    import tomllib

    try:
        document = tomllib.loads(data.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{source}: no valid TOML: {error}", field="config") from None
    values: dict[str, object] = {}
    for table, content in document.items():
        if table == "identity":
            from sevd.access import identities

            values["identities"] = identities.parse(content, source)
            continue
        if not isinstance(content, dict):
            raise _unknown(source, table)
        for key, value in content.items():
            setting = _BY_NAME.get(f"{table}.{key}")
            if setting is None:
                raise _unknown(source, f"{table}.{key}")
            values[setting.attribute] = _value(setting, value, source)
    return replace(base or Settings(), **values)


def resolved(settings: Settings, uid: int, environ: Mapping[str, str]) -> Settings:
    """The settings with every path chosen.

    As root: /run/sevd/{sevd,monitor,admin,fd}.sock and /var/lib/sevd; otherwise the user's runtime and state
    directories (XDG_RUNTIME_DIR, XDG_STATE_HOME). One `socket` given alone stays alone. A device that a simulator
    serves means that simulator.
    """
    home = Path(environ.get("HOME") or "/nonexistent")
    state = Path("/var/lib/sevd") if uid == 0 else Path(environ.get("XDG_STATE_HOME") or home / ".local/state") / "sevd"
    run = Path("/run/sevd") if uid == 0 else Path(environ.get("XDG_RUNTIME_DIR") or f"/run/user/{uid}") / "sevd"
    out = settings
    if not (out.socket or out.monitor_socket or out.admin_socket):
        out = replace(out, socket=run / "sevd.sock")
        if uid == 0:
            out = replace(out, monitor_socket=run / "monitor.sock", admin_socket=run / "admin.sock")
    if out.fd_socket is None:
        beside = out.socket or out.admin_socket or out.monitor_socket
        assert beside is not None
        out = replace(out, fd_socket=beside.with_name("fd.sock"))
    if out.state_dir is None:
        out = replace(out, state_dir=state)
    if out.audit_file is None:
        assert out.state_dir is not None
        out = replace(out, audit_file=out.state_dir / "audit.jsonl")
    if out.simulator is None and not out.simulate:
        out = replace(out, simulator=simulator_of(out.sev_device))
    real = uid == 0 and not out.simulate and out.simulator is None
    if out.certificate_table is None:
        assert out.state_dir is not None
        # A simulated host's certificates must never lie where VMMs of the real one look for theirs.
        table = run / "certs.bin" if real else out.state_dir / "certs.bin"
        out = replace(out, certificate_table=table)
    return _with_sources(out, run, real=real)


def _with_sources(settings: Settings, run: Path, *, real: bool) -> Settings:
    """The settings with where certificates come from. Raises UsageError for what is no address."""
    out = settings
    if out.kds == KDS_AUTO:
        out = replace(out, kds="" if out.simulate or out.simulator is not None else AMD_KDS)
    elif out.kds:
        from sev.kds import urls

        out = replace(out, kds=urls.base(out.kds))
    served = out.simulator / "roots" / "kds-ca.pem" if out.simulator is not None else None
    if served is not None and out.kds and out.kds_ca is None and served.exists():
        out = replace(out, kds_ca=served)
    if out.fetch_socket is None and real:
        out = replace(out, fetch_socket=run / "fetch.sock")
    return out


def simulator_of(device: Path) -> Path | None:
    """The directory of the simulator that serves a SEV device; None for any other device.

    A simulator's device named as if it were a real one must not make its host pass for real.
    """
    import json

    try:
        with (device.parent / "platform.json").open("rb") as file:
            found = json.loads(file.read(CONFIG_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    simulated = isinstance(found, dict) and found.get("simulated") is True
    return device.parent if simulated and device.name == "sev" else None


def changed(before: Settings, after: Settings) -> tuple[list[str], list[str]]:
    """(settings that differ and that a reload applies, settings that differ and take a restart), by name."""
    differing = [one for one in SETTINGS if getattr(before, one.attribute) != getattr(after, one.attribute)]
    live = [one.name for one in differing if one.live]
    if before.identities != after.identities:
        live.append("identity")
    return live, [one.name for one in differing if not one.live]


def default_file(uid: int, environ: Mapping[str, str]) -> Path | None:
    """The configuration file that is read unasked: the system's, or the user's; None if there is none."""
    if uid == 0:
        path = Path("/etc/sevd/sevd.toml")
    else:
        home = Path(environ.get("HOME") or "/nonexistent")
        path = Path(environ.get("XDG_CONFIG_HOME") or home / ".config") / "sevd/sevd.toml"
    return path if path.exists() else None


def _value(setting: Setting, value: object, source: str) -> object:
    where = f"{source}: {setting.name}"
    if setting.kind == "number":
        if not isinstance(value, int) or isinstance(value, bool) or not setting.least <= value <= setting.most:
            unit = f" {setting.unit}" if setting.unit else ""
            expected = f"a whole number from {setting.least} to {setting.most}{unit}"
            raise UsageError(f"{where} is {value!r}, expected {expected}", field=setting.name)
        return value
    if setting.kind == "switch":
        if not isinstance(value, bool):
            raise UsageError(f"{where} is {value!r}, expected true or false", field=setting.name)
        return value
    if setting.kind == "texts":
        if not isinstance(value, list) or not all(isinstance(one, str) and one for one in value):
            raise UsageError(f"{where} is {value!r}, expected a list of texts", field=setting.name)
        if setting.words and (not value or not set(value) <= set(setting.words)):
            expected = ", ".join(repr(word) for word in setting.words)
            raise UsageError(f"{where} is {value!r}, expected a list of some of {expected}", field=setting.name)
        return tuple(value)
    if not isinstance(value, str) or "\0" in value:
        raise UsageError(f"{where} is {value!r}, expected a text", field=setting.name)
    if setting.kind == "tcb" and value:
        from sevd.platform.desired import parse_tcb

        try:
            parse_tcb(value)
        except UsageError as error:
            raise UsageError(f"{where}: {error.message}", field=setting.name) from None
    if setting.kind == "path":
        if not os.path.isabs(value):
            raise UsageError(f"{where} is {value!r}, expected an absolute path", field=setting.name)
        return Path(value)
    if setting.words and value not in setting.words:
        expected = ", ".join(repr(word) for word in setting.words)
        raise UsageError(f"{where} is {value!r}, expected one of {expected}", field=setting.name)
    return value


def _unknown(source: str, name: str) -> UsageError:
    from difflib import get_close_matches

    near = get_close_matches(name, _BY_NAME, 1)
    return UsageError(
        f"{source}: there is no setting {name}",
        field=name,
        remedy=f"Did you mean {near[0]}?" if near else "See the documentation of the configuration file.",
    )
