"""Roles and limits of one identity, changed while its connection is open."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from sev.v1 import guest_pb2, host_pb2
from sevd.access.accounts import GateLimits
from sevd.access.identities import parse
from sevd.access.policy import AccessPolicy
from sevd.access.roles import Role
from sevd.api.server import ServerLimits
from tests.support.serving import by_name, call_on, details, serving

HOST, WRITE = by_name("HostService/GetHost"), by_name("GuestService/WriteGuestMemory")
COMMON = ServerLimits(GateLimits(), 256, 4 << 20)
ME = os.geteuid()


def connect(target: str) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(target, options=[("grpc.use_local_subchannel_pool", 1)])


def policy(role: str, **limits: int) -> AccessPolicy:
    """This user, by a table of its own."""
    (table,) = parse([{"match": f"uid:{ME}", "role": role, **limits}], "test")
    return AccessPolicy(uids={ME: table})


async def test_a_reload_changes_limits_and_role_of_open_connections(tmp_path: Path) -> None:
    request = guest_pb2.WriteGuestMemoryRequest(data=bytes(100_000))
    async with serving(tmp_path, role=Role.LAUNCHER) as (server, target), connect(target) as channel:
        await call_on(channel, WRITE, request)
        (connection,) = server.gate.connections.values()
        server.reload(policy("launcher", bytes_in_flight=65536), COMMON)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call_on(channel, WRITE, request)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        info, status = details(caught.value)
        assert (info.metadata["limit"], info.metadata["value"]) == ("bytes_in_flight", "65536")
        assert [detail.type_url.rpartition(".")[2] for detail in status.details] == ["ErrorInfo", "RetryInfo"]
        server.reload(policy("launcher", bytes_in_flight=200_000), COMMON)
        await call_on(channel, WRITE, request)
        server.reload(policy("viewer"), COMMON)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call_on(channel, WRITE, request)
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
        await call_on(channel, HOST, host_pb2.GetHostRequest())
        assert list(server.gate.connections.values()) == [connection]
        server.reload(policy("none"), COMMON)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call_on(channel, HOST, host_pb2.GetHostRequest())
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_an_identity_that_gets_another_name_takes_its_calls_along(tmp_path: Path) -> None:
    async with serving(tmp_path, role=Role.LAUNCHER) as (server, target), connect(target) as channel:
        waiting: Any = channel.stream_stream(HOST.path)()
        await waiting.wait_for_connection()
        for _ in range(100):
            await call_on(channel, HOST, host_pb2.GetHostRequest())
            if any(one.calls for one in server.gate.accounts):
                break
        (connection,) = server.gate.connections.values()
        connection.peer.told_unit = "a.service"  # type: ignore[union-attr]
        (table,) = parse([{"match": "unit:a.service", "role": "viewer"}], "test")
        server.reload(AccessPolicy(units={"a.service": table}), COMMON)
        assert [(one.owner, one.connections, one.calls) for one in server.gate.accounts] == [("unit:a.service", 1, 1)]
        waiting.cancel()
        for _ in range(100):
            await call_on(channel, HOST, host_pb2.GetHostRequest())
            if not connection.calls:
                break
        assert [(one.owner, one.calls) for one in server.gate.accounts] == [("unit:a.service", 0)]
