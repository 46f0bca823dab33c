"""The accept loop in front of a backend that tells the name it was dialled from."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import re
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from sevd.access.accounts import GateLimits
from sevd.access.frames import PREFACE
from sevd.access.gate import Gate
from sevd.access.listeners import ADMIN, CLIENT, MONITOR, Kind, bind
from sevd.access.policy import AccessPolicy
from sevd.access.roles import Role
from sevd.audit import Audit

ME = os.geteuid()


class Backend:
    """Waits for the preface, says hello, then echoes; keeps the name of its peer as gRPC would report it."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.ended: list[asyncio.Event] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ended = asyncio.Event()
        self.ended.append(ended)
        name = writer.get_extra_info("peername")
        self.names.append("unix-abstract:" + bytes(name)[1:].decode())
        await reader.readexactly(len(PREFACE))
        writer.write(b"hello")
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1024):
                writer.write(data)
        await hang_up(writer)
        ended.set()


@contextlib.asynccontextmanager
async def gate(
    folder: Path, *, role: Role | None = Role.LAUNCHER, kind: Kind = CLIENT, limits: GateLimits | None = None
) -> AsyncIterator[tuple[Gate, Backend]]:
    backend = Backend()
    server = await asyncio.start_unix_server(backend.serve, folder / "b")
    audit = Audit(folder / "audit.jsonl")
    users = {} if role is None else {ME: role}
    out = Gate(str(folder / "b"), AccessPolicy(users), audit, limits)
    out.open([bind(folder / "s", kind)])
    try:
        yield out, backend
    finally:
        out.close()
        server.close()
        audit.close()
        for writer in CLIENTS:
            await hang_up(writer)
        CLIENTS.clear()
        for ended in backend.ended:
            await asyncio.wait_for(ended.wait(), 5)


CLIENTS: list[asyncio.StreamWriter] = []


async def connect(folder: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_unix_connection(folder / "s")
    CLIENTS.append(writer)
    writer.write(PREFACE)
    return reader, writer


async def heard(reader: asyncio.StreamReader) -> bytes:
    """The greeting; nothing if the connection was ended."""
    try:
        return await reader.read(5)
    except ConnectionError:
        return b""


async def hang_up(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "audit.jsonl").read_text().splitlines()]


async def test_the_backend_s_peer_name_finds_the_caller(tmp_path: Path) -> None:
    async with gate(tmp_path) as (out, backend):
        reader, writer = await connect(tmp_path)
        assert await reader.readexactly(5) == b"hello"
        connection = out.connections[backend.names[0]]
        caller = connection.caller
        assert (caller.uid, caller.pid, caller.role, caller.owner) == (ME, os.getpid(), Role.LAUNCHER, f"uid:{ME}")
        writer.write(b"ping")
        assert await reader.readexactly(4) == b"ping"
        before = connection.open
        writer.close()
        assert await out.drained(5)
        assert (before, connection.open) == (True, False)
        assert out.connections == {}


async def test_names_cannot_be_guessed_and_say_nothing(tmp_path: Path) -> None:
    async with gate(tmp_path) as (_, backend):
        for _ in range(3):
            reader, writer = await connect(tmp_path)
            await reader.readexactly(5)
            writer.close()
        assert len(set(backend.names)) == 3
        for name in backend.names:
            assert re.fullmatch(r"unix-abstract:sevd-[0-9a-f]{32}-\d+", name)
            assert str(os.getpid()) not in name.split("-")


@pytest.mark.parametrize(
    ("role", "kind", "granted"),
    [
        (Role.ADMIN, CLIENT, Role.ADMIN),
        (Role.ADMIN, MONITOR, Role.VIEWER),
        (Role.ADMIN, ADMIN, Role.ADMIN),
        (Role.LAUNCHER, MONITOR, Role.VIEWER),
        (Role.LAUNCHER, ADMIN, None),
        (Role.VIEWER, CLIENT, Role.VIEWER),
        (None, CLIENT, None),
    ],
)
async def test_role_and_socket_together_decide(
    tmp_path: Path, role: Role | None, kind: Kind, granted: Role | None
) -> None:
    async with gate(tmp_path, role=role, kind=kind) as (out, backend):
        reader, writer = await connect(tmp_path)
        greeting = await heard(reader)
        if granted is None:
            assert greeting == b""
            (record,) = records(tmp_path)
            assert (record["result"], record["reason"], record["socket"]) == ("refused", "NOT_PERMITTED", kind.name)
            assert record["caller"]["uid"] == ME
            assert backend.names == []
        else:
            assert greeting == b"hello"
            assert out.connections[backend.names[0]].caller.role is granted
        writer.close()


@pytest.mark.parametrize(
    ("limits", "name"),
    [(GateLimits(2, 100), "connections"), (GateLimits(100, 2), "connections_per_identity")],
    ids=["in all", "per identity"],
)
async def test_connections_are_limited(tmp_path: Path, limits: GateLimits, name: str) -> None:
    async with gate(tmp_path, limits=limits) as (out, _):
        streams = [await connect(tmp_path) for _ in range(2)]
        for reader, _ in streams:
            await reader.readexactly(5)
        reader, writer = await connect(tmp_path)
        assert await heard(reader) == b""
        writer.close()
        assert records(tmp_path)[-1]["reason"] == "LIMIT_REACHED"
        streams.pop()[1].close()
        for _ in range(100):
            if len(out.connections) == 1:
                break
            await asyncio.sleep(0.01)
        reader, writer = await connect(tmp_path)
        assert await reader.readexactly(5) == b"hello"
        for each in (writer, streams[0][1]):
            each.close()


async def test_at_least_128_connections_of_one_identity(tmp_path: Path) -> None:
    async with gate(tmp_path) as (out, _):
        streams = await asyncio.gather(*[connect(tmp_path) for _ in range(128)])
        assert {await reader.readexactly(5) for reader, _ in streams} == {b"hello"}
        (account,) = {id(one.account): one.account for one in out.connections.values()}.values()
        assert account.connections == 128
        for _, writer in streams:
            writer.close()
        assert await out.drained(5)
        assert account.connections == 0


async def test_a_new_policy_holds_for_open_connections(tmp_path: Path) -> None:
    async with gate(tmp_path) as (out, backend):
        reader, writer = await connect(tmp_path)
        await reader.readexactly(5)
        out.replace(AccessPolicy({ME: Role.VIEWER}), GateLimits())
        assert out.connections[backend.names[0]].caller.role is Role.VIEWER
        out.replace(AccessPolicy(), GateLimits())
        assert await reader.read() == b""
        assert out.connections == {}
        writer.close()


async def test_without_descriptors_callers_wait_and_are_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = socket.socket.accept
    failures = [1, 1]

    def accept(self: socket.socket) -> Any:
        if failures:
            failures.pop()
            raise OSError(24, os.strerror(24))
        return real(self)

    monkeypatch.setattr(socket.socket, "accept", accept)
    async with gate(tmp_path):
        reader, writer = await connect(tmp_path)
        assert await asyncio.wait_for(reader.readexactly(5), 5) == b"hello"
        writer.close()
    assert "cannot accept" in caplog.text


async def test_nothing_is_accepted_after_the_stop_and_what_is_open_goes_on(tmp_path: Path) -> None:
    async with gate(tmp_path) as (out, _):
        reader, writer = await connect(tmp_path)
        await reader.readexactly(5)
        out.stop_accepting()
        with pytest.raises(OSError, match="No such file"):
            await connect(tmp_path)
        writer.write(b"still")
        assert await reader.readexactly(5) == b"still"
        assert not await out.drained(0.05)
        writer.close()
        assert await out.drained(5)


async def test_a_backend_that_is_gone_ends_the_connection(tmp_path: Path) -> None:
    async with gate(tmp_path) as (out, _):
        os.unlink(tmp_path / "b")
        reader, writer = await connect(tmp_path)
        assert await heard(reader) == b""
        writer.close()
        assert out.connections == {}


async def test_who_waits_for_the_server_can_still_be_let_go(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as before:
        server.bind(os.fspath(tmp_path / "b"))
        server.listen(0)
        before.connect(os.fspath(tmp_path / "b"))  # and nobody else has room
        audit = Audit(tmp_path / "audit.jsonl")
        out = Gate(os.fspath(tmp_path / "b"), AccessPolicy({ME: Role.LAUNCHER}), audit)
        out.open([bind(tmp_path / "s", CLIENT)])
        try:
            reader, writer = await connect(tmp_path)
            await asyncio.sleep(0.1)
            assert len(out.connections) == 1
            out.replace(AccessPolicy(), GateLimits())
            assert out.connections == {}
            assert await heard(reader) == b""
            await hang_up(writer)
        finally:
            out.close()
            audit.close()
            CLIENTS.clear()


async def test_without_descriptors_for_the_server_callers_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with gate(tmp_path) as (out, _):
        real, failures = out._dial, [errno.EMFILE, errno.ENFILE]

        def dial(name: str) -> socket.socket:
            if failures:
                number = failures.pop()
                raise OSError(number, os.strerror(number))
            return real(name)

        monkeypatch.setattr(out, "_dial", dial)
        reader, writer = await connect(tmp_path)
        assert await asyncio.wait_for(reader.readexactly(5), 5) == b"hello"
        assert not failures
        writer.close()
