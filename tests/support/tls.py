"""TLS clients and a listener's files for tests, with authorities of their own."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from pathlib import Path

from sevd.access.listeners import MTLS, Listener
from sevd.access.tls_files import TlsFiles
from tests.support.authority import Authority, Issued, key_pem, place

HOST = "127.0.0.1"


class Setup:
    """A listener's files: an authority for servers, one for clients, and its revocation list.

    Attributes:
        folder: Where the files are.
        clients: Whose certificates are let in.
        servers: Whose certificate the listener has.
        files: The files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clients = Authority("clients")
        self.servers = Authority("servers")
        certificate, key = self.servers.server().write(folder, "server")
        self.files = TlsFiles(
            certificate,
            key,
            place(folder / "clients.pem", self.clients.pem),
            place(folder / "crl.pem", self.clients.crl()),
        )
        place(folder / "servers.pem", self.servers.pem)

    def client(self, one: Issued | None, *, alpn: bool = True) -> ssl.SSLContext:
        """A client's context."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(self.folder / "servers.pem")
        if alpn:
            context.set_alpn_protocols(["h2"])
        if one is not None:
            context.load_cert_chain(self.place(one))
        return context

    def place(self, one: Issued) -> Path:
        """A file with a certificate and its key."""
        return place(self.folder / f"{one.certificate.serial_number:x}.pem", one.pem + key_pem(one.key))


def listen() -> Listener:
    """A listening TCP socket on a free port."""
    plain = socket.create_server((HOST, 0))
    plain.setblocking(False)
    return Listener(plain, MTLS)


def port_of(listener: Listener) -> int:
    return int(listener.socket.getsockname()[1])


async def heard(port: int, context: ssl.SSLContext | None, size: int = 5) -> bytes:
    """What a server says first over TLS (None: without); the words of an error where it refuses."""
    try:
        reader, writer = await asyncio.open_connection(
            HOST, port, ssl=context, server_hostname="localhost" if context else None
        )
    except OSError as error:
        return str(error).encode()
    try:
        return await asyncio.wait_for(reader.read(size), 10)
    except OSError as error:
        return str(error).encode()
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
