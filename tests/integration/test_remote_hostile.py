"""Strangers at the port: half-open handshakes, junk, handshakes without end. Honest callers are served, and nothing is left."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.daemon import chip
from tests.support.remote_daemon import RemoteDaemon

HELD = 400


def connect(port: int) -> socket.socket:
    """A connection without waiting for it."""
    one = socket.socket()
    one.setblocking(False)
    one.connect_ex(("127.0.0.1", port))
    return one


class Strangers:
    """Threads that do one thing again and again until they are told to stop."""

    def __init__(self) -> None:
        self.done = 0
        self._stop = threading.Event()

    @contextlib.contextmanager
    def at_it(self, act: Callable[[], None]) -> Iterator[None]:
        def run() -> None:
            while not self._stop.is_set():
                with contextlib.suppress(OSError):
                    act()
                self.done += 1

        threads = [threading.Thread(target=run) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in threads:
                thread.join(20)


def half_open(port: int, held: list[socket.socket]) -> None:
    one = connect(port)
    held.append(one)
    if len(held) > HELD:
        held.pop(0).close()
    time.sleep(0.001)


def junk(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), 1) as one:
        one.settimeout(1)
        one.sendall(os.urandom(2048))
        one.recv(100)


def shake(port: int) -> None:
    """A whole handshake, and no certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with socket.create_connection(("127.0.0.1", port), 1) as plain, context.wrap_socket(plain) as one:
        one.recv(1)


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RemoteDaemon]:
    made = RemoteDaemon(tmp_path_factory.mktemp("hostile-remote"))
    with made.running(chip("genoa", tmp_path_factory)):
        yield made


def descriptors(remote: RemoteDaemon) -> int:
    assert remote.daemon is not None
    return len(os.listdir(f"/proc/{remote.daemon.process.pid}/fd"))


@pytest.mark.parametrize("what", ["half-open", "junk", "handshakes"])
def test_strangers_keep_nobody_out_and_leave_nothing_behind(remote: RemoteDaemon, what: str) -> None:
    assert remote.daemon is not None
    before = descriptors(remote)
    held: list[socket.socket] = []
    acts: dict[str, Callable[[], None]] = {
        "half-open": lambda: half_open(remote.port, held),
        "junk": lambda: junk(remote.port),
        "handshakes": lambda: shake(remote.port),
    }
    strangers = Strangers()
    honest = remote.client("viewer")
    with strangers.at_it(acts[what]):
        for _ in range(10):
            with remote.connect(honest, "honest", timeout=20) as host:
                assert host.host().product == "genoa"
            with remote.daemon.connect(timeout=20) as host:
                assert host.host().product == "genoa"
            time.sleep(0.05)
    assert strangers.done > 20
    for one in held:
        one.close()
    until = time.monotonic() + 15
    while descriptors(remote) > before and time.monotonic() < until:
        time.sleep(0.05)
    assert descriptors(remote) <= before


def test_the_audit_of_strangers_is_bounded(remote: RemoteDaemon) -> None:
    trail = Path(remote.folder / "state/audit.jsonl")
    before = trail.read_text().count('"NOT_TLS"')
    for _ in range(40):
        with contextlib.suppress(OSError):
            junk(remote.port)
    assert trail.read_text().count('"NOT_TLS"') - before <= 10
