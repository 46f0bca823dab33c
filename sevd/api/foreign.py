"""Health and reflection: services of the upstream packages, guarded like ours.

They are loaded when first called: most daemons are never asked for them, and each costs start-up time and memory.
Reflection lists what this host offers; it also finds a method by its full name, which Python's descriptor pool alone
does not.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import grpc

from sev.errors import MalformedInput, NotPermitted, SevError
from sevd.access.gate import Connection
from sevd.api.frame import Frame
from sevd.api.receiving import Messages
from sevd.api.rules import FOREIGN, LOCAL
from sevd.api.trace import Context, Trace, begin

HEALTH = "grpc.health.v1.Health"
REFLECTION = "grpc.reflection.v1alpha.ServerReflection"

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class Foreign:
    """The handlers of methods that are not ours."""

    def __init__(self, frame: Frame, services: Sequence[str], serving: Callable[[], Mapping[str, bool]]) -> None:
        """
        Args:
            frame: The surroundings of all calls.
            services: Full names of our services that this host offers.
            serving: Whether each of them can do its work now; the empty name is the daemon itself.
        """
        self._frame = frame
        self._services = services
        self._serving = serving
        self._handlers: dict[str, Handler] = {}
        self._health: Any = None
        self._loaded: set[str] = set()

    def handler(self, path: str) -> Handler | None:
        """The guarded handler of a path; None if nobody declared it."""
        if path not in FOREIGN:
            return None
        service = path[1:].partition("/")[0]
        if service not in self._loaded:
            self._loaded.add(service)
            if service == HEALTH:
                self._load_health()
            elif service == REFLECTION:
                self._load_reflection()
        return self._handlers.get(path)

    async def refresh_health(self) -> None:
        """Tells the health service what is serving now."""
        if self._health is None:
            return
        from grpc_health.v1 import health_pb2

        words = health_pb2.HealthCheckResponse
        for name, serving in self._serving().items():
            await self._health.set(name, words.SERVING if serving else words.NOT_SERVING)

    async def shut_down(self) -> None:
        """Everything is NOT_SERVING from here on."""
        if self._health is not None:
            await self._health.enter_graceful_shutdown()

    def _load_health(self) -> None:
        from grpc_health.v1 import health, health_pb2_grpc

        self._health = health.aio.HealthServicer()
        self._take(health_pb2_grpc.add_HealthServicer_to_server, self._health, self.refresh_health)

    def _load_reflection(self) -> None:
        from grpc_health.v1 import health_pb2  # noqa: F401 - describes the health service, which is listed too
        from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

        from sevd.api.reflection import servicer

        names = [*self._services, HEALTH, reflection.SERVICE_NAME]
        self._take(reflection_pb2_grpc.add_ServerReflectionServicer_to_server, servicer(names))

    def _take(
        self, add: Callable[[Any, Any], None], servicer: object, before: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        """Takes the handlers that a package would register with a server, and guards those that were declared."""
        collector = _Collector()
        add(servicer, collector)
        for path, handler in collector.found.items():
            if path in FOREIGN:
                self._handlers[path] = _guard(self._frame, path, handler, before)


class _Collector:
    """Stands where generated code expects a server."""

    def __init__(self) -> None:
        self.found: dict[str, Handler] = {}

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """The same handlers again; the registered ones suffice."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Handler]) -> None:
        """Keeps them by full path."""
        self.found.update({f"/{service}/{name}": handler for name, handler in handlers.items()})


@contextlib.contextmanager
def _counted(frame: Frame, connection: Connection, trace: Trace, path: str) -> Iterator[None]:
    """Around a call that was let in."""
    code = "OK"
    try:
        yield
    except BaseException:
        code = "CANCELLED"
        raise
    finally:
        frame.leave(connection, stream=True)
        if trace.error is None:  # else it was counted as refused
            frame.tally.call(path[1:], code, None)


def _guard(frame: Frame, path: str, handler: Any, before: Callable[[], Awaitable[None]] | None) -> Handler:
    """The handler with the frame of every call around it; `before` runs before each call."""
    name, role = path.rpartition(".")[2], FOREIGN[path]
    inner = handler.unary_unary or handler.unary_stream or handler.stream_stream or handler.stream_unary

    async def enter(context: Context) -> tuple[Connection, Trace]:
        trace, peer = begin(name, context, stream=True), context.peer()
        try:
            connection = frame.connections.get(peer)
            if connection is not None and connection.listener.kind.remote and path in LOCAL:
                raise NotPermitted(f"{name} is for callers of this machine alone", remedy="Use the published protos.")
            return frame.enter(peer, role, name, stream=True), trace
        except SevError as error:
            await refuse(context, frame.connections.get(peer), trace, error)
            raise AssertionError("abort raises") from error

    def decoded(raw: bytes) -> Any:
        try:
            return handler.request_deserializer(raw)
        except Exception:
            raise MalformedInput(f"the request is none of {name}", remedy="Use the published protos.") from None

    async def refuse(context: Context, connection: Connection | None, trace: Trace, error: SevError) -> None:
        lost = frame.failed(error, name, trace)
        frame.record(connection, trace, mutating=False)
        await context.abort(lost.code, lost.message, lost.trailer)

    async def requests(context: Context, connection: Connection, trace: Trace) -> AsyncIterator[Any]:
        with contextlib.closing(Messages(context, connection, frame.limits, endless=True)) as messages:
            try:
                async for raw in messages:
                    yield decoded(raw)
            except SevError as error:
                await refuse(context, connection, trace, error)

    async def received(context: Context, connection: Connection, trace: Trace) -> Any:
        """What the handler takes: one request, or all that come."""
        if handler.request_streaming:
            return requests(context, connection, trace)
        try:
            return decoded(await frame.requests.request_of(context))
        except SevError as error:
            await refuse(context, connection, trace, error)

    async def guarded(unused: object, context: Context) -> Any:
        connection, trace = await enter(context)
        with _counted(frame, connection, trace, path):
            request = await received(context, connection, trace)
            if before is not None:
                await before()
            return await inner(request, context)

    async def guarded_stream(unused: object, context: Context) -> AsyncIterator[Any]:
        connection, trace = await enter(context)
        with _counted(frame, connection, trace, path):
            async for message in inner(await received(context, connection, trace), context):
                yield message

    behaviour: Any = guarded_stream if inspect.isasyncgenfunction(inner) else guarded
    # See sevd.api.receiving for why each method takes a stream.
    make: Any = (
        grpc.stream_stream_rpc_method_handler if handler.response_streaming else grpc.stream_unary_rpc_method_handler
    )
    guarded_handler: Handler = make(behaviour, response_serializer=handler.response_serializer)
    return guarded_handler
