"""A caller that means harm, as a program of another user: `python hostile.py UID SOCKET SECONDS KIND SEED COUNT`.

Every kind goes on until its time is up and prints what it did as JSON. It runs at the lowest priority, so that what is
measured is what the daemon does, not what the machine does with two busy programs.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator

from tests.support import http2

DONE: Counter[str] = Counter()
LOAD, WATCH = "/sev.v1.GuestService/LoadGuestMemory", "/sev.v1.HostService/WatchEvents"
GET, RUN, HEALTH = "/sev.v1.HostService/GetHost", "/sev.v1.GuestService/RunGuest", "/grpc.health.v1.Health/Watch"


class Attack:
    """What one run knows."""

    def __init__(self, path: str, seconds: float, seed: int, count: int) -> None:
        self.path = path
        self.until = time.monotonic() + seconds
        self.chance = random.Random(seed)
        self.count = count
        self.kept: list[socket.socket] = []

    def going(self) -> bool:
        return time.monotonic() < self.until

    def connect(self, first: bytes = b"", *, keep: bool = False) -> socket.socket | None:
        """A connection with something said, if it is let in."""
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(1)
        try:
            sock.connect(self.path)
            sock.sendall(first)
        except OSError:
            DONE["refused"] += 1
            sock.close()
            return None
        DONE["connections"] += 1
        if keep:
            self.kept.append(sock)
        return sock

    def connections(self, first: bytes, most: int) -> list[socket.socket]:
        return [one for one in (self.connect(first) for _ in range(most)) if one is not None]


def say(sock: socket.socket, data: bytes) -> bool:
    """Sends what goes; False if the connection is gone or stuck."""
    try:
        sock.sendall(data)
    except OSError:
        return False
    DONE["bytes"] += len(data)
    with contextlib.suppress(OSError):
        sock.recv(65536, socket.MSG_DONTWAIT)
    return True


def again(attack: Attack, first: bytes, most: int, act: Callable[[socket.socket], bool]) -> None:
    """Acts on `most` connections in turns; one that is gone is opened again."""
    open_now: list[socket.socket] = []
    while attack.going():
        while len(open_now) < most and attack.going():
            sock = attack.connect(first)
            if sock is None:
                time.sleep(0.01)
                break
            open_now.append(sock)
        for sock in tuple(open_now):
            if not act(sock):
                DONE["lost"] += 1
                sock.close()
                open_now.remove(sock)


def crowd(attack: Attack) -> None:
    """Connections, as many as there can be, and more."""
    for _ in range(attack.count):
        if not attack.going():
            break
        attack.connect(http2.opening(), keep=True)
    while attack.going():
        if attack.connect() is None:
            time.sleep(0.001)


def half_open(attack: Attack) -> None:
    """Connections that never get to the point."""
    starts = (b"", http2.PREFACE[:1], http2.PREFACE[:20], http2.PREFACE, http2.opening()[:30])
    for number in range(attack.count):
        if not attack.going():
            break
        attack.connect(starts[number % len(starts)], keep=True)
    while attack.going():
        time.sleep(0.05)


def endless(attack: Attack) -> None:
    """Calls that never end, on many connections; and more all the time."""
    paths = (LOAD, WATCH, RUN, HEALTH, GET)
    streams: dict[socket.socket, int] = {}

    def act(sock: socket.socket) -> bool:
        stream = streams[sock] = streams.get(sock, -1) + 2
        DONE["calls"] += 1
        return say(sock, http2.request(paths[stream // 2 % len(paths)], stream) + http2.message(b"", stream, end=False))

    again(attack, http2.opening(), 64, act)


def huge(attack: Attack) -> None:
    """Messages that claim 4 GiB, and messages of almost 4 MiB that never end, each on a stream of its own."""
    part = b"\0" * (256 << 10)
    streams: dict[socket.socket, int] = {}

    def act(sock: socket.socket) -> bool:
        stream = streams[sock] = streams.get(sock, -1) + 2
        claim = 0xFFFFFFFF if stream % 4 == 1 else (4 << 20) - 100
        path = LOAD if stream % 8 < 4 else GET
        data = http2.request(path, stream) + http2.message(part, stream, claim=claim, end=False)
        return say(sock, data + http2.frame(http2.WINDOW_UPDATE, struct.pack(">I", 1 << 20)))

    again(attack, http2.opening(), 64, act)


def partial(attack: Attack) -> None:
    """Messages of almost 4 MiB, each short of its last bytes, as fast as the server gives room for them."""
    size = (4 << 20) - 100
    senders = [_Partial(sock, size) for sock in attack.connections(http2.opening(), 8)]
    while attack.going():
        for sender in senders:
            sender.go_on()
        time.sleep(0.0005)
    DONE["lost"] = sum(sender.lost for sender in senders)


class _Partial:
    """One connection: begins 32 calls and sends as much of each as flow control admits (RFC 9113, 5.2)."""

    def __init__(self, sock: socket.socket, size: int) -> None:
        self.sock = sock
        self.lost = False
        self._size = size
        self._window = 65535
        self._rooms = dict.fromkeys(range(1, 65, 2), 65535)
        self._sent = dict.fromkeys(self._rooms, 0)
        self._initial = 65535
        self._heard = b""
        self._out = b"".join(http2.request(LOAD, stream) for stream in self._rooms)
        sock.setblocking(False)

    def go_on(self) -> None:
        if self.lost:
            return
        try:
            self._hear()
            if not self._out:
                self._out = self._more()
            if self._out:
                sent = self.sock.send(self._out)
                DONE["bytes"] += sent
                self._out = self._out[sent:]
        except BlockingIOError:
            return
        except OSError:
            self.lost = True

    def _more(self) -> bytes:
        out = b""
        for stream, room in self._rooms.items():
            step = min(16384, room, self._window, self._size - self._sent[stream])
            if step <= 5:
                continue
            body = struct.pack(">BI", 0, self._size) + bytes(step - 5) if not self._sent[stream] else bytes(step)
            out += http2.frame(http2.DATA, body, stream=stream)
            self._sent[stream] += step
            self._rooms[stream] -= step
            self._window -= step
        return out

    def _hear(self) -> None:
        with contextlib.suppress(BlockingIOError):
            data = self.sock.recv(65536)
            if not data:
                raise ConnectionResetError
            self._heard += data
        while len(self._heard) >= 9:
            length, kind, flags = int.from_bytes(self._heard[:3], "big"), self._heard[3], self._heard[4]
            stream, payload = int.from_bytes(self._heard[5:9], "big"), self._heard[9 : 9 + length]
            if len(payload) < length:
                return
            self._heard = self._heard[9 + length :]
            if kind == http2.WINDOW_UPDATE:
                more = int.from_bytes(payload, "big")
                if stream:
                    self._rooms[stream] = self._rooms.get(stream, 0) + more
                else:
                    self._window += more
            elif kind == http2.SETTINGS and not flags & http2.ACK:
                for at in range(0, length, 6):
                    name, value = struct.unpack(">HI", payload[at : at + 6])
                    if name == http2.INITIAL_WINDOW_SIZE:
                        self._rooms = {one: room + value - self._initial for one, room in self._rooms.items()}
                        self._initial = value
                self._out += http2.frame(http2.SETTINGS, flags=http2.ACK)
            elif kind == http2.PING and not flags & http2.ACK:
                self._out += http2.frame(http2.PING, payload, flags=http2.ACK)


def slow_reader(attack: Attack) -> None:
    """Asks and never reads: the answers have no window to go to, or nobody who takes them from the socket."""
    streams: dict[socket.socket, int] = {}

    def act(sock: socket.socket) -> bool:
        stream = streams[sock] = streams.get(sock, -1) + 2
        with contextlib.suppress(BlockingIOError):
            sock.setblocking(False)
            try:
                DONE["bytes"] += sock.send(http2.call(GET if stream % 4 == 1 else WATCH, stream))
            except BlockingIOError:
                raise
            except OSError:
                return False
        return True

    for window in (0, 1 << 30):
        attack.kept += attack.connections(http2.opening(window=window), 32)
    while attack.going():
        for sock in attack.kept:
            act(sock)
        time.sleep(0.001)


def noise(attack: Attack) -> None:
    """Random frames after a right beginning."""

    def act(sock: socket.socket) -> bool:
        DONE["frames"] += 20
        return say(sock, b"".join(http2.noise(attack.chance) for _ in range(20)))

    again(attack, http2.opening(), 16, act)


def flood(attack: Attack) -> None:
    """PING, SETTINGS, RST_STREAM, CONTINUATION, PRIORITY, empty DATA and broken header blocks, each without end."""
    kinds: list[Iterator[bytes]] = [
        iter(lambda: http2.frame(http2.PING, bytes(8)) * 200, b""),
        iter(lambda: http2.frame(http2.SETTINGS) * 200, b""),
        _resets(),
        _continuations(),
        iter(lambda: http2.frame(http2.PRIORITY, bytes(5), stream=3) * 200, b""),
        iter(lambda: http2.request(LOAD, 1) + http2.frame(http2.DATA, stream=1) * 500, b""),
        iter(lambda: http2.frame(http2.HEADERS, attack.chance.randbytes(4000), flags=http2.END_HEADERS, stream=1), b""),
        iter(lambda: http2.frame(http2.WINDOW_UPDATE, struct.pack(">I", 1)) * 200, b""),
    ]
    floods: dict[socket.socket, Iterator[bytes]] = {}
    number = 0

    def act(sock: socket.socket) -> bool:
        nonlocal number
        if sock not in floods:
            floods[sock] = kinds[number % len(kinds)]
            number += 1
        return say(sock, next(floods[sock]))

    again(attack, http2.opening(), 16, act)


def _resets() -> Iterator[bytes]:
    while True:
        for first in range(1, 1 << 16, 200):
            yield b"".join(
                http2.request(GET, stream) + http2.frame(http2.RST_STREAM, bytes(4), stream=stream)
                for stream in range(first, first + 200, 2)
            )


def _continuations() -> Iterator[bytes]:
    while True:
        yield http2.frame(http2.HEADERS, http2.literal(b"a", b"b"), stream=1)
        for _ in range(100):
            yield http2.frame(http2.CONTINUATION, http2.literal(b"a", b"b" * 100) * 20, stream=1) * 20


def calls(attack: Attack) -> None:
    """Whole calls, as many as go, on many connections."""
    streams: dict[socket.socket, int] = {}

    def act(sock: socket.socket) -> bool:
        first = streams.get(sock, 1)
        streams[sock] = first + 64
        DONE["calls"] += 32
        return say(sock, b"".join(http2.call(GET, stream) for stream in range(first, first + 64, 2)))

    again(attack, http2.opening(window=1 << 30), 32, act)


KINDS = {one.__name__: one for one in (crowd, half_open, endless, huge, partial, slow_reader, noise, flood, calls)}


def main() -> None:
    """Runs one attack."""
    uid, path, seconds, kind, seed, count = sys.argv[1:]
    os.nice(19)
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(int(uid))
        os.setuid(int(uid))
    KINDS[kind](Attack(path, float(seconds), int(seed), int(count)))
    sys.stdout.write(json.dumps(DONE))


if __name__ == "__main__":
    main()
