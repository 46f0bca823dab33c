"""The server: the private gRPC listener, the gate in front of it, and the frame around every call.

server = Server(…)
await server.start()          # the private listener answers; nobody can reach it yet
server.open(listeners)        # from here on callers are served
await server.stop(…)
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path

import grpc
import grpc.aio
from google.protobuf.descriptor import ServiceDescriptor

from sev.errors import InternalError
from sev.records import record
from sevd.access.accounts import CallLimits, GateLimits
from sevd.access.gate import Gate
from sevd.access.listeners import MAX_PATH_BYTES, Listener
from sevd.access.policy import AccessPolicy
from sevd.api.dispatch import Dispatcher, Skin
from sevd.api.foreign import Foreign
from sevd.api.frame import Frame
from sevd.api.once import Once
from sevd.audit import Audit
from sevd.journal import Journal
from sevd.metrics.tally import Tally

METADATA_BYTES = 16 << 10
"""Largest metadata of one call."""

STREAMS_PER_CONNECTION = 256
"""Calls in flight on one connection, before the per-identity limit is asked."""

SEND_BYTES = 16 << 20
"""Largest response."""

END_SECONDS = 1.0
"""How long calls, streams and connections may take to end when all there was to wait for has ended."""

LAST_SECONDS = 86400.0
"""When gRPC itself would cut calls off: never, it is not asked to judge."""

HANDSHAKE_MS = 10_000
"""How long a connection may take until its settings are there."""

WINDOW_BYTES = 1 << 20
"""What a caller may send on one stream before it hears that there is room for more: a message of an upload."""


@record
class ServerLimits:
    """What callers may use.

    Attributes:
        gate: Connections.
        calls_per_identity: Calls in flight of one identity.
        message_bytes: Largest message received.
        bytes_in_flight: Bytes of requests of one identity that were received and are not done with.
    """

    gate: GateLimits
    calls_per_identity: int
    message_bytes: int
    bytes_in_flight: int = 256 << 20

    @property
    def calls(self) -> CallLimits:
        """Those of calls."""
        return CallLimits(self.calls_per_identity, self.bytes_in_flight)


class Server:
    """Serves the skins to callers that the policy knows. On one event loop."""

    def __init__(
        self,
        directory: Path,
        skins: Mapping[ServiceDescriptor, Skin],
        *,
        policy: AccessPolicy,
        audit: Audit,
        journal: Journal,
        limits: ServerLimits,
        missing: Callable[[str], Sequence[str]],
        hidden: Iterable[str] = (),
        tally: Tally | None = None,
    ) -> None:
        """
        Args:
            directory: A directory that nobody else can enter, for the private listener.
            skins: What serves each service.
            policy: Roles of identities.
            audit: Where records go.
            journal: Request ids.
            limits: What callers may use.
            missing: What is missing for the device calls of a service.
            hidden: Full names of services that are not listed: they answer only that they are not offered.
            tally: Where calls are counted.

        Raises:
            UndeclaredMethod: A method lacks its rules, or a skin its function.
        """
        self._directory = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        backend = directory / "backend"
        # A state directory's path may be longer than a socket's path can be; its descriptor's is not.
        self._backend = (
            os.fspath(backend)
            if len(os.fsencode(backend)) <= MAX_PATH_BYTES
            else f"/proc/self/fd/{self._directory}/backend"
        )
        self._missing = missing
        self._listed = [service.full_name for service in skins if service.full_name not in set(hidden)]
        self.gate = Gate(self._backend, policy, audit, limits.gate)
        self.gate.bytes_in_flight = limits.bytes_in_flight
        self.frame = Frame(
            self.gate.connections,
            audit,
            Once(journal),
            missing,
            limits=limits.calls,
            settle=self.gate.accounts.settle,
            refusals=self.gate.refusals,
            tally=tally,
        )
        self.foreign = Foreign(self.frame, self._listed, self._serving)
        dispatcher = Dispatcher(self.frame, skins, self.foreign)
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", limits.message_bytes),
                ("grpc.max_send_message_length", SEND_BYTES),
                ("grpc.max_metadata_size", METADATA_BYTES),
                ("grpc.absolute_max_metadata_size", METADATA_BYTES),
                ("grpc.max_concurrent_streams", STREAMS_PER_CONNECTION),
                ("grpc.server_handshake_timeout_ms", HANDSHAKE_MS),
                ("grpc.http2.lookahead_bytes", WINDOW_BYTES),
            ]
        )
        self._server.add_generic_rpc_handlers((dispatcher,))

    async def start(self) -> None:
        """Opens the private listener. Raises InternalError if that cannot be."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._backend)  # of a daemon that was killed; the state directory is locked, it is not alive
        try:
            self._server.add_insecure_port(f"unix:{self._backend}")
        except RuntimeError as error:
            raise InternalError(f"the private listener cannot be opened: {error}") from None
        await self._server.start()

    def open(self, listeners: Iterable[Listener]) -> None:
        """Serves callers from here on."""
        self.gate.open(listeners)

    def reload(self, policy: AccessPolicy, limits: ServerLimits) -> None:
        """Takes another policy and other limits; the size of messages stays what it was."""
        self.gate.replace(policy, limits.gate)
        self.frame.limits = limits.calls
        self.gate.bytes_in_flight = limits.bytes_in_flight

    async def stop(
        self,
        seconds: float,
        end_streams: Callable[[], Iterable[asyncio.Future[None]]],
        settled: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Accepts nothing more, waits for calls, ends streams, closes. Once more does nothing.

        Args:
            seconds: How long calls may take to end, once `settled` has returned.
            end_streams: Ends what streams are fed from; answers what is to be waited for.
            settled: Waits until calls have ended, or have had their time.
        """
        if self.frame.stopping:
            return
        self.frame.stopping = True
        self.gate.stop_accepting()
        if self.gate.remote is not None:
            await self.gate.remote.close()
        await self.foreign.shut_down()
        # What comes from here on is refused by gRPC, and tried again by clients: it finds the next daemon.
        stopped = asyncio.ensure_future(self._server.stop(LAST_SECONDS))
        if settled is not None:
            await settled()
        await self.frame.drain(seconds)
        await asyncio.gather(*end_streams(), return_exceptions=True)
        if await asyncio.wait([stopped], timeout=END_SECONDS) != (set(), {stopped}):
            await self.gate.drained(END_SECONDS)
        self.gate.close()  # calls that are left end with their connections
        await stopped
        os.close(self._directory)

    def _serving(self) -> dict[str, bool]:
        """For the health service: the daemon itself, and each service, by whether its device is there."""
        return {"": True, **{name: not self._missing(name.rpartition(".")[2]) for name in self._listed}}
