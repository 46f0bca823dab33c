"""What the kernel tells about the process at the other end of a Unix socket.

Read at accept, once per connection (socket(7), unix(7); kernel net/core/sock.c):

- SO_DOMAIN first: on any other socket SO_PEERCRED answers pid 0 and uid -1 instead of failing;
- SO_PEERCRED: pid, uid and gid at the time of connect(2), three 32-bit integers;
- SO_PEERGROUPS: the supplementary groups at that time, 32-bit integers;
- SO_PEERPIDFD (Linux 6.5): a descriptor that pins the process, so that its number cannot come to mean another one.
  EINVAL, ESRCH and ENODATA say that the process is gone; ENOPROTOOPT says that the kernel is older, and is no failure.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct

from sev.errors import LimitReached, NotPermitted
from sev.records import mutable_record

SO_PEERGROUPS = 59
SO_PEERPIDFD = 77

OVERFLOW_UID = 65534
"""The uid of whoever has none here: a process of a user namespace that is not mapped into ours."""

NGROUPS_MAX = 65536
"""Most supplementary groups of a process (limits.h)."""

CGROUP_BYTES = 128 << 10
"""More than /proc/PID/cgroup can have: a path for each of at most 16 hierarchies."""

_CREDENTIALS = struct.Struct("=iII")
_SMALL_BYTES = 1024  # what socket.getsockopt takes at most


@mutable_record
class Peer:
    """The process that connected.

    Attributes:
        uid: User id.
        gid: Primary group id.
        pid: Process id.
        groups: Supplementary group ids.
        pidfd: Descriptor that pins the process; None where the kernel has none. Ours to close.
        told_unit: The unit, once it was asked for.
    """

    uid: int
    gid: int
    pid: int
    groups: tuple[int, ...] = ()
    pidfd: int | None = None
    told_unit: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Names in its certificate: a process of this host has none."""
        return ()

    @property
    def address(self) -> str:
        """Where it is: here."""
        return ""

    def alive(self) -> bool:
        """Whether the process still runs; True where the kernel cannot tell."""
        if self.pidfd is None:
            return True
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return not poll.poll(0)

    def unit(self) -> str:
        """The unit of the system's service manager that the process is in; empty if it cannot be told for sure.

        Looked up once: what a process was when it connected, it stays for its connection.
        """
        if self.told_unit is None:
            self.told_unit = self._unit()
        return self.told_unit

    def _unit(self) -> str:
        if self.pidfd is None:
            return ""
        try:
            with open(f"/proc/{self.pid}/cgroup", "rb") as file:
                lines = file.read(CGROUP_BYTES).decode("ascii", "replace").splitlines()
        except OSError:
            return ""
        # The number meant our process while it was read only if it still runs now.
        unified = next((line[3:] for line in lines if line.startswith("0::")), "")
        return unit_of(unified) if self.alive() else ""

    def close(self) -> None:
        """Gives the descriptor back."""
        if self.pidfd is not None:
            os.close(self.pidfd)
            self.pidfd = None


def unit_of(path: str) -> str:
    """The unit of the system's service manager that a control group (its path in the unified hierarchy) belongs to.

    That manager alone makes groups below slices; below a unit, whoever the unit was delegated to may make groups of any
    name. So the unit is the first part that is no slice: of `/user.slice/user-7.slice/user@7.service/a.slice/b.service`
    it is `user@7.service`, and no user can be in a unit of another name by naming his own the same (systemd.unit(5),
    "CGROUP_DELEGATION").
    """
    for part in path.split("/")[1:]:
        if not part.endswith(".slice"):
            # systemd puts "_" before names that the kernel has its own meaning for.
            return part.removeprefix("_")[:256] if part.endswith((".service", ".scope")) else ""
    return ""


def peer_of(connection: socket.socket) -> Peer:
    """The process at the other end.

    Raises:
        NotPermitted: It cannot be identified: no Unix socket, another PID or user namespace, or it is gone.
        LimitReached: No descriptor is left for it.
    """
    if connection.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN) != socket.AF_UNIX:
        raise NotPermitted("the connection is not one of a Unix socket: its peer has no kernel-told identity")
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, gid = _CREDENTIALS.unpack(raw)
    if pid <= 0:
        raise NotPermitted(
            "the caller is in another PID namespace: the kernel shows no process id",
            remedy="Call from the PID namespace of the daemon.",
        )
    if uid in (OVERFLOW_UID, 0xFFFFFFFF):
        raise NotPermitted(
            f"the caller's user is not mapped here (uid {uid})",
            remedy="Call as a user of this host; run the daemon without PrivateUsers=.",
        )
    return Peer(uid, gid, pid, _groups(connection), _pidfd(connection))


def uid_of(connection: socket.socket) -> int:
    """The user at the other end of a Unix socket, and nothing else about him. Raises OSError."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    uid: int = _CREDENTIALS.unpack(raw)[1]
    return uid


def _groups(connection: socket.socket) -> tuple[int, ...]:
    try:
        raw = connection.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, _SMALL_BYTES)
    except OSError as error:
        if error.errno == errno.ENOPROTOOPT:
            return ()
        if error.errno != errno.ERANGE:
            raise NotPermitted(f"the caller's groups cannot be read: {os.strerror(error.errno or 0)}") from None
        raw = _many_groups(connection)
    return struct.unpack(f"={len(raw) // 4}I", raw[: len(raw) // 4 * 4])


def _many_groups(connection: socket.socket) -> bytes:
    """More groups than socket.getsockopt has room for, by getsockopt(2) itself."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(4 * NGROUPS_MAX)
    size = ctypes.c_uint32(len(buffer))
    if libc.getsockopt(connection.fileno(), socket.SOL_SOCKET, SO_PEERGROUPS, buffer, ctypes.byref(size)):
        raise NotPermitted(f"the caller's groups cannot be read: {os.strerror(ctypes.get_errno())}")
    return buffer.raw[: size.value]


def _pidfd(connection: socket.socket) -> int | None:
    try:
        return connection.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD)
    except OSError as error:
        if error.errno == errno.ENOPROTOOPT:
            return None
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise LimitReached("no descriptor is left for another caller", errno=error.errno) from None
        raise NotPermitted("the caller is gone: nobody is left to answer") from None
