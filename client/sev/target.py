"""Which daemon a client talks to: an explicit target, `$SEVD_SOCKET`, the system's socket, or the user's own.

A target is a path, or a gRPC name: `unix:PATH`, `unix-abstract:NAME`, `dns:HOST:PORT`. A Unix socket path has at most
107 bytes (sun_path of unix(7)); that, and every other mistake in a name, is found before anything is dialled.
"""

from __future__ import annotations

import errno
import os

from sev.errors import NotPermitted, Unreachable, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sev.errors import SevError

MAX_PATH = 107
"""Bytes of a Unix socket path, without the terminating zero."""

PROBE_SECONDS = 0.2
"""How long a probe waits for the daemon's first byte."""

SYSTEM_DIRECTORY = "/run/sevd"
"""Where the installed service has its sockets."""


class ClientFiles:
    """Paths of a client's PEM files for TLS: its certificate, its key, and the authorities that it trusts."""

    __slots__ = ("ca", "certificate", "key")

    def __init__(self, certificate: str, key: str, ca: str) -> None:
        self.certificate = certificate
        self.key = key
        self.ca = ca


class Target:
    """One daemon to dial.

    Attributes:
        address: The name that gRPC takes.
        path: Path of the Unix socket; None for abstract and remote targets.
        why: Where the choice came from, in words: for `-v` and for errors.
        remote: True if the connection leaves this machine and needs TLS.
        files: The client's certificate, key and authorities for that; None before they are known.
    """

    __slots__ = ("address", "files", "path", "remote", "why")

    def __init__(self, address: str, path: str | None, why: str, *, remote: bool = False) -> None:
        self.address = address
        self.path = path
        self.why = why
        self.remote = remote
        self.files: ClientFiles | None = None

    def __repr__(self) -> str:
        return f"<Target {self.address} ({self.why})>"

    def probe(self, seconds: float = PROBE_SECONDS) -> int:
        """Connects once and hangs up; answers 0 or an errno. Not for remote targets (0).

        Args:
            seconds: How long to wait for the daemon to speak, or to hang up.

        ECONNABORTED: the connection was taken and closed at once, as a daemon does that does not admit this caller.
        """
        if self.path is None:
            return 0
        import socket

        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as plain:
            plain.setblocking(False)
            number = plain.connect_ex(self.path)
            if number:
                return number
            plain.settimeout(seconds)
            try:
                # A gRPC server speaks first: silence means that it is busy, an end that it will not talk to us.
                return 0 if plain.recv(1) else errno.ECONNABORTED
            except (TimeoutError, BlockingIOError):
                return 0
            except OSError:
                return errno.ECONNABORTED

    def tls_refusal(self) -> SevError | None:
        """Why a remote daemon does not let this client in, heard from a connection of our own; None if it might yet."""
        if self.files is None:
            return None
        from sev.tls_probe import refusal

        return refusal(self.address, self.files)

    def refusal(self, number: int) -> Unreachable | NotPermitted | None:
        """The error that an errno of `probe` means for good; None if waiting may help (refused, backlog full)."""
        if number in (errno.EACCES, errno.EPERM):
            return NotPermitted(
                f"{self.path}: permission denied",
                errno=number,
                field="socket",
                remedy="Ask for membership of the group that the socket belongs to (usually sev), or run as root.",
            )
        if number in (errno.ENOENT, errno.ENOTDIR):
            return Unreachable(f"{self.path}: there is no such socket ({self.why})", errno=number, field="socket")
        if number == errno.ECONNREFUSED and self.path is not None and not _is_socket(self.path):
            return Unreachable(f"{self.path}: is not a socket ({self.why})", errno=errno.ENOTSOCK, field="socket")
        return None


def _is_socket(path: str) -> bool:
    import stat

    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return True


def parse(text: str, why: str) -> Target:
    """The target that a path or a gRPC name means.

    Raises:
        UsageError: It is empty, a path too long for a Unix socket, or of an unknown form.
    """
    name, colon, rest = text.partition(":")
    if not text.strip():
        raise UsageError(
            "the socket is an empty word", field="socket", remedy="Give a path, unix:PATH or dns:HOST:PORT."
        )
    if "\0" in text:
        raise UsageError("the socket's name holds a zero byte", field="socket")
    if colon and name == "unix":
        return _path(rest[2:] if rest.startswith("///") else rest, why)
    if colon and name == "unix-abstract":
        return Target(text, None, why)
    if colon and name in ("dns", "ipv4", "ipv6"):
        if not rest.strip("/") or rest.rpartition(":")[2].strip("]") == "":
            raise UsageError(f"{text}: expected {name}:HOST:PORT", field="socket")
        return Target(text, None, why, remote=True)
    if colon and "/" not in text and rest.isdigit():
        return Target(f"dns:{text}", None, why, remote=True)
    if "://" in text:
        raise UsageError(
            f"{text}: {name}:// is no form of a target",
            field="socket",
            remedy="Give a path, unix:PATH or dns:HOST:PORT.",
        )
    return _path(text, why)


def endpoint(address: str) -> tuple[str, int]:
    """Host and port of a remote target.

    Raises:
        UsageError: There is no port in it.
    """
    _, _, rest = address.partition(":")
    host, colon, port = rest.rpartition("/")[2].rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise UsageError(f"{address}: expected dns:HOST:PORT", field="socket")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _path(path: str, why: str) -> Target:
    size = len(os.fsencode(path))
    if not size:
        raise UsageError("the path of the socket is empty", field="socket")
    if size > MAX_PATH:
        raise UsageError(
            f"{path[:40]}…: a socket path of {size} bytes; at most {MAX_PATH} are possible",
            field="socket",
            remedy="Use a shorter path, for example through a symbolic link to its directory.",
        )
    return Target(f"unix:{path}", path, why)


def user_directory(environ: Mapping[str, str], uid: int) -> str:
    """The directory in which a user's own daemon has its socket."""
    runtime = environ.get("XDG_RUNTIME_DIR")
    return os.path.join(runtime or f"/run/user/{uid}", "sevd")


def candidates(environ: Mapping[str, str], uid: int) -> list[tuple[str, str]]:
    """The sockets looked for without an explicit target, best first: (path, why)."""
    system = "admin.sock" if uid == 0 else "sevd.sock"
    return [
        (os.path.join(SYSTEM_DIRECTORY, system), "the system's socket"),
        (os.path.join(user_directory(environ, uid), "sevd.sock"), "your own socket"),
    ]


def choose(
    text: str | None,
    environ: Mapping[str, str] | None = None,
    uid: int | None = None,
    exists: Callable[[str], bool] = os.path.lexists,
) -> Target:
    """The daemon to dial: `text` if given, else `$SEVD_SOCKET`, else the system's socket, else the user's own.

    Raises:
        UsageError: The name given is malformed.
        Unreachable: None was given and no socket is there.
    """
    environ = os.environ if environ is None else environ
    uid = os.geteuid() if uid is None else uid
    if text is not None:
        return parse(text, "as asked for")
    if environ.get("SEVD_SOCKET"):
        return parse(environ["SEVD_SOCKET"], "$SEVD_SOCKET")
    looked = candidates(environ, uid)
    for path, why in looked:
        if exists(path):
            return _path(path, why)
    raise Unreachable(
        "no daemon is running: there is neither " + " nor ".join(path for path, _ in looked),
        field="socket",
        remedy="Start it (systemctl start sevd), name its socket with --socket, or try: sev demo, "
        "or a simulated host: sevd --simulate.",
    )
