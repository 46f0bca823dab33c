"""One dispatcher for all methods: it binds skins to descriptors and wraps each function in the frame of every call.

A skin has one function per method of its service, named in snake case:

- unary: `async def f(caller, request) -> response`;
- server streaming: `def f(caller, request) -> AsyncIterator[response]`;
- upload: `async def f(caller, chunks, trace) -> response`, where `chunks` yields serialised messages and the function
  sets `trace.target`;
- both ways: `def f(caller, chunks, trace) -> AsyncIterator[bytes]`, serialised messages in and out.

A skin may have `cached(attribute) -> bytes | None` for reads with an empty request: serialised bytes that are right
now. They go out without leaving the event loop and with nothing between them and gRPC but the role.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import closing
from typing import Any, Protocol, TypeAlias

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message

from sev.errors import SevError, Unreachable
from sev.records import replace
from sevd.access.gate import Connection
from sevd.access.identity import Caller
from sevd.api.foreign import Foreign
from sevd.api.frame import Frame
from sevd.api.receiving import PREFIX_BYTES, Messages, held
from sevd.api.rules import Method, UndeclaredMethod, methods_of
from sevd.api.trace import Context, Trace, begin

Unary: TypeAlias = Callable[[Caller, Any], Awaitable[Message]]
Stream: TypeAlias = Callable[[Caller, Any], AsyncIterator[Message]]
Converse: TypeAlias = Callable[[Caller, AsyncIterator[bytes], Trace], AsyncIterator[bytes]]
Upload: TypeAlias = Callable[[Caller, AsyncIterator[bytes], Trace], Awaitable[Message]]


class Skin(Protocol):
    """What serves one service.

    Attributes:
        needs_device: False: its functions do without the device, whatever the methods declare.
    """

    needs_device: bool

    def cached(self, attribute: str) -> bytes | None:
        """The serialised response of a read with an empty request, if it is at hand."""


class Dispatcher(grpc.GenericRpcHandler):
    """Finds the handler of a method by its path."""

    def __init__(self, frame: Frame, skins: Mapping[ServiceDescriptor, Skin], foreign: Foreign) -> None:
        """
        Raises:
            UndeclaredMethod: A method lacks its rules, or a skin its function.
        """
        self._foreign = foreign
        self._handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        for method, skin in _bound(skins):
            function = getattr(skin, method.attribute, None)
            if not callable(function):
                raise UndeclaredMethod(
                    f"{method.name} is declared, and {type(skin).__name__} has no {method.attribute}"
                )
            self._handlers[method.path] = _handler(frame, method, function, skin)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        """The handler of a call; None (UNIMPLEMENTED) for a method that nobody declared."""
        path = handler_call_details.method
        return self._handlers.get(path) or self._foreign.handler(path)


def _bound(skins: Mapping[ServiceDescriptor, Skin]) -> Iterable[tuple[Method, Skin]]:
    for service, skin in skins.items():
        for method in methods_of([service]):
            yield method if skin.needs_device else replace(method, needs_device=False), skin


def _handler(frame: Frame, method: Method, function: Any, skin: Skin) -> grpc.RpcMethodHandler[Any, Any]:
    if method.uploads and method.streams:
        return grpc.stream_stream_rpc_method_handler(_converse(frame, method, function))
    if method.uploads:
        return grpc.stream_unary_rpc_method_handler(_upload(frame, method, function))
    # See sevd.api.receiving for why each method takes a stream.
    if method.streams:
        return grpc.stream_stream_rpc_method_handler(_stream(frame, method, function))
    slow = _unary(frame, method, function)
    if method.mutating or skin.cached(method.attribute) is None:
        return grpc.stream_unary_rpc_method_handler(slow)
    return grpc.stream_unary_rpc_method_handler(_fast(frame, method, skin, slow))


def _fast(
    frame: Frame, method: Method, skin: Skin, slow: Callable[..., Awaitable[bytes]]
) -> Callable[[object, Context], Awaitable[bytes]]:
    """A read with an empty request from bytes at hand; everything else goes the usual way."""
    connections, role, attribute, cached = frame.connections, method.role, method.attribute, skin.cached
    count = frame.tally.quick(method.name)

    async def behave(unused: object, context: Context) -> bytes:
        connection = connections.get(context.peer())
        if frame.spans is not None or connection is None or connection.caller.role < role or frame.crowded(connection):
            return await slow(unused, context)
        connection.calls += 1
        connection.account.calls += 1
        connection.account.arrived += 1
        raw: bytes | SevError
        try:
            raw = await frame.requests.request_of(context)
        except SevError as error:
            raw = error
        finally:
            frame.count_out(connection)
        if raw == b"":
            answer = cached(attribute)
            if answer is not None:
                connection.account.delivered += PREFIX_BYTES
                count[0] += 1
                return answer
        return await slow(unused, context, raw)

    return behave


def _unary(frame: Frame, method: Method, function: Unary) -> Callable[..., Awaitable[bytes]]:
    async def behave(unused: object, context: Context, got: bytes | SevError | None = None) -> bytes:
        trace, peer = begin(method.name, context), context.peer()
        connection = None
        try:
            connection = frame.enter(peer, method.role, method.name, known=got is not None)
            caller = connection.caller
            if isinstance(got, SevError):
                raise got
            raw = await frame.requests.request_of(context) if got is None else got
            with held(connection, len(raw), frame.limits):
                request = frame.read(method, raw, trace)
                answer = await frame.act(method, connection, trace, raw, lambda: function(caller, request))
            frame.record(connection, trace, mutating=method.mutating)
            context.set_trailing_metadata(trace.metadata)
            return answer
        except asyncio.CancelledError:
            frame.record(connection, trace, mutating=method.mutating, cancelled=True)
            raise
        except Exception as error:
            await _abort(frame, method, connection, trace, context, error, mutating=method.mutating)
            raise AssertionError("abort raises") from error
        finally:
            if connection is not None:
                frame.leave(connection)

    return behave


def _upload(frame: Frame, method: Method, function: Upload) -> Callable[[object, Context], Awaitable[bytes]]:
    async def behave(unused: object, context: Context) -> bytes:
        trace, peer = begin(method.name, context), context.peer()
        connection = None
        try:
            connection = frame.enter(peer, method.role, method.name)
            if method.needs_device:
                frame.need_device(method.name)
            with closing(Messages(context, connection, frame.limits)) as messages:
                answer = (await function(connection.caller, messages, trace)).SerializeToString()
            frame.record(connection, trace, mutating=True)
            context.set_trailing_metadata(trace.metadata)
            return answer
        except asyncio.CancelledError:
            frame.record(connection, trace, mutating=True, cancelled=True)
            raise
        except Exception as error:
            await _abort(frame, method, connection, trace, context, error, mutating=True)
            raise AssertionError("abort raises") from error
        finally:
            if connection is not None:
                frame.leave(connection)

    return behave


def _stream(frame: Frame, method: Method, function: Stream) -> Callable[[object, Context], AsyncIterator[bytes]]:
    async def behave(unused: object, context: Context) -> AsyncIterator[bytes]:
        trace, peer = begin(method.name, context, stream=True), context.peer()
        connection = None
        try:
            connection = frame.enter(peer, method.role, method.name, stream=True)
            messages = function(connection.caller, frame.read(method, await frame.requests.request_of(context), trace))
            try:
                # Tells the client that from here on nothing is missed.
                await context.send_initial_metadata(trace.metadata)
                async for message in messages:
                    yield message.SerializeToString()
            finally:
                await _close(messages)
            if frame.stopping:
                raise Unreachable("the daemon is stopping", remedy="Connect again when it runs again.")
            frame.record(connection, trace, mutating=False)
        except (asyncio.CancelledError, GeneratorExit):
            frame.record(connection, trace, mutating=False, cancelled=True)
            raise
        except Exception as error:
            await _abort(frame, method, connection, trace, context, error, mutating=False)
        finally:
            if connection is not None:
                frame.leave(connection, stream=True)

    return behave


def _converse(frame: Frame, method: Method, function: Converse) -> Callable[[object, Context], AsyncIterator[bytes]]:
    async def behave(unused: object, context: Context) -> AsyncIterator[bytes]:
        trace, peer = begin(method.name, context, stream=True), context.peer()
        connection = None
        try:
            connection = frame.enter(peer, method.role, method.name, stream=True)
            if method.needs_device:
                frame.need_device(method.name)
            with closing(Messages(context, connection, frame.limits, endless=True)) as received:
                messages = function(connection.caller, received, trace)
                try:
                    await context.send_initial_metadata(trace.metadata)
                    async for message in messages:
                        yield message
                finally:
                    await _close(messages)
            if frame.stopping:
                raise Unreachable("the daemon is stopping", remedy="Connect again when it runs again.")
            frame.record(connection, trace, mutating=True)
        except (asyncio.CancelledError, GeneratorExit):
            frame.record(connection, trace, mutating=True, cancelled=True)
            raise
        except Exception as error:
            await _abort(frame, method, connection, trace, context, error, mutating=True)
        finally:
            # Only now: an answer that the caller does not take still is a call of his.
            if connection is not None:
                frame.leave(connection, stream=True)

    return behave


async def _abort(
    frame: Frame,
    method: Method,
    connection: Connection | None,
    trace: Trace,
    context: Context,
    error: Exception,
    *,
    mutating: bool,
) -> None:
    """Answers what a call failed with, and leaves its record. Always raises."""
    lost = frame.failed(error, method.name, trace)
    frame.record(connection or frame.connections.get(context.peer()), trace, mutating=mutating)
    await context.abort(lost.code, lost.message, lost.trailer)


async def _close(messages: AsyncIterator[Any]) -> None:
    """Ends an iterator that may hold something (a subscription, a place among the watchers)."""
    close = getattr(messages, "aclose", None)
    if close is not None:
        await close()
