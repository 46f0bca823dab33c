"""TLS handshakes under way: bounded in number and in time, and off the event loop.

A handshake costs signatures, and whoever can reach the port can ask for it. So they run on one thread, which the
event loop only waits for; so many may be under way and no more. If there are too many, the oldest is ended: an honest
one takes milliseconds, one that is kept half open gets old. Nobody can keep others out by holding places.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from sevd.access import refusal
from sevd.access.client_certificate import chain_of
from sevd.access.refusal import RemoteRefused

if TYPE_CHECKING:
    from sevd.access.listeners import Listener

SECONDS = 5.0
"""How long one may take."""

MOST = 256
"""How many may be under way."""

LINGER_SECONDS = 0.5
"""How long one that was refused is kept, so that the client hears why."""

LINGER_PIECES = 16
"""How often more is received from it meanwhile."""

RECEIVE_BYTES = 16 << 10
"""How much at a time."""

log = logging.getLogger(__name__)

_HANDSHAKE = 22  # ContentType handshake (RFC 8446, 5.1)
_CERTIFICATE = 11  # HandshakeType certificate (RFC 8446, 4)


class Handshake:
    """One of them.

    Attributes:
        listener: Where the client came to.
        address: Where it is, for people.
        client: Its socket, until it has said something.
        until: When it must have been done, in the loop's time.
        tls: Its socket from then on.
        chain: The certificates that it has shown, in DER, verified or not; empty before.
        crowded_out: It was the oldest of too many.
        kept: It has succeeded, and its socket is another's.
        told: It was refused, and that is known.
        task: What does it.
    """

    __slots__ = (
        "address", "chain", "client", "crowded_out", "kept", "listener", "task", "tls", "told", "until",
    )  # fmt: skip

    def __init__(self, listener: Listener, address: str, client: socket.socket, until: float) -> None:
        self.listener = listener
        self.address = address
        self.client = client
        self.until = until
        self.tls: ssl.SSLSocket | None = None
        self.chain: tuple[bytes, ...] = ()
        self.crowded_out = False
        self.kept = False
        self.told = False
        self.task: asyncio.Task[None] | None = None

    @property
    def shaken(self) -> ssl.SSLSocket:
        """Its socket, when hands have been shaken."""
        assert self.tls is not None
        return self.tls


class Handshakes:
    """Those of one daemon. On one event loop.

    Args:
        context: Answers the context to shake hands with, one of `watched`.
        done: Called with one that has succeeded; takes its socket over.
        refused: Called with one that has not, and why; its socket is closed afterwards.
        seconds: How long one may take.
        most: How many may be under way.
    """

    def __init__(
        self,
        context: Callable[[], Awaitable[ssl.SSLContext]],
        done: Callable[[Handshake], None],
        refused: Callable[[Handshake, RemoteRefused], None],
        *,
        seconds: float = SECONDS,
        most: int = MOST,
    ) -> None:
        self.seconds = seconds
        self.most = most
        self._context = context
        self._done = done
        self._refused = refused
        self._loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(1, "sevd-tls")
        # The oldest first. Who says nothing costs a descriptor and an entry here, and no more.
        self._silent: dict[Handshake, None] = {}
        self._running: dict[Handshake, None] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._sweep: asyncio.TimerHandle | None = None
        # What a connection belongs to after its handshake: a context that watches no messages.
        self._quiet = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)

    def __len__(self) -> int:
        return len(self._silent) + len(self._running)

    def begin(self, listener: Listener, client: socket.socket, address: str) -> None:
        """Takes over a connected socket, non-blocking, and begins when it says something."""
        one = Handshake(listener, address, client, self._loop.time() + self.seconds)
        while len(self) >= self.most:
            self._give_way()
        self._silent[one] = None
        self._loop.add_reader(client.fileno(), self._speaks, one)
        if self._sweep is None:
            self._sweep = self._loop.call_at(one.until, self._sweep_out)

    async def close(self) -> None:
        """Ends all of them."""
        if self._sweep is not None:
            self._sweep.cancel()
        for one in tuple(self._silent):
            self._forget(one)
            one.client.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._thread.shutdown(wait=False)

    def _give_way(self) -> None:
        """Ends the oldest; of those who say nothing, if there is one."""
        if self._silent:
            self._turn_away(next(iter(self._silent)), RemoteRefused("HANDSHAKE_CROWDED_OUT", f"{self.most} are"))
            return
        oldest = next(iter(self._running))
        del self._running[oldest]
        oldest.crowded_out = True
        assert oldest.task is not None
        oldest.task.cancel()

    def _sweep_out(self) -> None:
        """Ends those who have said nothing for too long."""
        self._sweep, now = None, self._loop.time()
        while self._silent:
            oldest = next(iter(self._silent))
            if oldest.until > now:
                self._sweep = self._loop.call_at(oldest.until, self._sweep_out)
                return
            self._turn_away(oldest, RemoteRefused("HANDSHAKE_TIMEOUT", f"{self.seconds:g} s"))

    def _turn_away(self, one: Handshake, cause: RemoteRefused) -> None:
        """Ends one that has said nothing."""
        self._forget(one)
        self._refuse(one, cause)
        one.client.close()

    def _forget(self, one: Handshake) -> None:
        del self._silent[one]
        self._loop.remove_reader(one.client.fileno())

    def _speaks(self, one: Handshake) -> None:
        try:
            if not one.client.recv(1, socket.MSG_PEEK):
                self._turn_away(one, RemoteRefused("HANDSHAKE_LOST"))
                return
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._turn_away(one, RemoteRefused("HANDSHAKE_LOST"))
            return
        self._forget(one)
        self._running[one] = None
        one.task = self._loop.create_task(self._run(one))
        self._tasks.add(one.task)
        one.task.add_done_callback(lambda task: self._ended(one, task))

    async def _run(self, one: Handshake) -> None:
        cause = await self._attempt(one)
        try:
            if cause is None:
                one.shaken.context = self._quiet
                one.kept = True
                self._done(one)
            else:
                self._refuse(one, cause)
                if one.tls is not None and not one.crowded_out:
                    await self._linger(one)
        except Exception:
            log.exception("a connection of %s could not be served", one.address)
            one.kept = False

    def _refuse(self, one: Handshake, cause: RemoteRefused) -> None:
        one.told = True
        self._refused(one, cause)

    def _ended(self, one: Handshake, task: asyncio.Task[None]) -> None:
        """Also of one whose task was cancelled before it began."""
        self._running.pop(one, None)
        self._tasks.discard(task)
        with contextlib.suppress(AttributeError):
            del one.tls.handshake  # type: ignore[union-attr]
        if one.kept:
            return
        (one.tls or one.client).close()
        if one.crowded_out and not one.told:
            self._refuse(one, RemoteRefused("HANDSHAKE_CROWDED_OUT", f"{self.most} are"))

    async def _attempt(self, one: Handshake) -> RemoteRefused | None:
        """Shakes hands; why not, if it does not succeed."""
        try:
            async with asyncio.timeout_at(one.until):
                await self._shake(one)
            return None if one.shaken.selected_alpn_protocol() == "h2" else RemoteRefused("NO_HTTP2")
        except TimeoutError:
            return RemoteRefused("HANDSHAKE_TIMEOUT", f"{self.seconds:g} s")
        except asyncio.CancelledError:
            if not one.crowded_out:
                raise
            return RemoteRefused("HANDSHAKE_CROWDED_OUT", f"{self.most} are")
        except OSError as error:
            return refusal.of(error)

    async def _shake(self, one: Handshake) -> None:
        """Raises OSError where it fails."""
        context = await self._context()

        def step() -> None:
            if one.tls is None:
                one.tls = context.wrap_socket(one.client, server_side=True, do_handshake_on_connect=False)
                one.tls.handshake = one  # type: ignore[attr-defined]
            one.tls.do_handshake()

        while True:
            doing = asyncio.ensure_future(self._loop.run_in_executor(self._thread, step))
            try:
                await asyncio.shield(doing)
            except ssl.SSLWantReadError:
                await self._ready(one, self._loop.add_reader, self._loop.remove_reader)
            except ssl.SSLWantWriteError:
                await self._ready(one, self._loop.add_writer, self._loop.remove_writer)
            except asyncio.CancelledError:
                # OpenSSL is at it: it never waits, and its socket must not be closed under its hands.
                with contextlib.suppress(OSError):
                    await doing
                raise
            else:
                return

    async def _linger(self, one: Handshake) -> None:
        """Lets the client hear why: a close with something unread would take back what was said."""
        plain, tls = socket.socket, one.shaken
        with contextlib.suppress(OSError, asyncio.CancelledError):
            plain.shutdown(tls, socket.SHUT_WR)
            async with asyncio.timeout(LINGER_SECONDS):
                for _ in range(LINGER_PIECES):
                    await self._ready(one, self._loop.add_reader, self._loop.remove_reader)
                    if not plain.recv_into(tls, bytearray(RECEIVE_BYTES)):
                        break

    async def _ready(self, one: Handshake, add: Callable[..., object], remove: Callable[[int], object]) -> None:
        """Waits until the socket can be read or written."""
        ready: asyncio.Future[None] = self._loop.create_future()
        descriptor = one.shaken.fileno()

        def wake() -> None:
            if not ready.done():
                ready.set_result(None)

        add(descriptor, wake)
        try:
            await ready
        finally:
            remove(descriptor)


def watched(context: ssl.SSLContext) -> ssl.SSLContext:
    """The same context, whose handshakes remember the certificates that they are shown.

    Python tells a certificate that was refused in no other way, and a refusal should name whose it was.
    """
    context._msg_callback = _remember  # type: ignore[attr-defined]
    return context


def _remember(
    tls: ssl.SSLSocket, direction: str, version: int, content_type: int, message_type: int, data: bytes
) -> None:
    """Keeps the certificates that a client shows. Called on the thread of the handshake, for every message."""
    if direction == "read" and content_type == _HANDSHAKE and message_type == _CERTIFICATE:
        one = getattr(tls, "handshake", None)
        if one is not None:
            one.chain = chain_of(data)
