"""The accept loop: takes connections, finds out who is there, and joins those who may to the private gRPC server.

gRPC cannot tell who is at the other end of a Unix socket. It does tell the *name* of the socket that dialled it: so
every connection is dialled on from a socket bound to an abstract name of our making (a counter and 128 random bits),
on a listener in a directory that nobody else can enter, and a handler looks that name up here. Nothing is ever read
out of the name itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import logging
import os
import secrets
import socket
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, NoReturn

from sev.errors import LimitReached, NotPermitted, SevError
from sev.records import mutable_record
from sevd.access.accounts import Account, Accounts, CallLimits, GateLimits, reached
from sevd.access.crowds import Crowds
from sevd.access.fullness import too_full
from sevd.access.greeting import Greeting
from sevd.access.identity import Caller
from sevd.access.inbound import Inbound
from sevd.access.listeners import Listener
from sevd.access.peer import Peer, peer_of
from sevd.access.policy import AccessPolicy
from sevd.access.refusals import Refusals
from sevd.access.relay import End, Relay
from sevd.access.turns import CONNECTION_SECONDS, Turns
from sevd.audit import Audit

if TYPE_CHECKING:
    from sevd.access.remote import Remote
    from sevd.access.remote_peer import RemotePeer

ACCEPTS_PER_WAKE = 64
"""Connections taken in one go at most, before calls are served again."""

ACCEPT_SECONDS = 0.001
"""How long that may take."""

CROWD_SECONDS, CROWD_PAUSE_SECONDS = 0.0003, 0.005
"""The same where some are refused as too many, and where strangers connect, and the pause after it: what waits in the
backlog is only late."""

LEAST_WATCHED = 1 << 20
"""Bytes of an identity that may wait for the rest of their messages unseen."""

LEAST_FULL = 32 << 20
"""Bytes that may wait whatever the limit: what a few uploads send ahead."""

DIAL_SECONDS = 2.0
"""How long a caller waits for the server's own queue to have room."""

DIAL_PAUSE_SECONDS = 0.01
"""Pause between two looks at that queue."""

PAUSE_SECONDS = 0.1
"""How long nothing is accepted after the process ran out of descriptors or memory."""

_BUSY = (errno.EAGAIN, errno.EMFILE, errno.ENFILE)  # the server's queue is full, or no descriptor is left

log = logging.getLogger(__name__)


@mutable_record
class Connection:
    """One admitted connection.

    Attributes:
        name: What gRPC reports as its peer.
        caller: Who is there.
        peer: The process as the kernel told, or the certificate as TLS verified it.
        listener: The socket that it came through.
        account: What its identity uses.
        relay: The bytes' way to the server, or the wait for the first ones; None once it has ended.
        calls: Its calls in flight.
        held: Bytes of its requests that were received and are not done with.
    """

    name: str
    caller: Caller
    peer: Peer | RemotePeer
    listener: Listener
    account: Account
    relay: Relay | Greeting | None = None
    calls: int = 0
    held: int = 0

    def unit(self) -> str:
        """The systemd unit of the caller, looked up when first asked for; empty if it cannot be told."""
        return self.peer.unit()

    @property
    def open(self) -> bool:
        """Whether the caller is still connected."""
        return self.relay is not None


class Gate:
    """All listeners and all connections of one daemon. Lives on one event loop."""

    def __init__(self, backend: str, policy: AccessPolicy, audit: Audit, limits: GateLimits | None = None) -> None:
        """`backend` is the path on which the private gRPC server listens."""
        self._backend = backend
        self._policy = policy
        self.audit = audit
        self._limits = limits or GateLimits()
        self._loop = asyncio.get_running_loop()
        self._token = secrets.token_hex(16)
        self._counter = itertools.count(1)
        self._listeners: list[Listener] = []
        self.accounts = Accounts()
        """What each identity uses."""
        self.refusals = Refusals(self._left_out)
        """Which refusals are recorded one by one."""
        self._crowds = Crowds(self.accounts, self.refusals)
        self.bytes_in_flight = CallLimits().bytes_in_flight
        """Bytes of messages of one identity that may wait to become whole."""
        self.turns = Turns()
        """Whose turn it is."""
        self._empty = asyncio.Event()
        self._empty.set()
        self.connections: dict[str, Connection] = {}
        """Open connections by what gRPC reports as their peer."""
        self.remote: Remote | None = None
        """Who takes connections from other machines; None: there is no listener for them."""

    @property
    def policy(self) -> AccessPolicy:
        """The policy that holds now."""
        return self._policy

    def open(self, listeners: Iterable[Listener]) -> None:
        """Starts to accept."""
        for listener in listeners:
            self._listeners.append(listener)
            self._loop.add_reader(listener.socket.fileno(), self._accept, listener)

    def stop_accepting(self) -> None:
        """Accepts nothing more, and gives the paths up that were bound here."""
        self.refusals.renew()
        if self.remote is not None:
            self.remote.stop()
        for listener in self._listeners:
            self._loop.remove_reader(listener.socket.fileno())
            listener.close()
        self._listeners.clear()

    def replace(self, policy: AccessPolicy, limits: GateLimits) -> None:
        """Takes another policy: open connections get their new role, or are closed if they have none any more."""
        self._policy = policy
        self._limits = limits
        self._crowds.clear()
        for connection in list(self.connections.values()):
            kind = connection.listener.kind
            if isinstance(connection.peer, Peer):
                caller = policy.caller(connection.peer, floor=kind.floor, ceiling=kind.ceiling)
                self.judged(connection, caller)
            elif self.remote is not None:
                self.remote.judge_again(connection)

    def judged(self, connection: Connection, caller: Caller | None) -> None:
        """An open connection has another caller now; None: it is closed."""
        if caller is not None:
            connection.caller = caller
            self._move(connection, self.accounts.of(caller.owner))
        elif connection.relay is not None:
            connection.relay.close()

    def remote_connections(self) -> list[Connection]:
        """Open connections from other machines."""
        return [one for one in self.connections.values() if one.listener.kind.remote]

    def by_socket(self) -> Counter[str]:
        """How many connections are open, by the socket that they came through."""
        return Counter(connection.listener.kind.name for connection in self.connections.values())

    async def drained(self, seconds: float) -> bool:
        """Waits until every connection has ended; True if they have, False after `seconds`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._empty.wait()
        return not self.connections

    def close(self) -> None:
        """Ends everything at once."""
        self.stop_accepting()
        for connection in list(self.connections.values()):
            if connection.relay is not None:
                connection.relay.close()

    def _accept(self, listener: Listener) -> None:
        began, patience = self._loop.time(), CROWD_SECONDS if listener.kind.remote else ACCEPT_SECONDS
        for number in range(ACCEPTS_PER_WAKE):
            if number and self._loop.time() - began >= patience:
                if patience < ACCEPT_SECONDS:
                    self._rest(listener, CROWD_PAUSE_SECONDS)
                return  # the others have waited long enough
            try:
                client, address = listener.socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._pause(listener, error)
                return
            if not listener.kind.remote and self._crowds.full(client, units=bool(self._policy.units)):
                client.close()
                self.audit.count_refused(listener.kind.name, LimitReached.reason)
                patience = CROWD_SECONDS
                continue
            client.setblocking(False)
            try:
                if listener.kind.remote and self.remote is not None:
                    self.remote.begin(listener, client, address)
                else:
                    self._admit(listener, client)
            except SevError as error:
                client.close()
                log.debug("connection refused socket=%s: %s", listener.kind.name, error.message)
            except OSError as error:
                client.close()
                log.warning("connection lost socket=%s: %s", listener.kind.name, os.strerror(error.errno or 0))

    def _pause(self, listener: Listener, error: OSError) -> None:
        """Out of descriptors or memory: what waits in the backlog is not lost, only late."""
        log.error("cannot accept on socket=%s: %s", listener.kind.name, os.strerror(error.errno or 0))
        self._rest(listener, PAUSE_SECONDS)

    def _rest(self, listener: Listener, seconds: float) -> None:
        """Accepts nothing for a while."""
        self._loop.remove_reader(listener.socket.fileno())

        def resume() -> None:
            if listener in self._listeners:
                self._loop.add_reader(listener.socket.fileno(), self._accept, listener)

        self._loop.call_later(seconds, resume)

    def _admit(self, listener: Listener, client: socket.socket) -> None:
        """Admits a connection and joins it to the server. Raises SevError for one that may not be."""
        try:
            peer = peer_of(client)
        except SevError as error:
            self._refuse(listener, "", None, error)
        try:
            self.enter(listener, client, peer, self._caller(listener, peer))
        except SevError as error:
            peer.close()
            self._crowds.note(peer.uid, error)
            self._refuse(listener, f"uid:{peer.uid}", peer, error)

    def _refuse(self, listener: Listener, owner: str, peer: Peer | None, error: SevError) -> NoReturn:
        """Records a refusal, as one of so many, and raises it."""
        if self.refusals.record(owner, error.reason):
            self.audit.connection_refused(listener.kind.name, peer, error)
        else:
            self.audit.count_refused(listener.kind.name, error.reason)
        raise error

    def _left_out(self, owner: str, reason: str, count: int) -> None:
        error = NotPermitted(f"{count} more refusals of {owner or 'others'} for {reason} were not recorded one by one")
        error.reason = "NOT_RECORDED"
        self.audit.connection_refused("", None, error)

    def enter(self, listener: Listener, client: End, peer: Peer | RemotePeer, caller: Caller) -> Connection:
        """Joins a connection whose caller is known to the server, and takes it over.

        Raises:
            LimitReached: There are too many.
        """
        if len(self.connections) >= self._limits.connections:
            raise LimitReached(
                f"{len(self.connections)} connections are open: no more are allowed in all",
                metadata={"limit": "connections", "value": str(self._limits.connections)},
            )
        account = self.accounts.of(caller.owner)
        try:
            account.admit_connection(caller, self._limits)
        finally:
            self.accounts.settle(account)
        name = f"sevd-{self._token}-{next(self._counter)}"
        connection = Connection(f"unix-abstract:{name}", caller, peer, listener, account)
        # Known before the first byte can reach the server.
        self.connections[connection.name] = connection
        self._empty.clear()

        deadline = 0.0

        def greeted(first: bytes) -> float:
            nonlocal deadline
            deadline = deadline or self._loop.time() + DIAL_SECONDS
            return self._join(connection, client, name, first, deadline)

        def lost(why: str) -> None:
            if why:
                log.info("connection let go socket=%s %s: %s", listener.kind.name, caller.text, why)
            self._ended(connection)

        def turn() -> float:
            return self.turns.take(connection.account, CONNECTION_SECONDS)

        connection.relay = Greeting(self._loop, client, greeted, lost, turn=turn)
        return connection

    def _join(self, connection: Connection, client: End, name: str, first: bytes, deadline: float) -> float:
        """Dials the server and starts the relay; seconds after which to try again where it is only busy."""
        try:
            server = self._dial(name)
        except OSError as error:
            if error.errno in _BUSY and self._loop.time() < deadline and self._listeners:
                return DIAL_PAUSE_SECONDS
            log.error("the server cannot be reached: %s", os.strerror(error.errno or 0))
            client.close()
            self._ended(connection)
            return 0.0

        def received() -> None:
            account = connection.account
            if account.received - account.delivered >= LEAST_WATCHED:
                most = max(connection.caller.limits.bytes_in_flight or self.bytes_in_flight, LEAST_FULL)
                if too_full(account, most):
                    self._loop.call_soon(self._empty_out, account, most)

        def inbound(relay: Relay) -> Inbound:
            return Inbound(
                self._loop, client, server, relay, first=first, turns=self.turns, holder=connection, received=received
            )

        # An end while it is made finds the connection as it was.
        relay = Relay(self._loop, client, server, lambda: self._ended(connection), inbound)
        if connection.name in self.connections:
            connection.relay = relay
        return 0.0

    def _dial(self, name: str) -> socket.socket:
        """A connection to the server from a socket of this name. Raises OSError."""
        server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            server.bind(f"\0{name}")
            server.connect(self._backend)
        except OSError:
            server.close()
            raise
        return server

    def _empty_out(self, account: Account, most: int) -> None:
        """Ends the connections of an identity whose messages fill the memory and never become whole."""
        error = reached(
            "bytes_in_flight", most, f"{account.owner} has too many messages that are not whole", "Send what was begun."
        )
        for connection in list(self.connections.values()):
            if connection.account is account and connection.relay is not None:
                peer = connection.peer if isinstance(connection.peer, Peer) else None
                if self.refusals.record(account.owner, error.reason):
                    self.audit.connection_refused(connection.listener.kind.name, peer, error)
                connection.relay.close()

    def _caller(self, listener: Listener, peer: Peer) -> Caller:
        caller = self._policy.caller(peer, floor=listener.kind.floor, ceiling=listener.kind.ceiling)
        if caller is None:
            raise NotPermitted(
                f"uid {peer.uid} has no role on the socket {listener.kind.name}",
                remedy="Ask for membership of the group that may use this daemon (usually sev).",
            )
        return caller

    def _move(self, connection: Connection, account: Account) -> None:
        """The connection may belong to another identity than before, and its calls with it."""
        before, connection.account = connection.account, account
        if before is not account:
            self.accounts.move(1, connection.calls, connection.held, before, account)

    def _ended(self, connection: Connection) -> None:
        connection.relay = None
        connection.peer.close()
        del self.connections[connection.name]
        connection.account.connections -= 1
        self.accounts.settle(connection.account)
        if not self.connections:
            self._empty.set()
