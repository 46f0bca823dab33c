"""Connections that have said nothing yet: held without a place at the server until the preface of HTTP/2 is there.

Whoever only connects costs a descriptor and a timer, and is let go when the time is up; whoever begins with anything
else is let go at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from sevd.access.frames import PREFACE
from sevd.access.relay import BUFFER, STUCK_SECONDS, Stuck

if TYPE_CHECKING:
    from sevd.access.relay import End

SECONDS = 10.0
"""How long the preface may take."""

FIRST_BYTES = 64 << 10
"""Most that is received with it."""


class Greeting:
    """One of them.

    Args:
        loop: The event loop.
        client: The caller's end, non-blocking; becomes another's with `done`.
        done: Called with the preface and what came with it; answers after how many seconds to call it again, if the end
            could not be taken over yet.
        turn: Called before: seconds for which the connection has to wait still; 0: its turn has come.
        lost: Called with why there will be none: "" if the caller went away. The end is closed.
    """

    __slots__ = ("_client", "_done", "_got", "_loop", "_lost", "_over", "_timer", "_turn")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        client: End,
        done: Callable[[bytes], float | None],
        lost: Callable[[str], None],
        *,
        turn: Callable[[], float] = lambda: 0.0,
        seconds: float | None = None,
    ) -> None:
        self._loop = loop
        self._client = client
        self._done = done
        self._lost = lost
        self._turn = turn
        self._got = b""
        self._over = False
        self._timer = loop.call_later(SECONDS if seconds is None else seconds, self._late)
        loop.add_reader(client.fileno(), self._readable)

    def close(self) -> None:
        """Lets the caller go."""
        self._let_go("")

    def _readable(self) -> None:
        try:
            size = self._client.recv_into(BUFFER[:FIRST_BYTES])
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
        self._got += bytes(BUFFER[:size])
        if self._got.startswith(PREFACE):
            self._stop()
            self._go_on()
        elif not PREFACE.startswith(self._got):
            self._let_go("it does not begin as HTTP/2 does")

    def _go_on(self) -> None:
        wait = self._turn()
        if wait:
            self._timer = self._loop.call_later(wait, self._go_on)
            return
        self._hand_over()

    def _hand_over(self) -> None:
        wait = self._done(self._got)
        if wait:
            self._timer = self._loop.call_later(wait, self._hand_over)
            return
        self._over = True

    def _unstick(self) -> None:
        if not self._over:
            self._loop.add_reader(self._client.fileno(), self._readable)

    def _late(self) -> None:
        self._let_go("it says nothing")

    def _let_go(self, why: str) -> None:
        if self._over:
            return
        self._over = True
        self._stop()
        self._client.close()
        self._lost(why)

    def _stop(self) -> None:
        self._timer.cancel()
        self._loop.remove_reader(self._client.fileno())
