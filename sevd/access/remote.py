"""The remote side of the gate: mutual TLS 1.3, and callers who are known by the names in their certificates.

A connection passes the handshake first, then the policy, then the limits of everybody. What it was admitted by may
change while it is open: another policy, other authorities, another revocation list, the end of its certificate. Then
it is judged again, and closed if it would not be admitted any more.

Certificates, key, authorities and revocation lists are read again when they have changed: with a reload, with the next
handshake, and every few seconds. Files that are no good change nothing, and say so.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Protocol

from sev.errors import MalformedInput, SevError, UsageError
from sev.records import record
from sevd.access import client_certificate, tls_files
from sevd.access.handshakes import Handshake, Handshakes, watched
from sevd.access.refusal import RemoteRefused
from sevd.access.remote_peer import RemotePeer, address_text
from sevd.access.remote_refusals import RemoteRefusals
from sevd.access.tls_socket import TlsSocket

if TYPE_CHECKING:
    from sevd.access.gate import Connection
    from sevd.access.identity import Caller
    from sevd.access.listeners import Kind, Listener
    from sevd.access.policy import AccessPolicy
    from sevd.access.tls_files import Credentials, TlsFiles
    from sevd.audit import Audit

LOOK_SECONDS = 5.0
"""How often files are looked at, and certificates that have ended, when nobody connects."""

KEEPALIVE = ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 15), (socket.TCP_KEEPCNT, 4))
"""A client whose machine is gone is noticed after two minutes."""

log = logging.getLogger(__name__)


@record
class RemoteSettings:
    """What the configuration says of remote callers.

    Attributes:
        files: Certificates and key.
        handshake_seconds: How long a handshake may take.
        handshakes: How many may be under way.
    """

    files: TlsFiles
    handshake_seconds: float
    handshakes: int


class Gate(Protocol):
    """What is needed of `sevd.access.gate.Gate`."""

    @property
    def policy(self) -> AccessPolicy:
        """The policy that holds now."""

    def enter(self, listener: Listener, client: TlsSocket, peer: RemotePeer, caller: Caller) -> Connection:
        """Admits a connection within the limits, and takes it over. Raises SevError, OSError."""

    def judged(self, connection: Connection, caller: Caller | None) -> None:
        """An open connection has another caller now; None: it is closed."""

    def remote_connections(self) -> list[Connection]:
        """Those that are open over TLS, now."""


class Remote:
    """Remote callers of one daemon. On one event loop."""

    def __init__(
        self,
        settings: RemoteSettings,
        credentials: Credentials,
        gate: Gate,
        audit: Audit,
        tell: Callable[[str, str], object],
    ) -> None:
        """
        Args:
            settings: What the configuration says.
            credentials: What its files hold.
            gate: Where connections are admitted.
            audit: Where refusals are recorded.
            tell: Publishes an event: kind and sentence.
        """
        self._settings = settings
        self._gate = gate
        self._tell = tell
        self._loop = asyncio.get_running_loop()
        self.handshakes = Handshakes(
            self._context, self._shaken, self._failed, seconds=settings.handshake_seconds, most=settings.handshakes
        )
        """Those under way."""
        self._refusals = RemoteRefusals(audit)
        self._warned: set[str] = set()
        self._take(credentials)
        self._renewing: asyncio.Task[None] | None = None
        self._looking: asyncio.Task[None] | None = self._loop.create_task(self._look())

    def begin(self, listener: Listener, client: socket.socket, address: object) -> None:
        """Takes a connection over that was just accepted."""
        self.handshakes.begin(listener, client, address_text(address))

    def reads(self, files: TlsFiles) -> bool:
        """Whether these are the files that it has read, and they have not changed since."""
        return files == self._settings.files and files.stamp() == self._stamp

    def reload(self, settings: RemoteSettings, credentials: Credentials) -> None:
        """Takes other settings and files."""
        self._settings = settings
        self.handshakes.seconds = settings.handshake_seconds
        self.handshakes.most = settings.handshakes
        self._replace(credentials)

    def ends(self) -> dict[str, float]:
        """When the daemon's certificate and the first of the lists run out, in seconds since 1970."""
        out = {"certificate": self._credentials.certificate.not_valid_after_utc.timestamp()}
        lists = [one.next_update_utc.timestamp() for one in self._credentials.lists if one.next_update_utc is not None]
        if lists:
            out["crl"] = min(lists)
        return out

    def judge(self, peer: RemotePeer, kind: Kind) -> Caller:
        """Who a verified peer is, under what holds now.

        Raises:
            RemoteRefused: It may not call.
        """
        certificate = peer.certificate
        if certificate.expired():
            raise RemoteRefused("CERTIFICATE_EXPIRED")
        if not certificate.for_clients:
            raise RemoteRefused("CERTIFICATE_PURPOSE")
        caller = self._gate.policy.remote_caller(peer.names, floor=kind.floor, ceiling=kind.ceiling)
        if caller is None:
            raise RemoteRefused("IDENTITY_NOT_ALLOWED", ", ".join(peer.names[:4])[:256] or "it has no URI or DNS name")
        return caller

    def judge_again(self, connection: Connection) -> None:
        """Gives an open connection what it may do now, or closes it."""
        peer = connection.peer
        assert isinstance(peer, RemotePeer)
        now = datetime.now(UTC)
        try:
            if peer.certificate.revoked(self._credentials.lists):
                raise RemoteRefused("CERTIFICATE_REVOKED")
            if not peer.certificate.anchored(self._credentials.authorities, now):
                raise RemoteRefused("UNKNOWN_AUTHORITY")
            self._gate.judged(connection, self.judge(peer, connection.listener.kind))
        except RemoteRefused as error:
            self._end(connection, error)

    def stop(self) -> None:
        """Begins nothing more."""
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None

    async def close(self) -> None:
        """Ends handshakes that are under way."""
        self.stop()
        await self.handshakes.close()
        self._refusals.close()

    async def _context(self) -> ssl.SSLContext:
        """What the next handshake uses: what has just been revoked is not let in by the list of before."""
        if self._renewing is None and self._settings.files.stamp() != self._stamp:
            self._renewing = self._loop.create_task(self._renew())
        if self._renewing is not None:
            await asyncio.wait((self._renewing,))
        return self._credentials.context

    def _shaken(self, one: Handshake) -> None:
        """A handshake has succeeded: whose is it?"""
        socket_name = one.listener.kind.name
        names: tuple[str, ...] = ()
        facts: dict[str, object] = {}
        try:
            peer = RemotePeer(one.address, _certificate(one))
            names, facts = peer.names, peer.certificate.facts()
            caller = self.judge(peer, one.listener.kind)
            _prepare(one.shaken)
            connection = self._gate.enter(one.listener, TlsSocket(one.shaken), peer, caller)
        except SevError as error:
            # Before the end is said, so that whoever sees it finds the record.
            self._refusals.record(socket_name, error, one.address, names, facts)
            one.shaken.close()
            return
        except OSError as error:
            log.warning("connection lost socket=%s address=%s: %s", socket_name, one.address, error.strerror)
            one.shaken.close()
            return
        left = (peer.certificate.not_after - datetime.now(UTC)).total_seconds()
        peer.expiry = self._loop.call_later(max(left, 0), self._expire, connection)
        serial = facts["serial"]
        log.info("connection admitted socket=%s address=%s serial=%s %s", socket_name, one.address, serial, caller.text)

    def _failed(self, one: Handshake, error: RemoteRefused) -> None:
        names: tuple[str, ...] = ()
        facts: dict[str, object] = {}
        if one.chain:
            try:
                certificate = client_certificate.read(one.chain)
            except MalformedInput:
                pass
            else:
                names, facts = certificate.names, certificate.facts()
        self._refusals.record(one.listener.kind.name, error, one.address, names, facts)

    def _expire(self, connection: Connection) -> None:
        self._end(connection, RemoteRefused("CERTIFICATE_EXPIRED"))

    def _end(self, connection: Connection, error: RemoteRefused) -> None:
        """Closes a connection that was admitted."""
        peer = connection.peer
        assert isinstance(peer, RemotePeer)
        error.message += "; the open connection is closed"
        name = connection.listener.kind.name
        self._refusals.record(name, error, peer.address, peer.names, peer.certificate.facts())
        self._gate.judged(connection, None)

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            for connection in self._gate.remote_connections():
                peer = connection.peer
                # Timers do not see that the clock was set.
                if isinstance(peer, RemotePeer) and peer.certificate.expired():
                    self._expire(connection)
            self._warn()
            if self._renewing is None and await asyncio.to_thread(self._settings.files.stamp) != self._stamp:
                self._renewing = self._loop.create_task(self._renew())

    def _warn(self) -> None:
        """Says once of each file that it is about to end."""
        for sentence in self._credentials.ending():
            if sentence not in self._warned:
                self._warned.add(sentence)
                log.warning("%s", sentence)
                self._tell("access.expiring", sentence)

    async def _renew(self) -> None:
        """Reads the files again; if they are no good, what was stays."""
        settings = self._settings
        try:
            stamp = await asyncio.to_thread(settings.files.stamp)
            credentials = await asyncio.to_thread(tls_files.load, settings.files)
        except UsageError as error:
            if settings is self._settings:
                self._stamp = stamp  # not again before something changes
                log.error("the files of remote callers are not taken, the old ones stay: %s", error.message)
                self._tell("access.credentials_refused", error.message)
        else:
            if settings is self._settings:  # else a reload has been faster
                self._replace(credentials)
        finally:
            self._renewing = None

    def _replace(self, credentials: Credentials) -> None:
        """Uses other credentials from here on, for those who are connected, too."""
        self._tell("access.credentials", f"certificates for remote callers were read: {self._take(credentials)}")
        for connection in self._gate.remote_connections():
            self.judge_again(connection)

    def _take(self, credentials: Credentials) -> str:
        """Uses these credentials for handshakes from here on; which they are, in words."""
        watched(credentials.context)
        self._credentials = credentials
        self._stamp = credentials.stamp
        self._warned.clear()
        for warning in credentials.warnings():
            log.warning("%s", warning)
        own = credentials.certificate
        serial, until = f"{own.serial_number:x}", f"{own.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
        log.info("remote callers: certificate serial=%s until=%s", serial, until)
        return f"serial {serial}, until {until}"


def _prepare(tls: socket.socket) -> None:
    tls.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    tls.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in KEEPALIVE:
        tls.setsockopt(socket.IPPROTO_TCP, option, value)


def _certificate(one: Handshake) -> client_certificate.ClientCertificate:
    """The certificate of a handshake that succeeded.

    Raises:
        RemoteRefused: It cannot be read.
    """
    leaf = one.shaken.getpeercert(True)
    # OpenSSL's word counts: what was remembered only adds what lies above.
    chain = one.chain if one.chain and one.chain[0] == leaf else (leaf or b"",)
    try:
        return client_certificate.read(chain)
    except MalformedInput as error:
        raise RemoteRefused("CERTIFICATE_INVALID", error.message) from None
