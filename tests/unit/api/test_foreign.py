"""Health and reflection: loaded when asked for, guarded like ours."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from sevd.access.accounts import GateLimits
from sevd.access.roles import Role
from sevd.api.rules import FOREIGN
from sevd.api.server import ServerLimits
from tests.support.serving import details, serving

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def ask(channel: grpc.aio.Channel, **question: Any) -> Any:
    """One question to reflection."""
    through: Any = channel
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(through)

    async def questions() -> AsyncIterator[Any]:
        yield reflection_pb2.ServerReflectionRequest(**question)

    return await stub.ServerReflectionInfo(questions(), timeout=10).read()


async def health(channel: grpc.aio.Channel, service: str = "") -> Any:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    return (await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)).status


async def test_health_tells_the_daemon_from_its_device(tmp_path: Path) -> None:
    missing = {"GuestService": ["no /dev/sev"]}

    def lacking(service: str) -> list[str]:
        return missing.get(service, [])

    async with (
        serving(tmp_path, role=Role.VIEWER, missing=lacking) as (_, target),
        grpc.aio.insecure_channel(target) as channel,
    ):
        assert await health(channel) == SERVING
        assert await health(channel, "sev.v1.HostService") == SERVING
        assert await health(channel, "sev.v1.GuestService") == NOT_SERVING
        missing.clear()
        assert await health(channel, "sev.v1.GuestService") == SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await health(channel, "sev.v1.Invented")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_health_can_be_watched_and_ends_not_serving(tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, target), grpc.aio.insecure_channel(target) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == SERVING
        stopping = asyncio.ensure_future(server.stop(1, list))
        assert (await watch.read()).status == NOT_SERVING
        watch.cancel()
        await stopping


async def test_reflection_lists_what_is_offered(tmp_path: Path) -> None:
    async with (
        serving(tmp_path, role=Role.VIEWER, hidden=["sev.v1.SimulatorService"]) as (_, target),
        grpc.aio.insecure_channel(target) as channel,
    ):
        answer = await ask(channel, list_services="")
    names = {service.name for service in answer.list_services_response.service}
    assert names == {
        "sev.v1.HostService",
        "sev.v1.SnpPlatformService",
        "sev.v1.SevPlatformService",
        "sev.v1.GuestService",
        "sev.v1.EndorsementService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }


@pytest.mark.parametrize("symbol", ["sev.v1.HostService", "sev.v1.HostService.GetHost", "sev.v1.Host"])
async def test_reflection_finds_services_methods_and_messages(tmp_path: Path, symbol: str) -> None:
    async with serving(tmp_path) as (_, target), grpc.aio.insecure_channel(target) as channel:
        answer = await ask(channel, file_containing_symbol=symbol)
        files = [
            descriptor_pb2.FileDescriptorProto.FromString(raw)
            for raw in answer.file_descriptor_response.file_descriptor_proto
        ]
        assert "sev/v1/host.proto" in {file.name for file in files}


@pytest.mark.parametrize("symbol", ["sev.v1.HostService.Invented", "sev.v1.Invented", "", "."])
async def test_reflection_says_what_it_does_not_find(tmp_path: Path, symbol: str) -> None:
    async with serving(tmp_path) as (_, target), grpc.aio.insecure_channel(target) as channel:
        answer = await ask(channel, file_containing_symbol=symbol)
        assert answer.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


async def test_foreign_calls_count_against_the_limit(tmp_path: Path) -> None:
    limits = ServerLimits(GateLimits(), 1, 4 << 20)
    async with serving(tmp_path, limits=limits) as (_, target), grpc.aio.insecure_channel(target) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask(channel, list_services="")
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        watch.cancel()


async def test_a_request_that_is_none_is_told_the_id_of_its_call_and_counted_once(tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, target), grpc.aio.insecure_channel(target) as channel:
        through: Any = channel
        call = through.unary_unary("/grpc.health.v1.Health/Check")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"\xff", metadata=(("x-request-id", "mine"),), timeout=10)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert details(caught.value)[0].metadata["requestId"] == "mine"
        (calls,) = (one for one in server.frame.tally.metrics() if one.name == "sevd_calls_total")
        counted = [(one.labels["code"], one.value) for one in calls.samples if "Health/Check" in one.labels["method"]]
        assert counted == [("INVALID_ARGUMENT", 1)]


def test_every_foreign_method_stands_in_the_table() -> None:
    for module in (health_pb2, reflection_pb2):
        for service in module.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                assert f"/{service.full_name}/{method.name}" in FOREIGN
