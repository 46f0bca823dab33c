"""Asks everything that can be asked; what cannot be is said, and never the end of it."""

from __future__ import annotations

import os
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING

from sev.errors import SevError
from sev.records import mutable_record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sev.audit_trail import AuditRecord
    from sev.client import Host
    from sev.doctor.redact import Redactor
    from sev.event_model import Event

LOG_LINES = 300
LAST_EVENTS = 100
LOG_SECONDS = 10.0


@mutable_record
class Section:
    """One part of what was gathered.

    Attributes:
        name: Its file's name, without the ending.
        what: What it holds, in a few words.
        content: The document; what could not be had is {"not_seen": why}.
    """

    name: str
    what: str
    content: object

    @property
    def missing(self) -> str:
        """Why it could not be had; empty if it could."""
        found = self.content.get("not_seen") if isinstance(self.content, dict) else None
        return str(found or "")


def gather(connect: Callable[[], Host], redactor: Redactor, *, unit: str = "sevd.service") -> list[Section]:
    """All sections, ready to leave the machine.

    Args:
        connect: Connects to the daemon. Raises SevError where there is none.
        redactor: Takes secrets and names out.
        unit: The daemon's unit, whose log is read.
    """
    from sev.doctor import configuration as settings
    from sev.doctor import machine

    _learn_machine(redactor)
    path = settings.find(os.geteuid())
    sections = [
        _section("versions", "versions of programs and of the system", machine.versions),
        _section("host-check", "this machine, check by check (sev host check)", _check),
        _section("kernel", "kernel, modules, device nodes, kernel log lines about SEV", machine.kernel),
        *_of_daemon(connect, redactor),
        _section("log", "the end of the daemon's log, from the system's journal", lambda: _log(unit)),
    ]
    if path is not None:
        what = "the daemon's configuration, what might be secret or personal left out"
        sections.append(_section("configuration", what, lambda: settings.configuration(path, redactor)))
    told = sections[-1].content
    folder = _state_folder(told.get("daemon.state_dir") if isinstance(told, dict) else None)
    if folder is not None:
        what = "names, sizes and modes of the daemon's state files, without what is in them"
        sections.append(_section("state", what, lambda: machine.state(folder)))
    for one in sections:  # at the end, when every name is known
        one.content = redactor.document(one.content)
    return sections


def _section(name: str, what: str, make: Callable[[], object]) -> Section:
    try:
        return Section(name, what, make())
    except SevError as error:
        return Section(name, what, {"not_seen": error.message})
    except OSError as error:
        return Section(name, what, {"not_seen": error.strerror or str(error)})


def _check() -> object:
    from sev.host.linux import LinuxReader
    from sev.host.verdict import check_host

    return check_host(LinuxReader(), "").document()


def _of_daemon(connect: Callable[[], Host], redactor: Redactor) -> list[Section]:
    """What the daemon tells."""
    sections: list[Section] = []
    try:
        host = connect()
    except SevError as error:
        return [Section("host", "the daemon's host (sev host show)", {"not_seen": error.message})]
    with host:

        def add(name: str, what: str, make: Callable[[], object]) -> None:
            sections.append(_section(name, what, make))

        add("host", "the daemon's host (sev host show)", lambda: host.host().document())
        if sections[0].missing:
            return sections
        add("daemon-check", "the host as the daemon sees it, check by check", lambda: host.check_host().document())
        add("guests", "guests by type and state", lambda: _guests(host, redactor))
        add("events", "what happened lately, as far as this user may see", lambda: _events(host, redactor))
        add("metrics", "what the daemon counts", lambda: host.metrics().document())
        add("audit", "audit records counted by method, result and reason", lambda: _audit(host, redactor))
    return sections


def _guests(host: Host, redactor: Redactor) -> object:
    guests = host.guests()
    redactor.learn("guest", (guest.guest_id for guest in guests))
    redactor.learn("label", (guest.label for guest in guests))
    redactor.learn("caller", (guest.owner for guest in guests))
    return dict(Counter(f"{guest.type} {guest.state}" for guest in guests))


def _events(host: Host, redactor: Redactor) -> object:
    events: list[Event] = list(host.events(recent=512, only_recent=True))
    redactor.learn("guest", (event.guest_id for event in events))
    return {
        "by_kind": dict(Counter(event.kind for event in events)),
        "last": [event.document() for event in events[-LAST_EVENTS:]],
    }


def _audit(host: Host, redactor: Redactor) -> object:
    from sev.audit_trail import DEFAULT_FILE, open_files, records
    from sev.errors import NotPermitted

    try:
        return audit_counts(host.audit(), redactor)
    except NotPermitted:
        if os.geteuid() != 0:
            raise
        return audit_counts(records(open_files(DEFAULT_FILE)), redactor)


def audit_counts(trail: Iterable[AuditRecord], redactor: Redactor) -> dict[str, object]:
    """A trail as numbers, with whether its chain is whole."""
    from sev.audit_trail import verify

    counts: Counter[str] = Counter()
    callers: Counter[str] = Counter()

    def counted() -> Iterable[AuditRecord]:
        for one in trail:
            who = one.facts.get("caller")
            names = who.get("names") if isinstance(who, dict) else None
            redactor.learn("caller", {one.caller, *(str(name) for name in (names if isinstance(names, list) else ()))})
            redactor.learn("guest", [str(one.facts.get("target") or "")])
            counts[" ".join(filter(None, (one.method, one.result, str(one.facts.get("reason") or ""))))] += 1
            callers[one.caller] += 1
            yield one

    found = verify(counted())
    out: dict[str, object] = {
        "records": found.count,
        "intact": found.intact,
        "by_method": dict(counts.most_common(500)),
    }
    if redactor.names:
        out["by_caller"] = dict(callers.most_common(100))
    else:
        out["callers"] = len(callers)
    return out


def _log(unit: str) -> object:
    from sev.doctor.machine import daemon_log
    from sev.errors import NotFound

    found = daemon_log(unit, LOG_LINES, LOG_SECONDS)
    if not found:
        raise NotFound(f"the journal has nothing of {unit} for this user")
    return found


def _learn_machine(redactor: Redactor) -> None:
    """Names of this machine and of who runs this."""
    import pwd

    node = os.uname().nodename
    redactor.learn("machine", {node, node.partition(".")[0]})
    users = [os.environ.get(name, "") for name in ("USER", "LOGNAME", "SUDO_USER")]
    with suppress(KeyError):
        users.append(pwd.getpwuid(os.getuid()).pw_name)
    redactor.learn("user", users)


def _state_folder(configured: object) -> str | None:
    """Where the configuration says that state is kept; else where a daemon of this user, or the system's, keeps it."""
    home = os.environ.get("XDG_STATE_HOME") or os.path.join(os.environ.get("HOME") or "/nonexistent", ".local/state")
    for path in (configured, "/var/lib/sevd", os.path.join(home, "sevd")):
        if isinstance(path, str) and os.access(path, os.R_OK | os.X_OK):
            return path
    return None
