"""The frame around every call, over real sockets: roles, limits, request ids, errors, streams, stopping."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.message import Message

from sev.errors import FirmwareError, LimitReached, NotFound
from sev.v1 import guest_pb2, host_pb2, snp_platform_pb2
from sevd.access.accounts import GateLimits
from sevd.api.rules import UndeclaredMethod
from sevd.api.server import ServerLimits
from tests.support.serving import METHODS, SERVICES, EasySkin, by_name, call, call_on, details, filled, serving

COMMIT = by_name("SnpPlatformService/CommitSnp")
CREATE = by_name("GuestService/CreateGuest")
GET = by_name("GuestService/GetGuest")
HOST = by_name("HostService/GetHost")
WATCH = by_name("HostService/WatchEvents")


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "audit.jsonl").read_text().splitlines()]


def connect(target: str) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(target, options=[("grpc.use_local_subchannel_pool", 1)])


@pytest.mark.parametrize("method", [method for method in METHODS if method.destructive], ids=lambda one: one.name)
async def test_what_cannot_be_undone_needs_confirmation(tmp_path: Path, method: Any) -> None:
    async with serving(tmp_path) as (_, target):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(target, method, method.request())
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert details(caught.value)[0].reason == "CONFIRMATION_MISSING"
    assert records(tmp_path)[-1]["reason"] == "CONFIRMATION_MISSING"


async def test_device_calls_say_what_is_missing(tmp_path: Path) -> None:
    missing = ["There is no /dev/sev.", "Load ccp."]
    async with serving(tmp_path, missing=lambda service: missing) as (_, target), connect(target) as channel:
        for method in METHODS:
            if not method.needs_device:
                await call_on(channel, method, filled(method))
                continue
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call_on(channel, method, filled(method))
            assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION, method.name
            info, _ = details(caught.value)
            assert (info.reason, info.metadata["missing"]) == ("DEVICE_MISSING", "\n".join(missing))


async def test_errors_of_the_logic_arrive_whole(tmp_path: Path) -> None:
    async def refused(caller: Any, request: Any) -> Message:
        raise FirmwareError(7, command="SNP_LAUNCH_START", errno=5)

    async with serving(tmp_path, behaviours={"create_guest": refused}) as (_, target):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(target, CREATE, guest_pb2.CreateGuestRequest(request_id="abc"))
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    info, _ = details(caught.value)
    assert info.metadata["firmwareStatusName"] == "POLICY_FAILURE"
    assert info.metadata["requestId"] == "abc"
    record = records(tmp_path)[-1]
    assert (record["firmware_status"], record["errno"], record["request_id"]) == (7, 5, "abc")


async def test_a_bug_leaks_nothing_but_its_number(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def broken(caller: Any, request: Any) -> Message:
        raise RuntimeError("secret innards")

    async def broken_stream(caller: Any, request: Any) -> AsyncIterator[Message]:
        if request is not None:
            raise RuntimeError("secret innards")
        yield guest_pb2.WatchGuestsResponse()

    behaviours = {"get_guest": broken, "create_guest": broken, "watch_guests": broken_stream}
    async with serving(tmp_path, behaviours=behaviours) as (_, target):
        for method, request in (
            (GET, guest_pb2.GetGuestRequest()),
            (CREATE, guest_pb2.CreateGuestRequest(request_id="x")),
            (by_name("GuestService/WatchGuests"), guest_pb2.WatchGuestsRequest()),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(target, method, request)
            assert caught.value.code() is grpc.StatusCode.INTERNAL
            info, status = details(caught.value)
            assert "secret" not in str(status) + str(caught.value.details())
            assert "Traceback" not in str(status)
            assert info.metadata["incident"] in caplog.text
    assert "secret innards" in caplog.text


async def test_requests_that_are_none(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, target), connect(target) as channel:
        for method in METHODS:
            if method.uploads:
                continue
            make: Any = channel.unary_stream if method.streams else channel.unary_unary
            answer = make(method.path)(b"\xff\xff\xff\xff", timeout=10)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await (answer.read() if method.streams else answer)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT, method.name
            assert details(caught.value)[0].reason == "MALFORMED"


async def test_a_message_that_is_too_large_is_refused(tmp_path: Path) -> None:
    limits = ServerLimits(GateLimits(), 256, 1 << 16)
    async with serving(tmp_path, limits=limits) as (_, target):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(target, CREATE, guest_pb2.CreateGuestRequest(label="x" * (1 << 17)))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_an_unknown_method_is_unimplemented(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, target), connect(target) as channel:
        unknown: Any = channel.unary_unary("/sev.v1.HostService/Invented")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await unknown(b"", timeout=10)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_request_id_acts_once_and_comes_back(tmp_path: Path) -> None:
    times = []

    async def create(caller: Any, request: Any) -> Message:
        times.append(request.label)
        return guest_pb2.CreateGuestResponse(guest=guest_pb2.Guest(guest_id=f"guest-{len(times):04}"))

    request = guest_pb2.CreateGuestRequest(request_id="same", label="one")
    async with serving(tmp_path, behaviours={"create_guest": create}) as (_, target), connect(target) as channel:
        stub: Any = channel.unary_unary(CREATE.path)
        answers = []
        for _ in range(2):
            done = stub(request.SerializeToString(), timeout=10)
            answers.append(await done)
            assert ("sevd-request-id", "same") in list(await done.trailing_metadata())
        assert answers[0] == answers[1]
        other = guest_pb2.CreateGuestRequest(request_id="same", label="two")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub(other.SerializeToString(), timeout=10)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        trial = guest_pb2.CreateGuestRequest(request_id="same", label="three", validate_only=True)
        await stub(trial.SerializeToString(), timeout=10)
    assert times == ["one", "three"]
    assert [record.get("repeated", False) for record in records(tmp_path)][:2] == [False, True]


async def test_recorded_failures_come_back_as_they_were(tmp_path: Path) -> None:
    times = []

    async def create(caller: Any, request: Any) -> Message:
        times.append(1)
        raise LimitReached("no ASID is free", errno=16)

    request = guest_pb2.CreateGuestRequest(request_id="r")
    wires = []
    async with serving(tmp_path, behaviours={"create_guest": create}) as (_, target):
        for _ in range(2):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(target, CREATE, request)
            wires.append((caught.value.code(), caught.value.details(), details(caught.value)[1]))
    assert wires[0] == wires[1]
    assert wires[0][0] is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert times == [1]
    assert [record["reason"] for record in records(tmp_path)] == ["LIMIT_REACHED"] * 2


async def test_a_limit_that_has_passed_is_no_outcome(tmp_path: Path) -> None:
    times: list[int] = []

    async def create(caller: Any, request: Any) -> Message:
        times.append(1)
        if len(times) < 3:
            raise LimitReached("not yet", retry_after=0.1)
        return guest_pb2.CreateGuestResponse()

    request = guest_pb2.CreateGuestRequest(request_id="r")
    async with serving(tmp_path, behaviours={"create_guest": create}) as (_, target):
        for _ in range(2):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(target, CREATE, request)
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        await call(target, CREATE, request)
        await call(target, CREATE, request)
    assert len(times) == 3


async def test_every_change_and_no_plain_read_is_recorded(tmp_path: Path) -> None:
    async def unseen(caller: Any, request: Any) -> Message:
        raise NotFound("there is no such guest")

    async with serving(tmp_path, behaviours={"get_guest": unseen}) as (_, target), connect(target) as channel:
        for method in METHODS:
            if method is not GET:
                await call_on(channel, method, filled(method))
        with pytest.raises(grpc.aio.AioRpcError):
            await call_on(channel, GET, guest_pb2.GetGuestRequest(guest_id="guest-9999"))
    found = records(tmp_path)
    assert [one["method"] for one in found[:-1]] == [method.name for method in METHODS if method.mutating]
    assert found[-1]["target"] == "guest-9999"
    assert all(one["caller"]["uid"] == os.geteuid() and one["caller"]["role"] == "admin" for one in found)
    assert [one["sequence"] for one in found] == list(range(1, len(found) + 1))


async def test_reads_at_hand_skip_the_skin_and_follow_it(tmp_path: Path) -> None:
    skins = {service: EasySkin(service) for service in SERVICES}
    host = next(skin for service, skin in skins.items() if service.name == "HostService")
    host.kept["get_host"] = host_pb2.GetHostResponse(host=host_pb2.Host(product="kept")).SerializeToString()
    async with serving(tmp_path, skins=skins) as (_, target), connect(target) as channel:
        assert (await call_on(channel, HOST, host_pb2.GetHostRequest())).host.product == "kept"
        assert host.calls == []
        del host.kept["get_host"]
        assert (await call_on(channel, HOST, host_pb2.GetHostRequest())).host.product == ""
        assert [name for name, _ in host.calls] == ["get_host"]
    skins[next(one for one in skins if one.name == "HostService")].kept["get_host"] = b"\x00"
    other = tmp_path / "nobody"
    other.mkdir()
    async with serving(other, role=None, skins=skins) as (_, target):
        with pytest.raises(grpc.aio.AioRpcError):
            await call(target, HOST)


async def test_calls_in_flight_are_limited_per_identity(tmp_path: Path) -> None:
    go = asyncio.Event()

    async def slow(caller: Any, request: Any) -> Message:
        await go.wait()
        return guest_pb2.GetGuestResponse()

    limits = ServerLimits(GateLimits(), 3, 4 << 20)
    async with serving(tmp_path, behaviours={"get_guest": slow}, limits=limits) as (server, target):
        pending = [asyncio.ensure_future(call(target, GET)) for _ in range(3)]
        await asyncio.sleep(0.3)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(target, GET)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert details(caught.value)[0].metadata["limit"] == "calls_per_identity"
        go.set()
        await asyncio.gather(*pending)
        await call(target, GET)
        await asyncio.sleep(0.1)
        assert not any(one.account.calls for one in server.gate.connections.values())


async def test_idle_streams_do_not_starve_calls(tmp_path: Path) -> None:
    never = asyncio.Event()

    async def idle(caller: Any, request: Any) -> AsyncIterator[Message]:
        await never.wait()
        yield host_pb2.WatchEventsResponse()

    async def uploading(caller: Any, chunks: AsyncIterator[bytes], trace: Any) -> Message:
        async for _ in chunks:
            pass
        return guest_pb2.LoadGuestMemoryResponse()

    behaviours: dict[str, Any] = {"watch_events": idle, "load_guest_memory": uploading}
    async with serving(tmp_path, behaviours=behaviours) as (_, target), connect(target) as channel:
        watch: Any = channel.unary_stream(WATCH.path)
        streams: list[Any] = [watch(b"") for _ in range(60)]
        streams += [channel.stream_unary(by_name("GuestService/LoadGuestMemory").path)() for _ in range(60)]
        for stream in streams[60:]:
            await stream.write(b"")
        begin = asyncio.get_running_loop().time()
        for _ in range(10):
            await call(target, HOST)
        assert asyncio.get_running_loop().time() - begin < 5
        for stream in streams:
            stream.cancel()


async def test_stopping_waits_for_calls_and_ends_streams_as_unavailable(tmp_path: Path) -> None:
    ended = asyncio.Event()

    async def slow(caller: Any, request: Any) -> Message:
        await asyncio.sleep(0.5)
        return guest_pb2.GetGuestResponse()

    async def events(caller: Any, request: Any) -> AsyncIterator[Message]:
        yield host_pb2.WatchEventsResponse()
        await ended.wait()

    async with serving(tmp_path, behaviours={"get_guest": slow, "watch_events": events}) as (server, target):
        channel = connect(target)
        watch: Any = channel.unary_stream(WATCH.path)
        stream = watch(b"")
        await stream.read()
        running = asyncio.ensure_future(call(target, GET))
        await asyncio.sleep(0.2)

        async def end() -> None:
            ended.set()

        begin = asyncio.get_running_loop().time()
        await server.stop(10, lambda: [asyncio.ensure_future(end())])
        assert asyncio.get_running_loop().time() - begin < 5
        assert isinstance(await running, guest_pb2.GetGuestResponse)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream.read()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert not (tmp_path / "s").exists()
        await channel.close()


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x00" * 100,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 4000,
        b"\x16\x03\x01\x02\x00" + b"\x01" * 300,
        os.urandom(65536),
        b"",
    ],
    ids=["http1", "zeros", "preface only", "preface and junk", "tls", "random", "nothing"],
)
async def test_hostile_bytes_harm_nobody(tmp_path: Path, data: bytes) -> None:
    async with serving(tmp_path) as (server, target), connect(target) as channel:
        await call_on(channel, HOST, host_pb2.GetHostRequest())
        for _ in range(5):
            with socket.socket(socket.AF_UNIX) as raw:
                raw.setblocking(False)
                raw.connect(f"{tmp_path}/s")
                loop = asyncio.get_running_loop()
                try:
                    await asyncio.wait_for(loop.sock_sendall(raw, data), 2)
                    await asyncio.wait_for(loop.sock_recv(raw, 1 << 16), 0.2)
                except (TimeoutError, OSError):
                    pass
        assert isinstance(await call_on(channel, HOST, host_pb2.GetHostRequest()), host_pb2.GetHostResponse)
        for _ in range(50):
            if len(server.gate.connections) == 1:
                break
            await asyncio.sleep(0.1)
        assert len(server.gate.connections) == 1


async def test_a_skin_that_lacks_a_function_stops_the_start(tmp_path: Path) -> None:
    class Lacking:
        needs_device = True

        def cached(self, attribute: str) -> bytes | None:
            return None

    with pytest.raises(UndeclaredMethod, match="Lacking has no get_snp_status"):
        async with serving(
            tmp_path, skins={snp_platform_pb2.DESCRIPTOR.services_by_name["SnpPlatformService"]: Lacking()}
        ):
            pass
