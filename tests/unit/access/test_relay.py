"""Bytes both ways, ends, back pressure, and splicing where the kernel lets it."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from typing import Any

import pytest

from sevd.access import relay as module
from sevd.access.relay import BULK_BYTES
from tests.support.relayed import Joined


def join() -> Joined[socket.socket]:
    """A client and a server that do not block."""
    client, left = socket.socketpair()
    joined = Joined(client, left)
    for one in (client, left, joined.server):
        one.setblocking(False)
    return joined


async def read(source: socket.socket, size: int) -> bytes:
    """Exactly so many bytes, or what came before the end."""
    out = bytearray()
    while len(out) < size:
        piece = await asyncio.get_running_loop().sock_recv(source, size - len(out))
        if not piece:
            break
        out += piece
    return bytes(out)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_what_one_says_the_other_hears() -> None:
    joined, loop = join(), asyncio.get_running_loop()
    await loop.sock_sendall(joined.client, b"question")
    assert await read(joined.server, 8) == b"question"
    await loop.sock_sendall(joined.server, b"answer")
    assert await read(joined.client, 6) == b"answer"
    await joined.finish()


async def test_a_half_close_is_handed_on_and_the_answer_still_comes() -> None:
    joined, loop = join(), asyncio.get_running_loop()
    await loop.sock_sendall(joined.client, b"last words")
    joined.client.shutdown(socket.SHUT_WR)
    assert await read(joined.server, 100) == b"last words"
    await loop.sock_sendall(joined.server, b"and the answer")
    assert await read(joined.client, 14) == b"and the answer"
    assert joined.ended == 0
    await joined.finish()


async def test_a_client_that_stays_after_the_server_is_gone_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LINGER_SECONDS", 0.05)
    joined = join()
    joined.server.close()
    assert await read(joined.client, 1) == b""
    await asyncio.sleep(0.2)
    assert joined.ended == 1
    joined.client.close()


def refuse_splice(number: int) -> Callable[..., int]:
    def splice(*_: Any, **__: Any) -> int:
        raise OSError(number, os.strerror(number))

    return splice


def refuse_second_half(number: int) -> Callable[..., int]:
    real = os.splice
    calls = []

    def splice(source: int, target: int, count: int, **more: Any) -> int:
        calls.append(source)
        if len(calls) % 2 == 0:
            raise OSError(number, os.strerror(number))
        return real(source, target, count, **more)

    return splice


def no_pipe(*_: Any) -> tuple[int, int]:
    raise OSError(24, os.strerror(24))


@pytest.mark.parametrize(
    ("name", "replacement"),
    [
        ("", None),
        ("splice", refuse_splice(1)),
        ("splice", refuse_splice(22)),
        ("splice", refuse_second_half(22)),
        ("pipe2", no_pipe),
    ],
    ids=["spliced", "filter refuses", "kernel refuses", "kernel refuses the target", "no descriptor"],
)
async def test_bulk_arrives_whole_whatever_the_kernel_offers(
    monkeypatch: pytest.MonkeyPatch, name: str, replacement: Any
) -> None:
    if name:
        monkeypatch.setattr(os, name, replacement)
    before = descriptors()
    joined, loop = join(), asyncio.get_running_loop()
    data = os.urandom(8 << 20)
    sending = asyncio.ensure_future(loop.sock_sendall(joined.client, data))
    assert await read(joined.server, len(data)) == data
    await sending
    await loop.sock_sendall(joined.client, b"small again")
    assert await read(joined.server, 11) == b"small again"
    await joined.finish()
    assert descriptors() == before


async def test_a_slow_reader_stops_its_writer_not_the_other_way() -> None:
    joined, loop = join(), asyncio.get_running_loop()
    data = os.urandom(16 << 20)
    sending = asyncio.ensure_future(loop.sock_sendall(joined.client, data))
    await asyncio.sleep(0.2)
    assert not sending.done()
    await loop.sock_sendall(joined.server, b"meanwhile")
    assert await read(joined.client, 9) == b"meanwhile"
    assert await read(joined.server, len(data)) == data
    await sending
    await joined.finish()


async def test_a_quiet_direction_gives_its_pipe_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUIET_TRANSFERS", 4)
    joined, loop = join(), asyncio.get_running_loop()
    before = descriptors()
    data = bytes(4 * BULK_BYTES)
    for _ in range(3):
        sending = asyncio.ensure_future(loop.sock_sendall(joined.client, data))
        assert await read(joined.server, len(data)) == data
        await sending
    assert descriptors() == before + 2
    for _ in range(8):
        await loop.sock_sendall(joined.client, b"x")
        assert await read(joined.server, 1) == b"x"
    assert descriptors() == before
    await joined.finish()


async def test_a_reset_ends_both() -> None:
    joined, loop = join(), asyncio.get_running_loop()
    await loop.sock_sendall(joined.client, b"unread")
    await asyncio.sleep(0.05)
    joined.server.close()
    joined.client.close()
    await asyncio.sleep(0.2)
    assert joined.ended == 1


async def test_closing_ends_at_once_and_once() -> None:
    joined = join()
    joined.relay.close()
    joined.relay.close()
    assert joined.ended == 1
    joined.client.close()
    joined.server.close()
