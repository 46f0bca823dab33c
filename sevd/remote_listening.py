"""Callers from other machines: what the configuration says of them, checked before anything listens or is reloaded.

Loaded where there is such a listener alone; a daemon without one never loads TLS.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING

from sev.errors import UsageError
from sev.records import record
from sevd.access import tls_files
from sevd.access.listeners import MTLS, REMOTE_BACKLOG, Listener
from sevd.access.remote import Remote, RemoteSettings

if TYPE_CHECKING:
    from sevd.access.gate import Gate
    from sevd.access.policy import AccessPolicy
    from sevd.access.tls_files import Credentials
    from sevd.events import Publisher
    from sevd.settings import Settings


@record
class Prepared:
    """What remote callers are served with, checked.

    Attributes:
        settings: Of the configuration.
        credentials: What its files hold.
    """

    settings: RemoteSettings
    credentials: Credentials

    def serve(self, gate: Gate, events: Publisher) -> None:
        """Lets a gate take remote callers."""
        gate.remote = Remote(self.settings, self.credentials, gate, gate.audit, events.publish)

    def replace(self, gate: Gate) -> None:
        """Has a gate that takes them take other settings and files."""
        if gate.remote is not None:
            gate.remote.reload(self.settings, self.credentials)


def prepare(
    settings: Settings, policy: AccessPolicy, environ: Mapping[str, str], running: Remote | None = None
) -> Prepared:
    """Reads and checks everything that remote callers need.

    Args:
        settings: The configuration.
        policy: The policy that it gives.
        environ: The environment, for systemd's credentials.
        running: What serves remote callers already. Files that are too old replace none of its, and are taken
            otherwise: a change of the configuration must not wait for a certificate that has run out long ago.

    Raises:
        UsageError: Nobody is allowed, a file is not named, or cannot be used.
    """
    if not policy.admits_remote:
        raise UsageError(
            "remote callers are to be served, and none is allowed",
            field="identity",
            remedy='Add an [[identity]] table whose match begins with "uri:" or "dns:" for each of them, or disable '
            "sevd-mtls.socket and remote.listen.",
        )
    paths = {
        "certificate": settings.remote_certificate,
        "key": settings.remote_key,
        "client_ca": settings.remote_client_ca,
        "crl": settings.remote_crl,
    }
    files = tls_files.files_of(paths, environ)
    credentials = tls_files.load(files, stale=running is None or running.reads(files))
    wanted = RemoteSettings(files, settings.remote_handshake_seconds, settings.remote_handshakes)
    return Prepared(wanted, credentials)


def listen(address: str) -> Listener:
    """A listening socket on "HOST:PORT"; a host that is empty, or "*", means every address of this machine.

    Raises:
        UsageError: It is no such address, or cannot be bound.
    """
    host, colon, number = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not (colon and number.isascii() and number.isdigit() and 0 < int(number) < 65536):
        raise _bad(address, "expected HOST:PORT, such as 192.0.2.7:7443 or [2001:db8::7]:7443")
    try:
        if host in ("", "*"):
            family, where = (socket.AF_INET6, "::") if socket.has_dualstack_ipv6() else (socket.AF_INET, "")
            listener = socket.create_server(
                (where, int(number)), family=family, backlog=REMOTE_BACKLOG, dualstack_ipv6=family == socket.AF_INET6
            )
        else:
            found = socket.getaddrinfo(host, int(number), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            listener = socket.create_server(found[0][4][:2], family=found[0][0], backlog=REMOTE_BACKLOG)
    except OSError as error:
        raise _bad(address, os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)) from None
    listener.setblocking(False)
    return Listener(listener, MTLS)


def _bad(address: str, why: str) -> UsageError:
    return UsageError(f"remote.listen is {address!r:.120}: {why}", field="remote.listen")
