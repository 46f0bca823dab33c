"""One end of a relay that speaks TLS outwards: plaintext on this side of it, looking like a non-blocking socket.

OpenSSL works on the socket itself, a record at a time and without reading ahead, so that nothing waits here: what the
reader does not take stays in the kernel's buffers, and a slow one stops its writer as without TLS.
"""

from __future__ import annotations

import contextlib
import socket
import ssl

from sevd.access.relay import Stuck

RECORD_BYTES = 16 << 10
"""Plaintext of a TLS record at most."""

BULK_BYTES = 8 << 10
"""A record of so much plaintext is probably followed by another one."""


class TlsSocket:
    """A connection whose handshake is done. Raises BlockingIOError where a socket would, OSError for what is fatal."""

    __slots__ = ("_receive", "_send", "_tls")

    def __init__(self, tls: ssl.SSLSocket) -> None:
        self._tls = tls
        # Not recv_into and send: those would go on without TLS after an end that both sides have said.
        self._receive = tls.read
        self._send = tls.write

    def fileno(self) -> int:
        """Its descriptor; -1 once closed."""
        return self._tls.fileno()

    def recv_into(self, buffer: memoryview) -> int:
        """Receives what is there, as far as the buffer has room for whole records; 0 at the end.

        The buffer has room for one at least: what OpenSSL has taken from the socket makes it readable no more.
        """
        have, room = 0, len(buffer)
        assert room >= RECORD_BYTES
        try:
            while room - have >= RECORD_BYTES:
                size = int(self._receive(RECORD_BYTES, buffer[have : have + RECORD_BYTES]))
                have += size
                if size < BULK_BYTES:  # probably the last one for now; asking in vain costs as much as a record
                    break
        except ssl.SSLWantReadError:
            if not have:
                raise BlockingIOError from None
        except ssl.SSLWantWriteError:  # an answer of TLS itself, to a change of keys, has no room
            if not have:
                raise Stuck from None
        except ValueError:  # both sides have said their last
            return have
        return have

    def send(self, data: memoryview) -> int:
        """Sends as much as the kernel takes; at least something."""
        sent, size = 0, len(data)
        try:
            while sent < size:
                sent += self._send(data[sent : sent + RECORD_BYTES])
        except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
            if not sent:
                raise BlockingIOError from None
        return sent

    def shutdown(self, how: int) -> None:
        """Says that nothing more will be sent (`how` is SHUT_WR); what still comes can be received."""
        # Sends close_notify; that the other side has not answered with its own is no failure.
        with contextlib.suppress(OSError, ValueError):
            self._tls.unwrap()
        # Not the TLS socket's own method, which takes TLS off.
        socket.socket.shutdown(self._tls, how)

    def close(self) -> None:
        """Closes it."""
        self._tls.close()
