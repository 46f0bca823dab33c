"""Every setting of the daemon: default, unit and risk, in one table; and the file that changes them.

The file is TOML; a setting's name is its table and key, such as `limits.connections`. `[[identity]]` tables, any
number of them, are read by `sevd.access.identities`. An unknown key, a value of another type and a number outside its
range are errors: the daemon does not start, and a reload keeps what was. Options of the command line come last.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from sev.errors import UsageError
from sev.records import record, replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sevd.access.identities import Identity

CONFIG_BYTES = 1 << 20
"""Largest configuration file."""

PRODUCTS = ("naples", "rome", "milan", "genoa", "turin")
"""Processor lines that can be simulated."""

TECHNOLOGIES = ("sev", "sev-es", "snp")
"""What a daemon can offer."""


@record
class Settings:
    """The values; see SETTINGS for what each means. A path that is None is chosen by `resolved`."""

    state_dir: Path | None = None
    socket: Path | None = None
    monitor_socket: Path | None = None
    admin_socket: Path | None = None
    fd_socket: Path | None = None
    socket_group: str = "sev"
    drain_seconds: int = 10
    log_level: str = "info"
    sev_device: Path = Path("/dev/sev")
    kvm_device: Path = Path("/dev/kvm")
    technologies: tuple[str, ...] = TECHNOLOGIES
    plain_guests: bool = False
    simulate: str = ""
    simulator: Path | None = None
    firmware_version: str = ""
    seed: int | None = None
    admin_users: tuple[str, ...] = ()
    admin_groups: tuple[str, ...] = ()
    launcher_users: tuple[str, ...] = ()
    launcher_groups: tuple[str, ...] = ("sev",)
    viewer_users: tuple[str, ...] = ()
    viewer_groups: tuple[str, ...] = ()
    identities: tuple[Identity, ...] = ()
    connections: int = 2048
    connections_per_identity: int = 256
    calls_per_identity: int = 256
    message_bytes: int = 4 << 20
    guests_per_identity: int = 64
    guest_memory_per_identity: int = 64 << 30
    vcpus_per_guest: int = 512
    watches_per_identity: int = 32
    certificate_table: Path | None = None
    table_wait_seconds: int = 5
    audit_file_bytes: int = 16 << 20
    audit_files: int = 4
    journal_entries: int = 4096
    journal_entries_per_identity: int = 1024
    journal_seconds: int = 24 * 3600


@record
class Setting:
    """One setting.

    Attributes:
        name: Table and key in the file.
        attribute: Attribute of `Settings`.
        kind: "path", "text", "texts", "number" or "switch".
        meaning: What it does.
        unit: Unit of a number; empty otherwise.
        risk: What goes wrong with a bad value.
        least: Smallest number.
        most: Largest number.
        words: The texts that are possible, or that a list of texts may have; none given: any.
        live: A reload applies it; otherwise it takes a restart.
    """

    name: str
    attribute: str
    kind: str
    meaning: str
    risk: str
    unit: str = ""
    least: int = 0
    most: int = 1 << 62
    words: tuple[str, ...] = ()
    live: bool = False


def _access(role: str, whom: str, risk: str) -> Setting:
    meaning = f"{whom} (names or numbers) whose role is {role}."
    return Setting(f"access.{role}_{whom}", f"{role}_{whom}", "texts", meaning, risk, live=True)


_SOCKET_RISK = "Who may connect can reach the accept loop; its directory must not be writable by others."
_PER = "Too low refuses honest callers; too high lets one caller use the host up."

SETTINGS: tuple[Setting, ...] = (
    Setting("daemon.state_dir", "state_dir", "path", "Where state is kept: the journal, the audit trail, endorsements, "
            "a simulated chip.", "Whoever can write there is the daemon."),
    Setting("daemon.socket", "socket", "path", "The socket of clients. Alone (without the two below) it serves "
            "everybody.", _SOCKET_RISK),
    Setting("daemon.monitor_socket", "monitor_socket", "path", "A socket on which everybody is a viewer at most.",
            _SOCKET_RISK),
    Setting("daemon.admin_socket", "admin_socket", "path", "A socket that admits admins alone.", _SOCKET_RISK),
    Setting("daemon.fd_socket", "fd_socket", "path", "A socket that passes guests' memory to their owners on this "
            "machine; beside the others if it is not named.", _SOCKET_RISK),
    Setting("daemon.socket_group", "socket_group", "text", "The group that may connect to the sockets of clients and "
            "monitors, where the daemon runs as root and the group exists.", "Its members can reach the accept loop."),
    Setting("daemon.drain_seconds", "drain_seconds", "number", "How long a stop waits for calls that run.",
            "Too short cuts calls off; longer than systemd's TimeoutStopSec= is cut off by it.", "s", 0, 3600),
    Setting("daemon.log_level", "log_level", "text", "The least level that is logged.",
            "Debug lines name guests and callers.", words=("debug", "info", "warning", "error"), live=True),
    Setting("devices.sev", "sev_device", "path", "The SEV device.", "The daemon issues ioctls to whatever this is."),
    Setting("devices.kvm", "kvm_device", "path", "The KVM device.", "The daemon issues ioctls to whatever this is."),
    Setting("guests.technologies", "technologies", "texts", "What is offered, of what the host has: guests of these "
            "technologies, and their platform.", "A technology that is left out is refused to everybody, admins "
            "included.", words=TECHNOLOGIES),
    Setting("guests.plain", "plain_guests", "switch", "Admit plain guests: ordinary VMs, for machines without SEV.",
            "Nothing protects them from this host, and the caller asks for it by name alone."),
    Setting("simulation.directory", "simulator", "path", "Use a running sevd-simulator through its files in this "
            "directory instead of the real devices.", "Nothing on a simulated host is protected."),
    Setting("simulation.product", "simulate", "text", "Simulate a host of this processor line in the daemon itself; "
            "empty: the real devices.", "Nothing on a simulated host is protected.", words=("", *PRODUCTS)),
    Setting("simulation.firmware_version", "firmware_version", "text", "Firmware of the simulated chip, such as "
            "1.55.40; empty: what its state says.", "None beyond the simulation."),
    Setting("simulation.seed", "seed", "number", "Makes a new simulated chip repeatable.", "Its keys can be guessed."),
    _access("admin", "users", "They can commit firmware for good and see everybody's guests."),
    _access("admin", "groups", "They can commit firmware for good and see everybody's guests."),
    _access("launcher", "users", "They can use up ASIDs and memory, within limits."),
    _access("launcher", "groups", "They can use up ASIDs and memory, within limits."),
    _access("viewer", "users", "They can see what this host is."),
    _access("viewer", "groups", "They can see what this host is."),
    Setting("limits.connections", "connections", "number", "Connections in all.",
            "Each costs up to eight descriptors and some memory.", "connections", 1, 1 << 16, live=True),
    Setting("limits.connections_per_identity", "connections_per_identity", "number", "Connections of one identity.",
            _PER, "connections", 1, 1 << 16, live=True),
    Setting("limits.calls_per_identity", "calls_per_identity", "number", "Calls in flight of one identity, streams "
            "included.", _PER, "calls", 1, 1 << 16, live=True),
    Setting("limits.message_bytes", "message_bytes", "number", "Largest message that is received.",
            "Below 3 MiB memory uploads fail; each call may hold so much memory.", "bytes", 64 << 10, 64 << 20),
    Setting("limits.guests_per_identity", "guests_per_identity", "number", "Guests of one identity; admins have no "
            "limit.", _PER, "guests", 1, 1 << 16),
    Setting("limits.guest_memory_per_identity", "guest_memory_per_identity", "number", "Guest memory of one identity.",
            _PER, "bytes", 1 << 20),
    Setting("limits.vcpus_per_guest", "vcpus_per_guest", "number", "vCPUs of one guest.", _PER, "vCPUs", 1, 4096),
    Setting("limits.watches_per_identity", "watches_per_identity", "number", "Watch streams of one identity.",
            _PER, "streams", 1, 1 << 16),
    Setting("endorsements.certificate_table", "certificate_table", "path", "The certificate table that VMMs hand to "
            "guests.", "VMMs read it under a lock; on a file system without OFD locks it cannot be kept."),
    Setting("endorsements.table_wait_seconds", "table_wait_seconds", "number", "How long a change of the platform "
            "waits for readers of the table.", "Too long lets one hanging VMM hold up the platform.", "s", 0, 600),
    Setting("audit.file_bytes", "audit_file_bytes", "number", "Size at which an audit file is put aside.",
            "Records are lost when the last file goes.", "bytes", 4096),
    Setting("audit.files", "audit_files", "number", "Audit files kept.", "Records are lost when the last file goes.",
            "files", 1, 1000),
    Setting("journal.entries", "journal_entries", "number", "Request ids kept in all.",
            "A retry whose id was forgotten acts again.", "entries", 16, 1 << 20),
    Setting("journal.entries_per_identity", "journal_entries_per_identity", "number", "Request ids kept of one "
            "identity.", "A retry whose id was forgotten acts again.", "entries", 16, 1 << 20),
    Setting("journal.seconds", "journal_seconds", "number", "Age at which a request id is forgotten.",
            "A retry whose id was forgotten acts again.", "s", 60, 30 * 24 * 3600),
)  # fmt: skip
"""Every setting."""

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
    if out.simulator is None and not out.simulate:
        out = replace(out, simulator=simulator_of(out.sev_device))
    if out.certificate_table is None:
        assert out.state_dir is not None
        # A simulated host's certificates must never lie where VMMs of the real one look for theirs.
        real = uid == 0 and not out.simulate and out.simulator is None
        table = run / "certs.bin" if real else out.state_dir / "certs.bin"
        out = replace(out, certificate_table=table)
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
