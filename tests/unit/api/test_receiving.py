"""Requests that do not come, come late, or are too much."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.message import Message

from sev.v1 import guest_pb2, host_pb2
from sevd.access.accounts import GateLimits
from sevd.api import receiving
from sevd.api.rules import FOREIGN
from sevd.api.server import Server, ServerLimits
from tests.support.serving import by_name, call_on, details, serving

HOST, GET, WATCH = by_name("HostService/GetHost"), by_name("GuestService/GetGuest"), by_name("HostService/WatchEvents")
LOAD, RUN = by_name("GuestService/LoadGuestMemory"), by_name("GuestService/RunGuest")
WRITE = by_name("GuestService/WriteGuestMemory")


def connect(target: str) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(target, options=[("grpc.use_local_subchannel_pool", 1)])


async def uploading(caller: Any, chunks: AsyncIterator[bytes], trace: Any) -> Message:
    total = 0
    async for raw in chunks:
        total += len(raw)
    return guest_pb2.LoadGuestMemoryResponse(loaded_bytes=total)


async def idle(server: Server) -> bool:
    """Whether nothing is counted any more, within a second."""
    for _ in range(100):
        if not any(one.calls or one.held for one in server.gate.accounts):
            return server.frame.in_flight == 0
        await asyncio.sleep(0.01)
    return False


def limit_of(error: grpc.aio.AioRpcError) -> tuple[str, str]:
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    metadata = details(error)[0].metadata
    return metadata["limit"], metadata["value"]


@pytest.mark.parametrize("path", [*(one.path for one in (HOST, GET, WATCH, LOAD, RUN)), *FOREIGN])
async def test_a_request_that_does_not_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setattr(receiving, "REQUEST_SECONDS", 0.2)
    behaviours = {"load_guest_memory": uploading}
    async with serving(tmp_path, behaviours=behaviours) as (server, target), connect(target) as channel:
        # As a stream: the headers go out and no message follows.
        silent: Any = channel.stream_stream(path)(timeout=10)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await silent.read()
        assert limit_of(caught.value) == ("request_seconds", "0")
        assert await idle(server)
        await call_on(channel, HOST, host_pb2.GetHostRequest())


@pytest.mark.parametrize("method", [HOST, GET, WATCH], ids=lambda one: one.name)
async def test_a_call_that_ends_without_a_request(tmp_path: Path, method: Any) -> None:
    async with serving(tmp_path) as (server, target), connect(target) as channel:
        empty: Any = channel.stream_stream(method.path)(timeout=10)
        await empty.done_writing()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await empty.read()
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert details(caught.value)[0].reason == "MALFORMED"
        assert await idle(server)


async def test_calls_without_a_request_count_as_calls(tmp_path: Path) -> None:
    limits = ServerLimits(GateLimits(), 3, 4 << 20)
    async with serving(tmp_path, limits=limits) as (server, target), connect(target) as channel:
        silent: list[Any] = [channel.stream_stream(method.path)(timeout=10) for method in (HOST, GET, WATCH)]
        await asyncio.gather(*[one.wait_for_connection() for one in silent])
        await asyncio.sleep(0.2)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call_on(channel, HOST, host_pb2.GetHostRequest())
        assert limit_of(caught.value) == ("calls_per_identity", "3")
        for one in silent:
            one.cancel()
        assert await idle(server)
        await call_on(channel, HOST, host_pb2.GetHostRequest())


async def test_an_upload_that_stalls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiving, "IDLE_SECONDS", 0.3)
    behaviours = {"load_guest_memory": uploading}
    async with serving(tmp_path, behaviours=behaviours) as (server, target), connect(target) as channel:
        upload: Any = channel.stream_unary(LOAD.path)(timeout=10)
        for _ in range(4):
            await upload.write(b"x")
            await asyncio.sleep(0.1)
        assert not upload.done()  # it goes on
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await upload
        assert limit_of(caught.value)[0] == "upload_idle_seconds"
        assert await idle(server)


async def test_an_upload_without_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiving, "UPLOAD_SECONDS", 0.5)
    behaviours = {"load_guest_memory": uploading}
    async with serving(tmp_path, behaviours=behaviours) as (server, target), connect(target) as channel:
        upload: Any = channel.stream_unary(LOAD.path)(timeout=10)
        for _ in range(20):  # and then nothing: what is written while the call ends confuses gRPC's client
            await upload.write(b"x")
            await asyncio.sleep(0.01)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await upload
        assert limit_of(caught.value)[0] == "upload_seconds"
        assert await idle(server)


async def test_pauses_of_a_conversation_mean_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiving, "IDLE_SECONDS", 0.1)
    monkeypatch.setattr(receiving, "REQUEST_SECONDS", 0.1)
    async with serving(tmp_path) as (server, target), connect(target) as channel:
        run: Any = channel.stream_stream(RUN.path)(timeout=10)
        await run.write(b"")
        await run.read()
        await asyncio.sleep(0.4)
        await run.write(b"")
        await run.read()
        assert [one.calls for one in server.gate.accounts] == [1]
        await run.done_writing()
        assert await run.read() is grpc.aio.EOF
        assert await idle(server)


async def test_bytes_in_flight(tmp_path: Path) -> None:
    go = asyncio.Event()

    async def slow(caller: Any, request: Any) -> Message:
        await go.wait()
        return guest_pb2.WriteGuestMemoryResponse()

    limits = ServerLimits(GateLimits(), 256, 4 << 20, 1 << 20)
    request = guest_pb2.WriteGuestMemoryRequest(data=bytes(600_000))
    behaviours = {"write_guest_memory": slow}
    async with serving(tmp_path, behaviours=behaviours, limits=limits) as (server, target), connect(target) as channel:
        first = asyncio.ensure_future(call_on(channel, WRITE, request))
        await asyncio.sleep(0.3)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call_on(channel, WRITE, request)
        assert limit_of(caught.value) == ("bytes_in_flight", str(1 << 20))
        await call_on(channel, HOST, host_pb2.GetHostRequest())
        go.set()
        await first
        await call_on(channel, WRITE, request)
        assert await idle(server)


async def test_an_upload_holds_no_more_than_a_message(tmp_path: Path) -> None:
    limits = ServerLimits(GateLimits(), 256, 4 << 20, 1 << 20)
    behaviours = {"load_guest_memory": uploading}
    async with serving(tmp_path, behaviours=behaviours, limits=limits) as (server, target), connect(target) as channel:
        upload: Any = channel.stream_unary(LOAD.path)(timeout=20)
        for _ in range(16):
            await upload.write(bytes(1 << 20))
        await upload.done_writing()
        assert guest_pb2.LoadGuestMemoryResponse.FromString(await upload).loaded_bytes == 16 << 20
        assert await idle(server)


async def test_an_answer_that_is_not_taken_is_still_a_call(tmp_path: Path) -> None:
    async def many(caller: Any, request: Any) -> AsyncIterator[Message]:
        while True:
            yield host_pb2.WatchEventsResponse(event=host_pb2.Event(message="x" * 100_000))

    async with serving(tmp_path, behaviours={"watch_events": many}) as (server, target), connect(target) as channel:
        stub: Any = channel.unary_stream(WATCH.path)
        watch = stub(b"", timeout=20)
        await watch.read()
        await asyncio.sleep(0.3)
        assert [one.calls for one in server.gate.accounts] == [1]
        watch.cancel()
        assert await idle(server)
