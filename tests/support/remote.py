"""A server of the daemon's own making that remote callers reach, over real TLS, and channels to it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from sevd.access import tls_files
from sevd.access.identities import Identity
from sevd.access.listeners import Listener
from sevd.access.remote import Remote, RemoteSettings
from sevd.access.roles import Role
from sevd.api.server import Server
from sevd.audit import Audit
from tests.support.authority import Issued, key_pem
from tests.support.remote_daemon import TRUST
from tests.support.serving import serving
from tests.support.tls import HOST, Setup, listen, port_of


def uri(role: Role | None) -> str:
    """The SPIFFE id of a caller of this role."""
    return TRUST + (role.text if role is not None else "nobody")


def identities(roles: Mapping[str, Role | None]) -> dict[str, Identity]:
    """Identities by "uri:…" and "dns:…"."""
    parts = {match: match.partition(":") for match in roles}
    return {match: Identity(parts[match][0], parts[match][2], role) for match, role in roles.items()}


EVERY_ROLE = identities({f"uri:{uri(role)}": role for role in Role})
"""An identity for each role, named after it."""


class Remotely:
    """A server that is reached over TLS.

    Attributes:
        server: The server.
        setup: The listener's files and their authorities.
        port: Where it listens.
        told: Events that it published, (kind, sentence).
    """

    def __init__(self, server: Server, setup: Setup, port: int, told: list[tuple[str, str]]) -> None:
        self.server = server
        self.setup = setup
        self.port = port
        self.told = told

    @property
    def remote(self) -> Remote:
        """Its remote side."""
        assert self.server.gate.remote is not None
        return self.server.gate.remote

    def channel(self, one: Issued | None) -> grpc.aio.Channel:
        """A connection with a certificate; None: without one."""
        return grpc.aio.secure_channel(
            f"dns:{HOST}:{self.port}",
            channel_credentials(self.setup, one),
            options=[("grpc.use_local_subchannel_pool", 1), ("grpc.initial_reconnect_backoff_ms", 50)],
        )

    def of(self, role: Role | None) -> Issued:
        """A certificate of a caller of this role."""
        return self.setup.clients.issue("caller", uris=[uri(role)])

    def renewed(self, **more: Any) -> RemoteSettings:
        """Its settings, changed."""
        return RemoteSettings(more.get("files", self.setup.files), more.get("handshake_seconds", 5.0), 64)

    def load(self) -> tls_files.Credentials:
        """What its files hold now."""
        return tls_files.load(self.setup.files)


def channel_credentials(setup: Setup, one: Issued | None) -> grpc.ChannelCredentials:
    """gRPC's credentials of a client."""
    if one is None:
        return grpc.ssl_channel_credentials(setup.servers.pem)
    return grpc.ssl_channel_credentials(setup.servers.pem, key_pem(one.key), one.pem)


@contextlib.asynccontextmanager
async def serving_remotely(
    folder: Path, *, names: Mapping[str, Identity] | None = None, handshake_seconds: float = 5.0, **more: Any
) -> AsyncIterator[Remotely]:
    """A server with a TCP listener; without `names` a caller of each role is known."""
    setup = Setup(folder / "tls")
    told: list[tuple[str, str]] = []
    port = 0

    def listener(server: Server, audit: Audit) -> Listener:
        nonlocal port
        settings = RemoteSettings(setup.files, handshake_seconds, 64)
        loaded = tls_files.load(setup.files)
        server.gate.remote = Remote(
            settings, loaded, server.gate, audit, lambda kind, message: told.append((kind, message))
        )
        out = listen()
        port = port_of(out)
        return out

    async with serving(folder, names=EVERY_ROLE if names is None else names, more=listener, **more) as (server, _):
        yield Remotely(server, setup, port, told)


def records(folder: Path) -> list[dict[str, Any]]:
    """The audit trail, without clients that hang up while they dial again."""
    found = [json.loads(line) for line in (folder / "audit.jsonl").read_text().splitlines()]
    return [one for one in found if one.get("reason") != "HANDSHAKE_LOST"]
