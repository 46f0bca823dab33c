"""What callers send, received when and as far as the daemon has room for it.

Every method is served as if it took a stream, one-message methods too: so a call is known, and counted against its
identity, when its headers are there, and its message is taken only after that. gRPC hands a call with one message over
when the message is whole; until then nobody could say whose memory it fills, or that it never ends.

Bounds: a request has REQUEST_SECONDS to arrive. In an upload the next message has IDLE_SECONDS, all of them together
UPLOAD_SECONDS. What has been received and is not done with counts against `limits.bytes_in_flight`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import grpc.aio

from sev.errors import LimitReached, MalformedInput
from sevd.access.accounts import RETRY_SECONDS

if TYPE_CHECKING:
    from sevd.access.accounts import CallLimits
    from sevd.access.gate import Connection
    from sevd.api.trace import Context

REQUEST_SECONDS = 10.0
"""How long a request, or the first message of a stream, may take to arrive."""

IDLE_SECONDS = 30.0
"""How long the next message of an upload may take."""

UPLOAD_SECONDS = 3600.0
"""How long an upload may take in all."""


PREFIX_BYTES = 5
"""In front of each message (gRPC over HTTP/2, "Length-Prefixed-Message")."""


class Requests:
    """The requests that are awaited on one event loop.

    Nearly all are there at once, and a timer for each would cost a tenth of a short call: one serves them all.
    """

    def __init__(self) -> None:
        self._due: dict[asyncio.Task[object], float] = {}
        self._late: set[asyncio.Task[object]] = set()
        self._timer: asyncio.TimerHandle | None = None

    async def request_of(self, context: Context) -> bytes:
        """The one message of a call.

        Raises:
            LimitReached: It did not arrive in time.
            MalformedInput: The call ended without one.
        """
        task = asyncio.current_task()
        assert task is not None, "a call has a task of its own"
        loop = asyncio.get_running_loop()
        self._due[task] = loop.time() + REQUEST_SECONDS
        if self._timer is None:
            self._timer = loop.call_later(REQUEST_SECONDS, self._look)
        try:
            raw = await context.read()
        except asyncio.CancelledError:
            if task in self._late and not task.uncancel():
                raise _too_slow(f"{REQUEST_SECONDS:.0f}", "request_seconds") from None
            raise
        finally:
            self._due.pop(task, None)
            self._late.discard(task)
        if raw is grpc.aio.EOF:
            raise MalformedInput("the call ended without a request", remedy="Use a gRPC client of this API.")
        return bytes(raw)

    def _look(self) -> None:
        """Ends those whose time is over; they are in the order of their times."""
        self._timer = None
        loop = asyncio.get_running_loop()
        now = loop.time()
        for task, due in list(self._due.items()):
            if due > now:
                self._timer = loop.call_at(due, self._look)
                return
            del self._due[task]
            self._late.add(task)
            task.cancel()


class Messages(AsyncIterator[bytes]):
    """The messages of a stream, each counted in until the next is asked for. `close` it when done.

    Args:
        context: The call.
        connection: Whose it is.
        limits: What its calls may use.
        endless: Pauses mean nothing, after the first message; otherwise the stream must go on.

    Raises (while iterating):
        LimitReached: A message did not arrive in time, or there is no room for it.
    """

    def __init__(self, context: Context, connection: Connection, limits: CallLimits, *, endless: bool = False) -> None:
        self._context = context
        self._connection = connection
        self._limits = limits
        self._endless = endless
        self._first = True
        self._held = 0
        self._end = asyncio.get_running_loop().time() + UPLOAD_SECONDS

    def __aiter__(self) -> Messages:
        return self

    async def __anext__(self) -> bytes:
        self.close()
        raw = await self._next()
        if raw is None:
            raise StopAsyncIteration
        _hold(self._connection, len(raw), self._limits)
        self._held = len(raw)
        return raw

    def close(self) -> None:
        """Counts out what was handed out last."""
        _release(self._connection, self._held)
        self._held = 0

    async def _next(self) -> bytes | None:
        if self._first:
            self._first = False
            return await _message(self._context, REQUEST_SECONDS, "request_seconds")
        if self._endless:
            raw = await self._context.read()
            return None if raw is grpc.aio.EOF else raw
        left = self._end - asyncio.get_running_loop().time()
        if left < IDLE_SECONDS:
            return await _message(self._context, left, "upload_seconds", UPLOAD_SECONDS)
        return await _message(self._context, IDLE_SECONDS, "upload_idle_seconds")


@contextmanager
def held(connection: Connection, size: int, limits: CallLimits) -> Iterator[None]:
    """Counts received bytes in, and out again. Raises LimitReached."""
    _hold(connection, size, limits)
    try:
        yield
    finally:
        _release(connection, size)


def _hold(connection: Connection, size: int, limits: CallLimits) -> None:
    connection.account.delivered += size + PREFIX_BYTES
    connection.account.hold(size, connection.caller, limits)
    connection.held += size


def _release(connection: Connection, size: int) -> None:
    connection.held -= size
    connection.account.held -= size


async def _message(context: Context, seconds: float, limit: str, value: float | None = None) -> bytes | None:
    """The next message; None at the end of the stream."""
    try:
        async with asyncio.timeout(seconds):
            raw = await context.read()
    except TimeoutError:
        raise _too_slow(f"{seconds if value is None else value:.0f}", limit) from None
    return None if raw is grpc.aio.EOF else raw


def _too_slow(most: str, limit: str) -> LimitReached:
    return LimitReached(
        f"the request did not arrive within {most} s",
        remedy="Send without pauses, or split what is to be sent into several calls.",
        metadata={"limit": limit, "value": most},
        retry_after=RETRY_SECONDS,
    )
