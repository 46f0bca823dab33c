"""Reads that are answered from bytes at hand: they count like other calls."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc.aio

from sev.v1 import host_pb2
from tests.support.serving import EasySkin, by_name, serving

HOST = by_name("HostService/GetHost")
SERVICE = host_pb2.DESCRIPTOR.services_by_name["HostService"]


def skin(kept: bytes) -> EasySkin:
    """What has this answer at hand."""
    out = EasySkin(SERVICE)
    out.kept["get_host"] = kept
    return out


async def test_one_whose_caller_is_gone_is_forgotten(tmp_path: Path) -> None:
    async with (
        serving(tmp_path, skins={SERVICE: skin(b"kept")}) as (server, target),
        grpc.aio.insecure_channel(target) as channel,
    ):
        silent: Any = channel.stream_stream(HOST.path)(timeout=10)
        await silent.wait_for_connection()
        for _ in range(100):
            if any(one.calls for one in server.gate.accounts):
                break
            await asyncio.sleep(0.01)
        (connection,) = server.gate.connections.values()
        assert connection.account.calls == 1
        assert connection.relay is not None
        connection.relay.close()
        for _ in range(100):
            if not len(server.gate.accounts):
                break
            await asyncio.sleep(0.01)
        assert len(server.gate.accounts) == 0
        silent.cancel()


async def test_one_that_turns_out_slow_arrives_once(tmp_path: Path) -> None:
    service = skin(b"kept")
    async with (
        serving(tmp_path, skins={SERVICE: service}) as (server, target),
        grpc.aio.insecure_channel(target) as channel,
    ):
        through: Any = channel
        await through.unary_unary(HOST.path)(b"\xf8\x07\x01", timeout=10)  # a field that nobody knows
        assert [name for name, _ in service.calls] == ["get_host"]
        (account,) = server.gate.accounts
        assert (account.begun, account.arrived) == (1, 1)
