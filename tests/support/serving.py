"""A server of the daemon's own making in the test's process: real sockets, real frame, skins as the test wants them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from sev.v1 import endorsement_pb2, guest_pb2, host_pb2, sev_platform_pb2, simulator_pb2, snp_platform_pb2
from sevd.access.accounts import GateLimits
from sevd.access.identities import Identity
from sevd.access.listeners import CLIENT, Kind, Listener, bind
from sevd.access.policy import AccessPolicy
from sevd.access.roles import Role
from sevd.api.rules import Method, methods_of
from sevd.api.server import Server, ServerLimits
from sevd.audit import Audit
from sevd.journal import Journal

SERVICES: tuple[ServiceDescriptor, ...] = tuple(
    service
    for module in (host_pb2, snp_platform_pb2, sev_platform_pb2, guest_pb2, endorsement_pb2, simulator_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
)
METHODS: list[Method] = methods_of(SERVICES)


class EasySkin:
    """Serves every method of a service: as `behaviours` says by attribute, else with an empty answer."""

    needs_device = True

    def __init__(self, service: ServiceDescriptor, behaviours: Mapping[str, Callable[..., Any]] | None = None) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.kept: dict[str, bytes] = {}
        self._methods = {method.attribute: method for method in methods_of([service])}
        self._behaviours = dict(behaviours or {})

    def cached(self, attribute: str) -> bytes | None:
        return self.kept.get(attribute)

    def __getattr__(self, name: str) -> Any:
        method = self._methods.get(name)
        if method is None:
            raise AttributeError(name)
        if name in self._behaviours:
            return self._behaviours[name]
        return self._easy(method)

    def _easy(self, method: Method) -> Any:
        async def unary(caller: Any, request: Any) -> Message:
            self.calls.append((method.attribute, caller))
            return method.response()

        async def upload(caller: Any, chunks: AsyncIterator[bytes], trace: Any) -> Message:
            async for _ in chunks:
                pass
            self.calls.append((method.attribute, caller))
            return method.response()

        async def stream(caller: Any, request: Any) -> AsyncIterator[Message]:
            self.calls.append((method.attribute, caller))
            yield method.response()

        async def converse(caller: Any, chunks: AsyncIterator[bytes], trace: Any) -> AsyncIterator[bytes]:
            async for _ in chunks:
                self.calls.append((method.attribute, caller))
                yield method.response().SerializeToString()

        if method.uploads:
            return converse if method.streams else upload
        return stream if method.streams else unary


@contextlib.asynccontextmanager
async def serving(
    folder: Path,
    *,
    role: Role | None = Role.ADMIN,
    behaviours: Mapping[str, Callable[..., Any]] | None = None,
    kind: Kind = CLIENT,
    limits: ServerLimits | None = None,
    missing: Callable[[str], Sequence[str]] = lambda service: (),
    skins: Mapping[ServiceDescriptor, Any] | None = None,
    hidden: Sequence[str] = (),
    drain_seconds: float = 2,
    names: Mapping[str, Identity] | None = None,
    more: Callable[[Server, Audit], Listener] | None = None,
) -> AsyncIterator[tuple[Server, str]]:
    """A server on which this process has a role; yields it and its target.

    `names` are identities of remote callers by "uri:…" and "dns:…"; `more` makes a further listener.
    """
    private = folder / "private"
    private.mkdir(mode=0o700, exist_ok=True)
    policy = AccessPolicy({os.geteuid(): role} if role is not None else {}, names=names or {})
    audit, journal = Audit(folder / "audit.jsonl"), Journal(folder / "journal.jsonl")
    server = Server(
        private,
        skins or {service: EasySkin(service, behaviours) for service in SERVICES},
        policy=policy,
        audit=audit,
        journal=journal,
        limits=limits or ServerLimits(GateLimits(), 256, 4 << 20),
        missing=missing,
        hidden=hidden,
    )
    await server.start()
    server.open([bind(folder / "s", kind), *([more(server, audit)] if more is not None else [])])
    try:
        yield server, f"unix:{folder}/s"
    finally:
        await server.stop(drain_seconds, list)
        journal.close()
        audit.close()


async def call(target: str, method: Method, request: Any = None, **more: Any) -> Any:
    """One call of any shape; the answer, or the first answer of a stream. Raises grpc.aio.AioRpcError."""
    if request is None:
        request = filled(method)
    async with grpc.aio.insecure_channel(target, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        return await call_on(channel, method, request, **more)


async def call_on(channel: grpc.aio.Channel, method: Method, request: Any, **more: Any) -> Any:
    """The same on a channel."""
    codec: Any = {
        "request_serializer": method.request.SerializeToString,
        "response_deserializer": method.response.FromString,
    }
    more.setdefault("timeout", 20)
    if method.uploads and method.streams:
        both: Any = channel.stream_stream(method.path, **codec)(iter([request]), **more)
        answer = await both.read()
        return None if answer is grpc.aio.EOF else answer
    if method.uploads:
        return await channel.stream_unary(method.path, **codec)(iter([request]), **more)
    if method.streams:
        stream: Any = channel.unary_stream(method.path, **codec)(request, **more)
        answer = await stream.read()
        if answer is grpc.aio.EOF:
            return None
        return answer
    return await channel.unary_unary(method.path, **codec)(request, **more)


def filled(method: Method) -> Any:
    """A request that passes what the frame checks."""
    request: Any = method.request()
    if "confirm" in method.fields:
        request.confirm = True
    return request


def by_name(name: str) -> Method:
    """A method by "Service/Name"."""
    return next(method for method in METHODS if method.name == name)


def details(error: grpc.aio.AioRpcError) -> tuple[error_details_pb2.ErrorInfo, status_pb2.Status]:
    """ErrorInfo and Status of a failed call."""
    blobs = [value for key, value in error.trailing_metadata() or () if key == "grpc-status-details-bin"]
    assert len(blobs) == 1, error
    assert isinstance(blobs[0], bytes)
    status = status_pb2.Status.FromString(blobs[0])
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return info, status
