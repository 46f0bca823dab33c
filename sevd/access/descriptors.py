"""`fd.sock`: descriptors for callers on this machine, which gRPC cannot carry (SCM_RIGHTS).

One JSON object per packet (sev.packets). `{"op": "memory", "guest_id": …}` answers `{"layout": [[gpa, size, offset],
…]}` with the guest's memfd, sealed against growing and shrinking, for the guest's owner alone. Who asks is told by the
kernel, as on the other sockets, and judged by the same policy; every answer leaves an audit record. `request_id` names
the request there and in the error, as the metadata of a call does (`sevd.calling`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from typing import TYPE_CHECKING, NamedTuple

from sev import packets
from sev.errors import InternalError, LimitReached, MalformedInput, NotPermitted, SevError
from sevd.access.accounts import Account, Accounts
from sevd.access.identity import Caller
from sevd.access.peer import Peer, peer_of
from sevd.access.refusals import Refusals
from sevd.access.turns import Turns
from sevd.calling import fresh_request_id, is_request_id

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sevd.access.gate import Gate
    from sevd.access.listeners import Listener
    from sevd.access.policy import AccessPolicy
    from sevd.audit import Audit

CONNECTIONS = 256
"""Connections in all."""

CONNECTIONS_PER_IDENTITY = 16
"""Connections of one identity."""

IDLE_SECONDS = 30.0
"""How long a connection may say nothing."""

ACCEPTS_PER_WAKE = 16

REST_SECONDS = 0.005
"""Pause of accepting after refusals."""

METHOD = "Descriptors/Memory"
_NAME_CHARACTERS = 64

log = logging.getLogger(__name__)


class Shared(NamedTuple):
    """What is handed out.

    Attributes:
        fd: The descriptor; stays its owner's.
        layout: (guest physical address, bytes, offset) of every range.
    """

    fd: int
    layout: Sequence[Sequence[int]]


class _Connection:
    """One caller."""

    __slots__ = ("account", "caller", "peer", "sock", "timer")

    def __init__(self, sock: socket.socket, peer: Peer, caller: Caller, account: Account) -> None:
        self.sock = sock
        self.peer = peer
        self.caller = caller
        self.account = account
        self.timer: asyncio.TimerHandle | None = None


class Descriptors:
    """Serves `fd.sock`. On one event loop.

    Args:
        policy: Roles of identities.
        audit: Where records go.
        memory: A guest's memory for a caller. Raises SevError.
        gate: The accept loop of calls, with which turns and the bounds on records are shared.
    """

    def __init__(
        self,
        policy: AccessPolicy,
        audit: Audit,
        memory: Callable[[Caller, str], Shared],
        gate: Gate | None = None,
    ) -> None:
        self._policy = policy
        self._audit = audit
        self._memory = memory
        self._turns = gate.turns if gate is not None else Turns()
        self._accounts = gate.accounts if gate is not None else Accounts()
        self._refusals = gate.refusals if gate is not None else Refusals(lambda owner, reason, count: None)
        self._loop = asyncio.get_running_loop()
        self._listener: Listener | None = None
        self._connections: set[_Connection] = set()

    def open(self, listener: Listener) -> None:
        """Starts to accept."""
        self._listener = listener
        self._loop.add_reader(listener.socket.fileno(), self._accept, listener)

    def reload(self, policy: AccessPolicy) -> None:
        """Takes another policy. Who is connected must connect again."""
        self._policy = policy
        for connection in tuple(self._connections):
            self._drop(connection)

    def close(self) -> None:
        """Ends everything; once more does nothing."""
        listener, self._listener = self._listener, None
        if listener is not None:
            self._loop.remove_reader(listener.socket.fileno())
            listener.close()
        for connection in tuple(self._connections):
            self._drop(connection)

    def _accept(self, listener: Listener) -> None:
        refused = False
        for _ in range(ACCEPTS_PER_WAKE):
            try:
                sock, _ = listener.socket.accept()
            except OSError:
                break  # nobody is left, or no descriptor: whoever waits is taken when one is free
            sock.setblocking(False)
            try:
                self._admit(listener, sock)
            except SevError as error:
                sock.close()
                log.debug("connection refused socket=%s: %s", listener.kind.name, error.message)
                refused = True
            except OSError as error:
                sock.close()
                log.warning("connection lost socket=%s: %s", listener.kind.name, os.strerror(error.errno or 0))
        if refused:
            self._rest(listener)

    def _rest(self, listener: Listener) -> None:
        """Accepts nothing for a moment: who is refused may come again at once, and the others shall be served."""
        self._loop.remove_reader(listener.socket.fileno())

        def resume() -> None:
            if self._listener is listener:
                self._loop.add_reader(listener.socket.fileno(), self._accept, listener)

        self._loop.call_later(REST_SECONDS, resume)

    def _admit(self, listener: Listener, sock: socket.socket) -> None:
        peer: Peer | None = None
        try:
            peer = peer_of(sock)
            caller = self._policy.caller(peer, floor=listener.kind.floor, ceiling=listener.kind.ceiling)
            if caller is None:
                raise NotPermitted(f"uid {peer.uid} has no role on the socket {listener.kind.name}")
            own = sum(one.caller.owner == caller.owner for one in self._connections)
            if own >= CONNECTIONS_PER_IDENTITY or len(self._connections) >= CONNECTIONS:
                raise LimitReached(f"{caller.owner} has {own} connections of {len(self._connections)} here: no more")
        except SevError as error:
            if self._refusals.record(f"uid:{peer.uid}" if peer is not None else "", error.reason):
                self._audit.connection_refused(listener.kind.name, peer, error)
            else:
                self._audit.count_refused(listener.kind.name, error.reason)
            if peer is not None:
                peer.close()
            raise
        others = (one.account for one in self._connections if one.caller.owner == caller.owner)
        connection = _Connection(sock, peer, caller, next(others, Account(caller.owner)))
        self._connections.add(connection)
        self._listen(connection, listener.kind.name)
        self._wait(connection)

    def _listen(self, connection: _Connection, name: str) -> None:
        if connection in self._connections:
            self._loop.add_reader(connection.sock.fileno(), self._hear, connection, name)

    def _hear(self, connection: _Connection, name: str) -> None:
        account = self._accounts.get(connection.caller.owner) or connection.account
        if wait := self._turns.take(account, self._turns.call_seconds):
            self._loop.remove_reader(connection.sock.fileno())
            self._loop.call_later(wait, self._listen, connection, name)
            return
        fds: list[int] = []
        started, target, request_id = time.monotonic(), "", fresh_request_id()
        failure: SevError | None = None
        answer: dict[str, object] = {}
        rights: tuple[int, ...] = ()
        try:
            try:
                message, fds = packets.receive(connection.sock)
                target = str(message.get("guest_id", ""))[:_NAME_CHARACTERS]
                if is_request_id(message.get("request_id")):
                    request_id = str(message["request_id"])
                answer, rights = self._answer(connection.caller, message)
            except SevError as error:
                failure = error
            except OSError:
                raise
            except Exception as error:
                log.exception("a request on the socket %s failed request_id=%s", name, request_id)
                failure = InternalError(f"unexpected {type(error).__name__}")
            if failure is not None:
                failure.request_id = request_id
                answer, rights = {"error": packets.error_document(failure)}, ()
            about = {"target": target, "request_id": request_id}
            self._record(connection, name, about, failure, time.monotonic() - started)
            packets.send(connection.sock, answer, rights)
            self._wait(connection)
        except BlockingIOError:
            if not answer:
                return  # woken for nothing
            self._drop(connection)  # it asks and does not read
        except OSError:
            self._drop(connection)
        finally:
            packets.close_all(fds)

    def _answer(self, caller: Caller, message: dict[str, object]) -> tuple[dict[str, object], tuple[int, ...]]:
        if message.get("op") != "memory":
            raise MalformedInput(f"op: {message.get('op')!r:.40}, expected memory", field="op")
        shared = self._memory(caller, packets.text(message, "guest_id"))
        return {"layout": [list(one) for one in shared.layout]}, (shared.fd,)

    def _record(
        self, connection: _Connection, name: str, about: dict[str, str], error: SevError | None, seconds: float
    ) -> None:
        facts: dict[str, object] = {"method": METHOD, **about, "result": "refused" if error else "done"}
        if error is not None:
            if not self._refusals.record(connection.caller.owner, error.reason):
                return
            facts.update(reason=error.reason, message=error.message)
        facts["duration_ms"] = round(seconds * 1000, 3)
        self._audit.call(connection.caller, connection.peer.unit(), name, facts)

    def _wait(self, connection: _Connection) -> None:
        if connection.timer is not None:
            connection.timer.cancel()
        connection.timer = self._loop.call_later(IDLE_SECONDS, self._drop, connection)

    def _drop(self, connection: _Connection) -> None:
        if connection not in self._connections:
            return
        self._connections.discard(connection)
        if connection.timer is not None:
            connection.timer.cancel()
        self._loop.remove_reader(connection.sock.fileno())
        connection.sock.close()
        connection.peer.close()
