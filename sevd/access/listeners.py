"""The sockets that callers connect to: given by systemd, or bound here.

gRPC would replace a live socket of another daemon without a word and remove a newer daemon's path when it stops, so it
never gets to own a public path. Here a socket is bound under a temporary name, gets its mode and group, listens, and
only then is renamed to its path: nobody can connect before it is as it should be, and a stale path is replaced without
a gap. A path where somebody answers is refused.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import socket
import stat
from collections.abc import Mapping
from pathlib import Path

from sev.errors import UsageError
from sev.records import mutable_record, record
from sevd.access.roles import Role

MAX_PATH_BYTES = 107
"""Longest path of a Unix socket (unix(7): 108 bytes with the terminating zero)."""

BACKLOG = 4096
"""Connections that may wait for accept; the kernel cuts it to net.core.somaxconn."""

REMOTE_BACKLOG = 128
"""The same of strangers: a flood of them is the kernel's to drop, and not the daemon's to serve."""

FIRST_FD = 3
"""The first descriptor that systemd passes (sd_listen_fds(3))."""


@record
class Kind:
    """What a socket is for.

    Attributes:
        name: Word for logs and audit records; also the name of systemd's descriptor (FileDescriptorName=).
        floor: Callers below this role are refused on it.
        ceiling: Callers have at most this role on it.
        group_mode: File mode if it belongs to a group.
        own_mode: File mode if it does not.
        type: Type of its sockets.
        families: Address families that it may be passed in.
        remote: Its callers are known by their certificates (TLS), not by the kernel.
    """

    name: str
    floor: Role
    ceiling: Role
    group_mode: int
    own_mode: int = 0o600
    type: int = socket.SOCK_STREAM
    families: tuple[int, ...] = (socket.AF_UNIX,)
    remote: bool = False


CLIENT = Kind("sevd", Role.VIEWER, Role.ADMIN, 0o660)
MONITOR = Kind("monitor", Role.VIEWER, Role.VIEWER, 0o660)
ADMIN = Kind("admin", Role.ADMIN, Role.ADMIN, 0o600)
FD = Kind("fd", Role.LAUNCHER, Role.ADMIN, 0o660, type=socket.SOCK_SEQPACKET)
METRICS = Kind("metrics", Role.VIEWER, Role.VIEWER, 0o660, families=(socket.AF_UNIX, socket.AF_INET, socket.AF_INET6))
MTLS = Kind("mtls", Role.VIEWER, Role.ADMIN, 0o600, families=(socket.AF_INET, socket.AF_INET6), remote=True)
KINDS = {kind.name: kind for kind in (CLIENT, MONITOR, ADMIN, FD, METRICS, MTLS)}


@mutable_record
class Listener:
    """A listening socket and what it is for.

    Attributes:
        socket: Non-blocking, listening.
        kind: What it is for.
        path: Where it was bound; None if systemd owns it.
        inode: Device and inode of the path when it was bound.
    """

    socket: socket.socket
    kind: Kind
    path: Path | None = None
    inode: tuple[int, int] | None = None

    def where(self) -> str:
        """Its path or its address, for people."""
        if self.path is not None:
            return str(self.path)
        if self.kind.remote:
            host, port, *_ = self.socket.getsockname()
            return f"{host}:{port}"
        return "systemd"

    def close(self) -> None:
        """Closes the socket; removes the path if it is still this socket's own."""
        self.socket.close()
        if self.path is None or self.inode is None:
            return
        try:
            found = os.lstat(self.path)
            if (found.st_dev, found.st_ino) == self.inode:
                os.unlink(self.path)
        except OSError:
            pass  # somebody else removed it, or its directory


def bind(path: Path, kind: Kind, *, group: int | None = None) -> Listener:
    """Binds a path.

    Args:
        path: Where; its directory must exist.
        kind: What it is for.
        group: The gid that the socket belongs to; None: the daemon's own, and nobody else may connect.

    Raises:
        UsageError: The path is too long, taken by something that is no socket or by a daemon that answers, or its
            directory is missing or may not be written.
    """
    path = Path(os.path.abspath(path))
    if len(os.fsencode(path)) > MAX_PATH_BYTES:
        raise UsageError(
            f"{path}: {len(os.fsencode(path))} bytes; a socket's path has at most {MAX_PATH_BYTES}",
            field="socket",
            remedy="Use a shorter path.",
        )
    refuse_if_taken(path, kind.type)
    listener = socket.socket(socket.AF_UNIX, kind.type | socket.SOCK_NONBLOCK)
    temporary = path.with_name(f".{secrets.token_hex(6)}")
    try:
        directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # By way of the directory's descriptor: the temporary name may be longer than the final one.
            umask = os.umask(0o177)
            try:
                listener.bind(f"/proc/self/fd/{directory}/{temporary.name}")
            finally:
                os.umask(umask)
        finally:
            os.close(directory)
        if group is not None:
            os.chown(temporary, -1, group)
            os.chmod(temporary, kind.group_mode)
        else:
            os.chmod(temporary, kind.own_mode)
        listener.listen(BACKLOG)
        found = os.lstat(temporary)
        os.rename(temporary, path)
    except OSError as error:
        listener.close()
        _remove(temporary)
        raise UsageError(
            f"{path}: {os.strerror(error.errno or 0)}", field="socket", remedy="Name another path with --socket."
        ) from None
    return Listener(listener, kind, path, (found.st_dev, found.st_ino))


def refuse_if_taken(path: Path, kind: int = socket.SOCK_STREAM) -> None:
    """Returns if a path is free or stale.

    Raises:
        UsageError: Something else is there, or a daemon answers.
    """
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise UsageError(f"{path}: {os.strerror(error.errno or 0)}", field="socket") from None
    if not stat.S_ISSOCK(mode):
        raise UsageError(f"{path} is there and is no socket", field="socket", remedy="Name another path.")
    with socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK) as probe:
        result = probe.connect_ex(os.fspath(path))
    if result in (errno.ECONNREFUSED, errno.ENOENT):
        return
    if result in (
        0,
        errno.EAGAIN,
        errno.EPROTOTYPE,
    ):  # EAGAIN: somebody listens and the queue is full; EPROTOTYPE: in another way
        raise UsageError(
            f"{path}: another daemon answers there",
            field="socket",
            remedy="Stop it, or name another path with --socket.",
        )
    raise UsageError(f"{path}: {os.strerror(result)}", field="socket", remedy="Name another path with --socket.")


def passed(environ: Mapping[str, str], *, first: int = FIRST_FD) -> list[Listener]:
    """The sockets that systemd passed, by their names (LISTEN_FDS, LISTEN_FDNAMES); none if none were.

    The order of descriptors means nothing: it changes between boots. A name is that of a kind ("sevd", "monitor",
    "admin", "fd"), with or without ".socket".

    Raises:
        UsageError: A name is not known, the same kind comes twice, or a descriptor is no listening Unix socket.
    """
    if environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    count = environ.get("LISTEN_FDS", "")
    if not (count.isascii() and count.isdigit() and len(count) < 5):
        raise UsageError(f"LISTEN_FDS is {count[:32]!r}: expected a number", field="LISTEN_FDS")
    names = environ.get("LISTEN_FDNAMES", "").split(":")
    out: list[Listener] = []
    try:
        for index in range(int(count)):
            name = names[index] if index < len(names) else ""
            kind = KINDS.get(name.removesuffix(".socket"))
            if kind is None:
                raise UsageError(
                    f"systemd passed a socket named {name!r}: expected {', '.join(KINDS)}",
                    field="LISTEN_FDNAMES",
                    remedy="Set FileDescriptorName= in the socket unit.",
                )
            if any(listener.kind is kind for listener in out):
                raise UsageError(f"systemd passed two sockets named {name!r}", field="LISTEN_FDNAMES")
            out.append(Listener(_take(first + index, name, kind), kind))
    except UsageError:
        for listener in out:
            listener.close()
        raise
    return out


def _take(descriptor: int, name: str, kind: Kind) -> socket.socket:
    try:
        taken = socket.socket(fileno=descriptor)
    except OSError as error:
        raise UsageError(
            f"descriptor {descriptor} ({name}) is no socket: {os.strerror(error.errno or 0)}", field="LISTEN_FDS"
        ) from None
    listening = taken.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if taken.family not in kind.families or taken.type != kind.type or not listening:
        taken.detach()
        word = "stream" if kind.type == socket.SOCK_STREAM else "packet"
        where = "Unix " if kind.families == (socket.AF_UNIX,) else "TCP " if kind.remote else ""
        raise UsageError(f"descriptor {descriptor} ({name}) is no listening {where}{word} socket", field="LISTEN_FDS")
    taken.setblocking(False)
    os.set_inheritable(descriptor, False)
    return taken


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)
