"""Handshakes: each refusal has its word, they are bounded in number and time, and the event loop goes on."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sevd.access import client_certificate, tls_files
from sevd.access.handshakes import Handshake, Handshakes, watched
from sevd.access.listeners import Listener
from sevd.access.refusal import CAUSES, RemoteRefused
from tests.support.authority import HOUR, SERVER, Authority, Issued
from tests.support.tls import HOST, Setup, heard, listen, port_of

NAME = "spiffe://example.org/vmm"


class Shaking:
    """Handshakes on a port; greets those that succeed."""

    def __init__(self, setup: Setup, *, seconds: float = 5, most: int = 256) -> None:
        self.setup = setup
        self.listener: Listener = listen()
        self.port = port_of(self.listener)
        self.done: list[tuple[str, ...]] = []
        self.refused: list[tuple[str, tuple[str, ...]]] = []
        self.handshakes = Handshakes(self._offered, self._done, self._refused, seconds=seconds, most=most)
        self.context = watched(tls_files.load(setup.files).context)
        asyncio.get_running_loop().add_reader(self.listener.socket.fileno(), self._accept)

    def _accept(self) -> None:
        client, _ = self.listener.socket.accept()
        client.setblocking(False)
        self.handshakes.begin(self.listener, client, "somewhere")

    async def _offered(self) -> ssl.SSLContext:
        return self.context

    def _done(self, one: Handshake) -> None:
        self.done.append(names(one))
        one.shaken.send(b"hello")
        one.shaken.close()

    def _refused(self, one: Handshake, cause: RemoteRefused) -> None:
        assert cause.reason in CAUSES
        self.refused.append((cause.reason, names(one)))

    async def waited(self, count: int = 1) -> list[tuple[str, tuple[str, ...]]]:
        """Refusals, when there are so many."""
        for _ in range(500):
            if len(self.refused) >= count:
                break
            await asyncio.sleep(0.01)
        return self.refused


def names(one: Handshake) -> tuple[str, ...]:
    return client_certificate.read(one.chain).names if one.chain else ()


@contextlib.asynccontextmanager
async def shaking(folder: Path, *, seconds: float = 5, most: int = 256) -> AsyncIterator[Shaking]:
    one = Shaking(Setup(folder), seconds=seconds, most=most)
    try:
        yield one
    finally:
        asyncio.get_running_loop().remove_reader(one.listener.socket.fileno())
        one.listener.close()
        await one.handshakes.close()
        assert len(one.handshakes) == 0


async def test_the_right_certificate_gets_in(tmp_path: Path) -> None:
    async with shaking(tmp_path) as one:
        good = one.setup.clients.issue("vmm", uris=[NAME], dns=["Vmm.Example.ORG"])
        assert await heard(one.port, one.setup.client(good)) == b"hello"
        assert one.done == [(f"uri:{NAME}", "dns:vmm.example.org")]
        assert one.refused == []


async def test_an_authority_of_another_name_is_as_unknown(tmp_path: Path) -> None:
    async with shaking(tmp_path) as one:
        for authority in (Authority("strangers"), Authority("clients", Authority("strangers")), one.setup.servers):
            await heard(one.port, one.setup.client(authority.issue("vmm", uris=[NAME])))
        assert [cause for cause, _ in await one.waited(3)] == ["UNKNOWN_AUTHORITY"] * 3


async def test_a_chain_by_an_intermediate_gets_in(tmp_path: Path) -> None:
    async with shaking(tmp_path) as one:
        below = Authority("below", one.setup.clients)
        one.setup.files.crl.write_bytes(one.setup.clients.crl() + below.crl())  # type: ignore[union-attr]
        one.context = watched(tls_files.load(one.setup.files).context)
        assert await heard(one.port, one.setup.client(below.issue("vmm", uris=[NAME]))) == b"hello"


def tls_1_2(context: ssl.SSLContext) -> ssl.SSLContext:
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


def shake(port: int, context: ssl.SSLContext) -> None:
    """A client that says why it hangs up (asyncio's does not always)."""
    with socket.create_connection((HOST, port)) as plain, context.wrap_socket(plain, server_hostname="localhost"):
        pass


REFUSALS = (
    "NO_CERTIFICATE",
    "UNKNOWN_AUTHORITY",
    "CERTIFICATE_EXPIRED",
    "CERTIFICATE_NOT_YET_VALID",
    "CERTIFICATE_REVOKED",
    "CERTIFICATE_PURPOSE",
    "REVOCATION_UNKNOWN",
    "TLS_VERSION",
    "NO_HTTP2",
    "CLIENT_ALERT",
)


@pytest.mark.parametrize("cause", REFUSALS)
async def test_every_refusal_has_its_word_and_names_the_certificate(tmp_path: Path, cause: str) -> None:
    async with shaking(tmp_path) as one:
        setup = one.setup
        clients = setup.clients
        shown: tuple[str, ...] = (f"uri:{NAME}",)
        certificate: Issued | None = clients.issue("vmm", uris=[NAME])
        assert certificate is not None
        context = None
        if cause == "NO_CERTIFICATE":
            certificate, shown = None, ()
        elif cause == "UNKNOWN_AUTHORITY":
            certificate = Authority("clients").issue("vmm", uris=[NAME])
        elif cause == "CERTIFICATE_EXPIRED":
            certificate = clients.issue("vmm", uris=[NAME], begins=-2 * HOUR, ends=-HOUR)
        elif cause == "CERTIFICATE_NOT_YET_VALID":
            certificate = clients.issue("vmm", uris=[NAME], begins=HOUR, ends=2 * HOUR)
        elif cause == "CERTIFICATE_REVOKED":
            (tmp_path / "crl.pem").write_bytes(clients.crl(certificate))
            one.context = watched(tls_files.load(setup.files).context)
        elif cause == "CERTIFICATE_PURPOSE":
            certificate = clients.issue("vmm", uris=[NAME], usage=SERVER)
        elif cause == "REVOCATION_UNKNOWN":
            (tmp_path / "crl.pem").write_bytes(clients.crl(begins=-2 * HOUR, ends=-HOUR))
            one.context = watched(tls_files.load(setup.files, stale=True).context)
        elif cause == "TLS_VERSION":
            context, shown = tls_1_2(setup.client(certificate)), ()
        elif cause == "NO_HTTP2":
            context = setup.client(certificate, alpn=False)
        elif cause == "CLIENT_ALERT":
            context, shown = ssl.create_default_context(), ()
            context.set_alpn_protocols(["h2"])
            with pytest.raises(ssl.SSLCertVerificationError):
                await asyncio.to_thread(shake, one.port, context)
        if cause != "CLIENT_ALERT":
            assert await heard(one.port, context or setup.client(certificate)) != b"hello"
        assert await one.waited() == [(cause, shown)]
        assert one.done == []


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "NOT_TLS"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "NOT_TLS"),
        (bytes(64), "NOT_TLS"),
        (b"\x16\x03\x01\x00\x04\x01\x00\x00\x00", "HANDSHAKE_FAILED"),
        (b"", "HANDSHAKE_LOST"),
    ],
    ids=["http", "h2 without TLS", "zeros", "a broken hello", "nothing and gone"],
)
async def test_what_is_no_handshake(tmp_path: Path, data: bytes, cause: str) -> None:
    async with shaking(tmp_path) as one:
        _, writer = await asyncio.open_connection(HOST, one.port)
        writer.write(data)
        if data:
            await asyncio.wait_for(one.waited(), 5)
        writer.close()
        assert await one.waited() == [(cause, ())]


async def test_one_that_says_nothing_is_ended(tmp_path: Path) -> None:
    async with shaking(tmp_path, seconds=0.2) as one:
        reader, writer = await asyncio.open_connection(HOST, one.port)
        assert await asyncio.wait_for(reader.read(), 5) == b""
        assert await one.waited() == [("HANDSHAKE_TIMEOUT", ())]
        writer.close()


async def test_nobody_keeps_others_out_by_holding_places(tmp_path: Path) -> None:
    async with shaking(tmp_path, seconds=60, most=8) as one:
        good = one.setup.client(one.setup.clients.issue("vmm", uris=[NAME]))
        held = [await asyncio.open_connection(HOST, one.port) for _ in range(40)]
        assert await heard(one.port, good) == b"hello"
        assert len(one.handshakes) <= 8
        assert {cause for cause, _ in await one.waited(33)} == {"HANDSHAKE_CROWDED_OUT"}
        for _, writer in held:
            writer.close()


async def test_the_loop_goes_on_while_hands_are_shaken(tmp_path: Path) -> None:
    async with shaking(tmp_path) as one:
        context = one.setup.client(one.setup.clients.issue("vmm", uris=[NAME]))
        answers = await asyncio.gather(*[heard(one.port, context) for _ in range(30)])
        assert set(answers) == {b"hello"}


def test_a_hello_is_not_accepted_for_a_certificate() -> None:
    assert client_certificate.chain_of(b"") == ()
    assert client_certificate.chain_of(b"\x01" + bytes(40)) == ()
    assert client_certificate.chain_of(b"\x0b\x00\x00\x05\x00\x00\x00\x01\x00") == ()
