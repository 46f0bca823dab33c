"""Who may call what, through which socket: one table, made of what the methods declare and what the sockets are.

`python -m sevd.access_matrix > docs/access-matrix.md` writes it anew.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Iterator

from google.protobuf.descriptor import ServiceDescriptor

import sev.v1
from sev.records import record
from sevd.access.listeners import ADMIN, CLIENT, MONITOR, MTLS, Kind
from sevd.access.roles import Role
from sevd.api.rules import FOREIGN, LOCAL, methods_of

KINDS = (CLIENT, MONITOR, ADMIN, MTLS)
"""The sockets on which calls are served."""

NAMES = {CLIENT.name: "`sevd.sock`", MONITOR.name: "`monitor.sock`", ADMIN.name: "`admin.sock`", MTLS.name: "TLS"}
"""What the documentation calls them."""

_HEAD = """\
# Who may call what

<!-- Written by `python -m sevd.access_matrix`; a test compares. -->

Every method, and who gets through to it on each socket: **V** a viewer, **L** a launcher, **A** an admin, `-` nobody.
Whoever has no role is let in at no socket, and a method that is not listed is not served. The roles are those of the
[configuration](daemon.md#who-gets-which-role); a socket may lower them, and keep some out. The tests call every method
with every role, and with none, on every socket.

| socket | who is there is told by | lets in | role at most |
| --- | --- | --- | --- |
"""

_TAIL = """
Not in the table, because no calls are made there: `fd.sock` passes guests' memory to its owner, for launchers and
admins of this machine ([hosted guests](hosted-guests.md#memory-without-a-copy)), and never over TLS; the port of
metrics is read by whoever can reach it.

A role is not all: a guest is seen and used by its owner and by admins alone, and what cannot be undone has to be
confirmed (`confirm`, `--yes`).
"""


@record
class Row:
    """One method.

    Attributes:
        path: Its full path.
        service: Its service, without the package if that is ours.
        name: Its own name.
        role: The role that it needs; None: whoever was let in.
        destructive: It cannot be undone.
    """

    path: str
    service: str
    name: str
    role: Role | None
    destructive: bool = False

    @property
    def local(self) -> bool:
        """Whether callers from other machines never get it."""
        return self.path in LOCAL


def services() -> list[ServiceDescriptor]:
    """All services of the API, by name."""
    found: dict[str, ServiceDescriptor] = {}
    for module in pkgutil.iter_modules(sev.v1.__path__):
        if module.name.endswith("_pb2"):
            found.update(importlib.import_module(f"sev.v1.{module.name}").DESCRIPTOR.services_by_name)
    return [found[name] for name in sorted(found)]


def rows() -> list[Row]:
    """All methods, ours first."""
    ours = [
        _row(one.path, one.name, one.role, destructive=one.destructive)
        for service in services()
        for one in methods_of([service])
    ]
    return ours + [_row(path, path[1:], role) for path, role in FOREIGN.items()]


def _row(path: str, name: str, role: Role | None, *, destructive: bool = False) -> Row:
    service, _, method = name.partition("/")
    return Row(path, service, method, role, destructive)


def granted(role: Role | None, kind: Kind) -> Role | None:
    """What a role is worth on a socket; None: it is not let in."""
    return None if role is None or role < kind.floor else min(role, kind.ceiling)


def may(role: Role | None, kind: Kind, row: Row) -> bool:
    """Whether somebody of this role gets through to a method on a socket."""
    there = granted(role, kind)
    if there is None or (row.local and kind.remote):
        return False
    return row.role is None or there >= row.role


def text() -> str:
    """The documentation's page, Markdown."""
    return _HEAD + "".join(_sockets()) + "".join(_tables()) + _TAIL


def _sockets() -> Iterator[str]:
    for kind in KINDS:
        told = "its certificate (TLS 1.3)" if kind.remote else "the kernel"
        yield f"| {NAMES[kind.name]} | {told} | {_letters(kind)} | {kind.ceiling.text} |\n"


def _letters(kind: Kind, row: Row | None = None) -> str:
    letters = [
        role.text[0].upper()
        for role in Role
        if (granted(role, kind) is not None if row is None else may(role, kind, row))
    ]
    return " ".join(letters) or "`-`"


def _tables() -> Iterator[str]:
    service = ""
    for row in rows():
        if row.service != service:
            service = row.service
            columns = " | ".join(NAMES[kind.name] for kind in KINDS)
            yield f"\n## {service}\n\n| method | needs | {columns} |\n| --- | --- |{' --- |' * len(KINDS)}\n"
        needs = "any role" if row.role is None else row.role.text
        needs += ", confirmation" if row.destructive else ""
        yield f"| `{row.name}` | {needs} | {' | '.join(_letters(kind, row) for kind in KINDS)} |\n"


if __name__ == "__main__":
    sys.stdout.write(text())
