"""A client and a server with the gate's relay between them."""

from __future__ import annotations

import asyncio
import socket
from typing import Generic, TypeVar

from sevd.access.relay import Relay
from sevd.access.tls_socket import TlsSocket

Caller = TypeVar("Caller", bound=socket.socket)


class Joined(Generic[Caller]):
    """Both ends.

    Args:
        client: The caller's socket.
        left: The relay's socket to it; under TLS the relay speaks it.
        tls: The same with TLS.

    Attributes:
        client: The caller's socket.
        server: The server's, non-blocking.
        ended: How often the relay has told its end.
        relay: The relay.
    """

    def __init__(self, client: Caller, left: socket.socket, tls: TlsSocket | None = None) -> None:
        right, self.server = socket.socketpair()
        right.setblocking(False)
        self.client = client
        self.ended = 0
        self.relay = Relay(asyncio.get_running_loop(), left if tls is None else tls, right, self._end)
        self._inner = (left, right)

    def _end(self) -> None:
        self.ended += 1

    async def finish(self) -> None:
        """Both hang up; the relay ends once, and holds nothing."""
        self.client.close()
        self.server.close()
        for _ in range(200):
            if self.ended:
                break
            await asyncio.sleep(0.01)
        assert self.ended == 1
        assert all(one.fileno() == -1 for one in self._inner)
