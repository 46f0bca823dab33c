"""From connect to relay: the preface, and a caller's bytes as his turn comes."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from types import SimpleNamespace

import pytest

from sevd.access.accounts import Account
from sevd.access.frames import PREFACE
from sevd.access.greeting import Greeting
from sevd.access.inbound import Inbound
from sevd.access.relay import Relay
from sevd.access.turns import LONE_CALLS, Turns
from tests.unit.access.test_frames import calls


class Greeted:
    """What became of a greeting."""

    def __init__(self, seconds: float = 5.0, turn: Callable[[], float] = lambda: 0.0) -> None:
        self.client, server = socket.socketpair()
        server.setblocking(False)
        self.server = server
        self.first: bytes | None = None
        self.lost: str | None = None
        loop = asyncio.get_running_loop()
        self.greeting = Greeting(loop, server, self._done, self._lost, turn=turn, seconds=seconds)

    def _done(self, first: bytes) -> None:
        self.first = first

    def _lost(self, why: str) -> None:
        self.lost = why

    def close(self) -> None:
        self.client.close()
        self.server.close()


@pytest.mark.parametrize("cut", [0, 1, 10, 23, 24, 30])
async def test_the_preface_and_what_comes_with_it(cut: int) -> None:
    one = Greeted()
    data = PREFACE + b"more of it"
    one.client.sendall(data[:cut])
    await asyncio.sleep(0.01)
    one.client.sendall(data[cut:])
    await asyncio.sleep(0.01)
    assert one.lost is None
    assert one.first is not None
    assert data.startswith(one.first)
    assert len(one.first) >= len(PREFACE)
    one.greeting.close()  # is nobody's any more
    assert one.lost is None
    one.close()


@pytest.mark.parametrize(
    ("data", "why"),
    [
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", "it does not begin as HTTP/2 does", id="another protocol"),
        pytest.param(PREFACE[:23] + b"x", "it does not begin as HTTP/2 does", id="a wrong last byte"),
        pytest.param(PREFACE[:23], "it says nothing", id="half of it"),
        pytest.param(b"", "it says nothing", id="nothing"),
    ],
)
async def test_who_is_let_go(data: bytes, why: str) -> None:
    one = Greeted(seconds=0.1)
    one.client.sendall(data)
    await asyncio.sleep(0.2)
    assert (one.first, one.lost) == (None, why)
    assert one.client.recv(1) == b""
    one.close()


async def test_a_connection_waits_for_its_turn() -> None:
    waits = [0.03, 0.03, 0.0]
    one = Greeted(turn=lambda: waits.pop(0))
    one.client.sendall(PREFACE)
    await asyncio.sleep(0.02)
    assert one.first is None
    await asyncio.sleep(0.1)
    found: bytes | None = one.greeting._got
    assert found == PREFACE
    assert waits == []
    one.close()


async def test_who_waits_can_be_let_go() -> None:
    one = Greeted(turn=lambda: 0.02)
    one.client.sendall(PREFACE)
    await asyncio.sleep(0.03)
    one.greeting.close()
    await asyncio.sleep(0.05)
    assert (one.first, one.lost) == (None, "")
    assert one.client.recv(1) == b""
    one.close()


async def test_who_goes_away() -> None:
    one = Greeted()
    one.client.close()
    await asyncio.sleep(0.01)
    assert (one.first, one.lost) == (None, "")
    one.close()


class Arriving(Turns):
    """Every call is with its handler at once: there is no server that would say so."""

    def charge(self, account: Account, seconds: float, calls: int) -> None:
        super().charge(account, seconds, calls)
        account.arrived = account.begun


@asynccontextmanager
async def joined(turns: Turns, account: Account, first: bytes) -> AsyncIterator[tuple[socket.socket, socket.socket]]:
    """A caller's socket and the server's."""
    client, left = socket.socketpair()
    server, right = socket.socketpair()
    for one in (left, right, client, server):
        one.setblocking(False)
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    holder = SimpleNamespace(account=account)

    def inbound(relay: Relay) -> Inbound:
        return Inbound(loop, left, right, relay, first=first, turns=turns, holder=holder)

    relay = Relay(loop, left, right, ended.set, inbound)
    try:
        yield client, server
    finally:
        client.close()
        server.close()
        await asyncio.wait_for(ended.wait(), 10)
        relay.close()


async def read(sock: socket.socket, size: int) -> bytes:
    out = b""
    while len(out) < size:
        piece = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(sock, 1 << 20), 10)
        if not piece:
            break
        out += piece
    return out


async def test_everything_arrives_in_its_order() -> None:
    data = PREFACE + calls(20_000)
    async with joined(Arriving(), Account("uid:1"), data[:1000]) as (client, server):
        sending = asyncio.ensure_future(asyncio.get_running_loop().sock_sendall(client, data[1000:]))
        assert await read(server, len(data)) == data
        await sending
        server.send(b"answer")
        assert await read(client, 6) == b"answer"
        client.shutdown(socket.SHUT_WR)
        assert await read(server, 1) == b""
        server.send(b"and more")
        assert await read(client, 8) == b"and more"


async def test_a_server_that_is_slow_stops_its_caller() -> None:
    async with joined(Arriving(), Account("uid:1"), PREFACE) as (client, server):
        data, sent = calls(100_000), 0
        for _ in range(50):
            try:
                sent += client.send(data[sent:])
            except BlockingIOError:
                await asyncio.sleep(0.02)
        assert sent < len(data)
        assert await read(server, len(PREFACE) + sent) == PREFACE + data[:sent]


async def test_who_costs_much_waits_and_loses_nothing() -> None:
    turns, greedy = Arriving(), Account("uid:1")
    turns.allowance(Account("uid:2"))
    data = PREFACE + calls(500)
    async with joined(turns, greedy, data[:24]) as (client, server):
        begin = asyncio.get_running_loop().time()
        await asyncio.get_running_loop().sock_sendall(client, data[24:])
        assert await read(server, len(data)) == data
        assert asyncio.get_running_loop().time() - begin > 0.03  # 500 calls of at least 0.1 ms, at a share of the loop


async def test_calls_wait_for_those_before_them() -> None:
    account = Account("uid:1")
    data = PREFACE + calls(LONE_CALLS + 10)
    async with joined(Turns(), account, data) as (_, server):
        size = len(PREFACE + calls(LONE_CALLS))
        await read(server, size - 100)
        await asyncio.sleep(0.05)
        with suppress(BlockingIOError):
            assert len(server.recv(1 << 20)) <= 100
        assert account.begun == LONE_CALLS
        account.arrived = LONE_CALLS
        await asyncio.sleep(0.05)
        assert account.begun == LONE_CALLS + 10


async def test_a_server_that_is_gone_already() -> None:
    client, left = socket.socketpair()
    server, right = socket.socketpair()
    server.close()
    for one in (left, right):
        one.setblocking(False)
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    holder = SimpleNamespace(account=Account("uid:1"))

    def inbound(relay: Relay) -> Inbound:
        return Inbound(loop, left, right, relay, first=PREFACE, turns=Turns(), holder=holder)

    Relay(loop, left, right, ended.set, inbound)
    await asyncio.wait_for(ended.wait(), 5)
    assert client.recv(1) == b""
    client.close()
