"""Connections that have said nothing yet: held without a place at the server until the preface of HTTP/2 is there.

Whoever only connects costs a descriptor and a timer, and is let go when the time is up; whoever begins with anything
else is let go at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from sevd.access.frames import PREFACE
from sevd.access.relay import STUCK_SECONDS, Stuck

if TYPE_CHECKING:
    from sevd.access.relay import End

SECONDS = 10.0
"""How long the preface may take."""

FIRST_BYTES = 64 << 10
"""Most that is received with it."""

_SHARED = memoryview(bytearray(FIRST_BYTES))


class Greeting:
    """One of them.

    Args:
        loop: The event loop.
        client: The caller's end, non-blocking; becomes another's with `done`.
        done: Called with the preface and what came with it.
        lost: Called with why there will be none: "" if the caller went away. The end is closed.
    """

    __slots__ = ("_client", "_done", "_got", "_loop", "_lost", "_timer")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        client: End,
        done: Callable[[bytes], None],
        lost: Callable[[str], None],
        *,
        seconds: float | None = None,
    ) -> None:
        self._loop = loop
        self._client = client
        self._done = done
        self._lost = lost
        self._got = b""
        self._timer = loop.call_later(SECONDS if seconds is None else seconds, self._late)
        loop.add_reader(client.fileno(), self._readable)

    def close(self) -> None:
        """Lets the caller go."""
        self._let_go("")

    def _readable(self) -> None:
        try:
            size = self._client.recv_into(_SHARED)
        except Stuck:
            self._loop.remove_reader(self._client.fileno())
            self._loop.call_later(STUCK_SECONDS, self._unstick)
            return
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            size = 0
        if not size:
            self._let_go("")
            return
        self._got += bytes(_SHARED[:size])
        if self._got.startswith(PREFACE):
            self._stop()
            self._done(self._got)
        elif not PREFACE.startswith(self._got):
            self._let_go("it does not begin as HTTP/2 does")

    def _unstick(self) -> None:
        if not self._timer.cancelled():
            self._loop.add_reader(self._client.fileno(), self._readable)

    def _late(self) -> None:
        self._let_go("it says nothing")

    def _let_go(self, why: str) -> None:
        if self._timer.cancelled():
            return
        self._stop()
        self._client.close()
        self._lost(why)

    def _stop(self) -> None:
        self._timer.cancel()
        self._loop.remove_reader(self._client.fileno())
