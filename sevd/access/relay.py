"""Joins two connected sockets: what one says, the other hears, until both have ended.

Sits on the event loop next to everything else, so it does little: one system call to receive and one to send for what
a call needs, and for bulk data splice(2) through a pipe, where the kernel hands pages on without copying them (Linux
6.5 and later; elsewhere it copies, and where it is refused the relay goes on copying by itself).

At most BUFFER_BYTES (and a pipe's content) wait per direction: a reader that is slow stops its writer.

The client's end may be something that only looks like a socket (`sevd.access.tls_socket`): then nothing is spliced, and
nothing is known of its options.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
from collections.abc import Callable
from typing import Protocol

BUFFER_BYTES = 256 << 10
"""Bytes received at a time; what cannot be sent on at once waits, and nothing more is received meanwhile."""

BULK_BYTES = 64 << 10
"""From so many bytes at a time on, a direction is spliced."""

PIPE_BYTES = 1 << 20
"""Size asked for a splicing pipe; the kernel may give less."""

SEND_BYTES = 4 << 20
"""Send buffer asked for on the target of a spliced direction, so that it seldom has to wait; the kernel gives at most
net.core.wmem_max."""

QUIET_TRANSFERS = 256
"""So many small transfers in a row end the splicing of a direction and give its pipe back."""

STUCK_SECONDS = 0.05
"""Pause of a direction that cannot receive before something was sent the other way."""

LINGER_SECONDS = 5.0
"""How long a client may keep its side open after the server has closed its own."""

BUFFER = memoryview(bytearray(BUFFER_BYTES))
"""What every end is received into: its content never outlives the callback that filled it."""

_FLAGS = 0x03  # SPLICE_F_MOVE | SPLICE_F_NONBLOCK


class Stuck(BlockingIOError):
    """Nothing can be received before something was sent, although the descriptor is readable."""


class End(Protocol):
    """What is used of a socket, non-blocking."""

    def fileno(self) -> int:
        """Its descriptor."""

    def recv_into(self, buffer: memoryview, /) -> int:
        """Receives what is there; 0 at the end. Raises BlockingIOError (Stuck), OSError."""

    def send(self, data: memoryview, /) -> int:
        """Sends some of it. Raises BlockingIOError, OSError."""

    def shutdown(self, how: int, /) -> None:
        """Ends a direction."""

    def close(self) -> None:
        """Closes it."""


class Direction(Protocol):
    """One of the two.

    Attributes:
        ended: It has forwarded its end.
    """

    ended: bool

    def release(self) -> None:
        """Stops listening."""


class Relay:
    """Two directions between two sockets."""

    __slots__ = ("_closed", "_directions", "_left", "_linger", "_loop", "_on_end", "_right")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        left: End,
        right: socket.socket,
        on_end: Callable[[], None],
        inbound: Callable[[Relay], Direction] | None = None,
    ) -> None:
        """Takes both over (non-blocking, connected): left the client's, right the server's.

        `on_end` is called once, when both are closed. `inbound` makes the direction from left to right where it is not
        one like the other; it may end the relay while it is made.
        """
        self._loop = loop
        self._linger: asyncio.TimerHandle | None = None
        self._left = left
        self._right = right
        self._on_end = on_end
        self._closed = False
        from_server: Direction = _Direction(loop, right, left, self)
        self._directions: tuple[Direction, ...] = (from_server,)
        from_client = inbound(self) if inbound is not None else _Direction(loop, left, right, self)
        self._directions = (from_client, from_server)
        if self._closed:
            from_client.release()

    def close(self) -> None:
        """Ends both directions at once and closes the sockets."""
        if self._closed:
            return
        self._closed = True
        if self._linger is not None:
            self._linger.cancel()
        for direction in self._directions:
            direction.release()
        self._left.close()
        self._right.close()
        self._on_end()

    def direction_ended(self) -> None:
        """A direction has forwarded its end; when both have, everything is closed."""
        if all(one.ended for one in self._directions):
            self.close()
        elif self._directions[-1].ended:
            # The server closes both ways at once; a client that says nothing any more must not keep descriptors.
            self._linger = self._loop.call_later(LINGER_SECONDS, self.close)


class _Direction:
    """From one socket to the other."""

    __slots__ = (
        "_loop", "_pending", "_pipe", "_piped", "_receive", "_relay", "_send", "_small", "_source", "_splicing",
        "_target", "_timer", "ended",
    )  # fmt: skip

    def __init__(self, loop: asyncio.AbstractEventLoop, source: End, target: End, relay: Relay) -> None:
        self._loop = loop
        self._source = source
        self._target = target
        self._relay = relay
        self._receive = source.recv_into
        self._send = target.send
        self._pending: memoryview | None = None
        self._pipe: tuple[int, int] | None = None
        self._piped = 0
        self._small = 0
        self._splicing = isinstance(source, socket.socket) and isinstance(target, socket.socket)
        self._timer: asyncio.TimerHandle | None = None
        self.ended = False
        loop.add_reader(source.fileno(), self._readable)

    def _readable(self) -> None:
        if self._pipe is not None:
            self._splice_in()
            return
        try:
            size = self._receive(BUFFER)
        except Stuck:
            self._loop.remove_reader(self._source.fileno())
            self._timer = self._loop.call_later(STUCK_SECONDS, self._unstick)
            return
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._relay.close()
            return
        if not size:
            self._end()
            return
        try:
            sent = self._send(BUFFER[:size])
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            self._relay.close()
            return
        if sent < size:
            self._pending = memoryview(bytes(BUFFER[sent:size]))
            self._wait_for_target()
        if size >= BULK_BYTES and self._splicing:
            self._open_pipe()

    def _writable(self) -> None:
        try:
            if self._pending is not None:
                sent = self._send(self._pending)
                self._pending = self._pending[sent:] if sent < len(self._pending) else None
            if self._pending is not None or (self._piped and not self._splice_out()):
                return
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._relay.close()
            return
        self._loop.remove_writer(self._target.fileno())
        self._loop.add_reader(self._source.fileno(), self._readable)

    def _unstick(self) -> None:
        self._timer = None
        self._loop.add_reader(self._source.fileno(), self._readable)

    def _wait_for_target(self) -> None:
        self._loop.remove_reader(self._source.fileno())
        self._loop.add_writer(self._target.fileno(), self._writable)

    def _end(self) -> None:
        """The source has said its last: tell the target so, and keep listening to what it still answers."""
        self.release()
        self.ended = True
        # A target that is gone already hears nothing more, and its own end is on its way.
        with contextlib.suppress(OSError):
            self._target.shutdown(socket.SHUT_WR)
        self._relay.direction_ended()

    def release(self) -> None:
        """Stops listening and gives the pipe back."""
        if self._timer is not None:
            self._timer.cancel()
        if not self.ended:
            self._loop.remove_reader(self._source.fileno())
            if self._pending is not None or self._piped:
                self._loop.remove_writer(self._target.fileno())
        self._close_pipe()

    def _open_pipe(self) -> None:
        try:
            self._pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            self._splicing = False  # no descriptor is left: copying needs none
            return
        self._small = 0
        with contextlib.suppress(OSError):
            if isinstance(self._target, socket.socket):
                self._target.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BYTES)
        # The user's share of pipe memory may be used up: a smaller pipe serves as well.
        with contextlib.suppress(OSError):
            fcntl.fcntl(self._pipe[1], fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    def _close_pipe(self) -> None:
        if self._pipe is not None:
            for end in self._pipe:
                os.close(end)
            self._pipe = None

    def _splice_in(self) -> None:
        assert self._pipe is not None
        try:
            size = os.splice(self._source.fileno(), self._pipe[1], PIPE_BYTES, flags=_FLAGS)
        except (BlockingIOError, InterruptedError):
            return
        except ConnectionError:
            self._relay.close()
            return
        except OSError:  # refused by the kernel or by a system call filter: nothing was taken
            self._splicing = False
            self._close_pipe()
            return
        if not size:
            self._end()
            return
        self._piped = size
        self._small = self._small + 1 if size < BULK_BYTES // 4 else 0
        try:
            if not self._splice_out():
                self._wait_for_target()
        except (BlockingIOError, InterruptedError):
            self._wait_for_target()
        except OSError:
            self._relay.close()

    def _splice_out(self) -> bool:
        """Empties the pipe as far as the target takes it; True when all is out."""
        assert self._pipe is not None
        while self._piped:
            try:
                self._piped -= os.splice(self._pipe[0], self._target.fileno(), self._piped, flags=_FLAGS)
            except (BlockingIOError, InterruptedError):
                return False
            except (BrokenPipeError, ConnectionError):
                raise
            except OSError:
                return self._read_out()
        if self._small >= QUIET_TRANSFERS:
            self._close_pipe()
        return True

    def _read_out(self) -> bool:
        """Splicing to the target is refused: takes the content back out of the pipe, and copies from here on."""
        assert self._pipe is not None
        content = os.read(self._pipe[0], self._piped)
        self._piped = 0
        self._splicing = False
        self._close_pipe()
        self._pending = memoryview(content)
        return False
