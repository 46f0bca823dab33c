"""The relay with TLS on the client's side: bytes both ways, ends, back pressure, and nothing outside TLS."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from pathlib import Path
from typing import Any

from sevd.access import relay as relay_module
from sevd.access.relay import Relay
from sevd.access.tls_socket import TlsSocket
from tests.support.relayed import Joined
from tests.support.tls import Setup

MIB = 1 << 20


async def join(folder: Path) -> Joined[ssl.SSLSocket]:
    """Shakes hands, and puts a relay behind them."""
    setup = Setup(folder)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(setup.files.certificate, setup.files.key)
    server.num_tickets = 0
    client = setup.client(None)
    ours, theirs = socket.socketpair()
    ours.settimeout(10)
    theirs.settimeout(10)
    shaken = asyncio.to_thread(client.wrap_socket, ours, server_hostname="localhost")
    left, right = await asyncio.gather(asyncio.to_thread(server.wrap_socket, theirs, server_side=True), shaken)
    left.setblocking(False)
    joined = Joined(right, left, TlsSocket(left))
    joined.server.settimeout(10)
    return joined


def read(source: socket.socket, size: int) -> bytes:
    """Exactly so many bytes, or what came before the end."""
    out = bytearray()
    while len(out) < size:
        piece = source.recv(min(size - len(out), MIB))
        if not piece:
            break
        out += piece
    return bytes(out)


async def test_what_one_says_the_other_hears(tmp_path: Path) -> None:
    joined = await join(tmp_path)
    for size in (1, 100, 16384, 16385, 300_000):
        question, answer = os.urandom(size), os.urandom(size)
        heard = asyncio.to_thread(read, joined.server, size)
        assert (await asyncio.gather(heard, asyncio.to_thread(joined.client.sendall, question)))[0] == question
        heard = asyncio.to_thread(read, joined.client, size)
        assert (await asyncio.gather(heard, asyncio.to_thread(joined.server.sendall, answer)))[0] == answer
    await joined.finish()


async def test_bulk_both_ways_at_once(tmp_path: Path) -> None:
    setup, up, down = Setup(tmp_path), os.urandom(8 * MIB), os.urandom(8 * MIB)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(setup.files.certificate, setup.files.key)
    ours, theirs = socket.socketpair()
    theirs.settimeout(10)
    # One TLS connection may not be read and written by two threads at once, so the client is asyncio's.
    (reader, writer), left = await asyncio.gather(
        asyncio.open_connection(sock=ours, ssl=setup.client(None), server_hostname="localhost"),
        asyncio.to_thread(server.wrap_socket, theirs, server_side=True),
    )
    left.setblocking(False)
    right, plain = socket.socketpair()
    right.setblocking(False)
    ended = asyncio.Event()
    Relay(asyncio.get_running_loop(), TlsSocket(left), right, ended.set)
    writer.write(up)
    found = await asyncio.gather(
        asyncio.to_thread(read, plain, len(up)),
        reader.readexactly(len(down)),
        asyncio.to_thread(plain.sendall, down),
        writer.drain(),
    )
    assert (found[0], found[1]) == (up, down)
    plain.close()
    writer.close()
    await asyncio.wait_for(ended.wait(), 10)


async def test_a_slow_reader_stops_its_writer_and_nothing_piles_up(tmp_path: Path) -> None:
    joined, data = await join(tmp_path), os.urandom(16 * MIB)
    sending = asyncio.ensure_future(asyncio.to_thread(joined.client.sendall, data))
    await asyncio.sleep(0.3)
    assert not sending.done()
    directions: tuple[Any, ...] = joined.relay._directions
    waiting = [one._pending for one in directions if one._pending is not None]
    assert all(len(one) <= relay_module.BUFFER_BYTES for one in waiting)
    # The other way goes on meanwhile.
    joined.server.sendall(b"meanwhile")
    assert await asyncio.to_thread(read, joined.client, 9) == b"meanwhile"
    assert await asyncio.to_thread(read, joined.server, len(data)) == data
    await sending
    await joined.finish()


async def test_a_client_that_does_not_read_stops_the_server(tmp_path: Path) -> None:
    joined, data = await join(tmp_path), os.urandom(16 * MIB)
    sending = asyncio.ensure_future(asyncio.to_thread(joined.server.sendall, data))
    await asyncio.sleep(0.3)
    assert not sending.done()
    assert await asyncio.to_thread(read, joined.client, len(data)) == data
    await sending
    await joined.finish()


async def test_the_end_of_the_client_is_handed_on_and_the_answer_still_comes(tmp_path: Path) -> None:
    joined = await join(tmp_path)
    await asyncio.to_thread(joined.client.sendall, b"last words")
    joined.client.setblocking(False)
    with contextlib.suppress(ssl.SSLWantReadError):
        joined.client.unwrap()  # says close_notify, and has none yet
    joined.client.settimeout(10)
    assert await asyncio.to_thread(read, joined.server, 100) == b"last words"
    joined.server.sendall(b"and the answer")
    assert await asyncio.to_thread(read, joined.client, 14) == b"and the answer"
    await joined.finish()


async def test_the_end_of_the_server_is_said_in_tls(tmp_path: Path) -> None:
    joined = await join(tmp_path)
    joined.server.sendall(b"good bye")
    joined.server.close()
    # Without close_notify this would be an error.
    joined.client.suppress_ragged_eofs = False  # type: ignore[attr-defined]
    assert await asyncio.to_thread(read, joined.client, 100) == b"good bye"
    await joined.finish()


async def test_what_comes_after_the_end_of_tls_is_not_taken_for_content(tmp_path: Path) -> None:
    joined = await join(tmp_path)
    joined.server.shutdown(socket.SHUT_WR)
    assert await asyncio.to_thread(joined.client.recv, 1) == b""
    plain = await asyncio.to_thread(joined.client.unwrap)  # TLS is over for both; what follows is nobody's
    with contextlib.suppress(OSError):
        plain.sendall(b"outside TLS")
    await asyncio.sleep(0.1)
    with contextlib.suppress(OSError):
        plain.sendall(b"outside TLS")
    assert await asyncio.to_thread(read, joined.server, 1) == b""
    plain.close()
    await joined.finish()


async def test_bytes_that_are_no_record_end_the_connection(tmp_path: Path) -> None:
    joined = await join(tmp_path)
    socket.socket.sendall(joined.client, os.urandom(4096))
    assert await asyncio.to_thread(read, joined.server, 1) == b""
    await joined.finish()


async def test_a_reset_ends_both(tmp_path: Path) -> None:
    joined = await join(tmp_path)
    await asyncio.to_thread(joined.client.sendall, b"unread")
    await asyncio.sleep(0.05)
    await joined.finish()
