"""Certificates, keys, authorities and revocation lists change under callers who never pause: none of them loses a call."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.support.authority import Authority, Issued, key_pem, place
from tests.support.daemon import chip
from tests.support.remote_daemon import TRUST, RemoteDaemon

GET_HOST = "/sev.v1.HostService/GetHost"
STEADY, FRESH = 4, 2
"""Callers on one connection, and callers who connect anew for every call."""


class Callers:
    """Threads that call without pause, and without trying anything again."""

    def __init__(self, port: int, trusted: Callable[[], bytes]) -> None:
        self.failures: list[str] = []
        self.calls: dict[str, int] = {}
        self._port = port
        self._trusted = trusted
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def add(self, name: str, one: Issued, *, fresh: bool) -> None:
        """One more."""
        self.calls[name] = 0
        self._threads.append(threading.Thread(target=self._run, args=(name, one, fresh)))
        self._threads[-1].start()

    def channel(self, one: Issued) -> grpc.Channel:
        credentials = grpc.ssl_channel_credentials(self._trusted(), key_pem(one.key), one.pem)
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
        return grpc.secure_channel(f"dns:localhost:{self._port}", credentials, options=options)

    def _run(self, name: str, one: Issued, fresh: bool) -> None:
        channel = self.channel(one)
        while not self._stop.is_set():
            try:
                call: Any = channel.unary_unary(GET_HOST)
                assert call(b"", timeout=10)
            except grpc.RpcError as error:
                self.failures.append(f"{name} after {self.calls[name]} calls: {error}")
                break
            self.calls[name] += 1
            if fresh:
                channel.close()
                channel = self.channel(one)
        channel.close()

    def moved(self, calls: int = 3) -> None:
        """Waits until everybody has called so many times more."""
        before, until = dict(self.calls), time.monotonic() + 20
        while any(self.calls[name] < before[name] + calls for name in before):
            assert not self.failures, self.failures
            assert time.monotonic() < until, (before, self.calls)
            time.sleep(0.01)

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(20)


def serial_there(remote: RemoteDaemon, one: Issued, trusted: bytes) -> int:
    """The serial number of the certificate that the daemon shows now."""
    from cryptography import x509

    context = remote.setup.client(one)
    context.load_verify_locations(cadata=trusted.decode())
    with (
        socket.create_connection(("127.0.0.1", remote.port)) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as tls,
    ):
        der = tls.getpeercert(True)
    assert der is not None
    return x509.load_der_x509_certificate(der).serial_number


def refused(remote: RemoteDaemon, callers: Callers, one: Issued) -> None:
    """This certificate does not get in."""
    with callers.channel(one) as channel:
        call: Any = channel.unary_unary(GET_HOST)
        with pytest.raises(grpc.RpcError) as caught:
            call(b"", timeout=10)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_rotation_loses_no_call(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    remote = RemoteDaemon(tmp_path)
    setup, files = remote.setup, remote.setup.files
    assert files.crl is not None
    new_servers, new_clients = Authority("new servers"), Authority("new clients")
    trusted = setup.servers.pem + new_servers.pem
    folder = tmp_path / "tls"
    with remote.running(chip("genoa", tmp_path_factory)):
        callers = Callers(remote.port, lambda: trusted)
        old = remote.client("launcher")
        victim = remote.client("viewer")
        for number in range(STEADY):
            callers.add(f"steady {number}", old, fresh=False)
        for number in range(FRESH):
            callers.add(f"fresh {number}", old, fresh=True)
        try:
            callers.moved()
            # A new certificate and key of the same authority, the key first: in between they do not go together.
            second = setup.servers.server("second")
            place(files.key, key_pem(second.key))
            callers.moved()
            place(files.certificate, second.pem)
            callers.moved()
            assert serial_there(remote, old, trusted) == second.certificate.serial_number
            # Another authority of the daemon's, by a reload.
            third = new_servers.server("third")
            third.write(folder, "server")
            assert "not reloaded" not in remote.reload()
            callers.moved()
            assert serial_there(remote, old, trusted) == third.certificate.serial_number
            # Half a file changes nothing.
            place(files.certificate, third.pem[:200])
            callers.moved()
            assert serial_there(remote, old, trusted) == third.certificate.serial_number
            place(files.certificate, third.pem)
            # Another authority of clients, its list first; callers with its certificates come along.
            place(files.crl, setup.clients.crl() + new_clients.crl())
            place(files.client_ca, setup.clients.pem + new_clients.pem)
            fresh = new_clients.issue("launcher", uris=[TRUST + "launcher"])
            callers.add("steady new", fresh, fresh=False)
            callers.add("fresh new", fresh, fresh=True)
            callers.moved()
            # One of them is revoked, while he is connected.
            with callers.channel(victim) as channel:
                call: Any = channel.unary_unary(GET_HOST)
                assert call(b"", timeout=10)
                place(files.crl, setup.clients.crl(victim) + new_clients.crl())
                callers.moved()
                with pytest.raises(grpc.RpcError):
                    call(b"", timeout=10)
            refused(remote, callers, victim)
            assert "not reloaded" not in remote.reload()
            callers.moved()
        finally:
            callers.stop()
        assert callers.failures == []
        assert min(callers.calls.values()) > 5
        assert "the old ones stay" in remote.log
        # When nobody has a certificate of the old authority any more, it goes; who has one now is let in no more.
        place(files.client_ca, new_clients.pem)
        place(files.crl, new_clients.crl())
        assert "not reloaded" not in remote.reload()
        refused(remote, callers, old)
        with callers.channel(fresh) as channel:
            call = channel.unary_unary(GET_HOST)
            assert call(b"", timeout=10)


def test_tls_1_2_is_refused(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    import json

    remote = RemoteDaemon(tmp_path)
    with remote.running(chip("genoa", tmp_path_factory)):
        context = remote.setup.client(remote.client("admin"))
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        with (
            socket.create_connection(("127.0.0.1", remote.port)) as plain,
            pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"),
        ):
            context.wrap_socket(plain, server_hostname="localhost")
        for _ in range(100):
            found = [json.loads(line) for line in (tmp_path / "state/audit.jsonl").read_text().splitlines()]
            if found:
                break
            time.sleep(0.02)
        assert [(one["result"], one["reason"]) for one in found] == [("refused", "TLS_VERSION")]
