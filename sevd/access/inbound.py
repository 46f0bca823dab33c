"""One direction of a relay: from a caller to the server, frame by frame, as the caller's turn comes."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from sevd.access.frames import PREFACE, Frames
from sevd.access.relay import BUFFER, BULK_BYTES, SEND_BYTES, STUCK_SECONDS, Stuck
from sevd.access.turns import EVENT_SECONDS

if TYPE_CHECKING:
    from sevd.access.accounts import Account
    from sevd.access.relay import End, Relay
    from sevd.access.turns import Turns


class Holder(Protocol):
    """Whose bytes these are.

    Attributes:
        account: What its identity uses; may become another one.
    """

    account: Account


class Inbound:
    """From a caller to the server."""

    __slots__ = (
        "_bulk", "_cleared", "_frames", "_holder", "_loop", "_pending", "_reading", "_receive", "_received", "_relay",
        "_send", "_source", "_target", "_timer", "_turns", "_writing", "ended", "waiting",
    )  # fmt: skip

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        source: End,
        target: socket.socket,
        relay: Relay,
        *,
        first: bytes,
        turns: Turns,
        holder: Holder,
        received: Callable[[], None] = lambda: None,
    ) -> None:
        """`first` is what the caller has sent already: the preface of HTTP/2 and what came with it.

        `received` is called after bytes of messages were counted.
        """
        self._received = received
        self._loop = loop
        self._source = source
        self._target = target
        self._relay = relay
        self._turns = turns
        self._holder = holder
        self._receive = source.recv_into
        self._send = target.send
        self._frames = Frames()
        self._pending = memoryview(first)
        self._cleared = len(PREFACE)
        self._reading = self._writing = self._bulk = False
        self._timer: asyncio.TimerHandle | None = None
        self.waiting = False
        """In the line of its identity."""
        self.ended = False
        self._go_on()

    def release(self) -> None:
        """Stops listening."""
        self._listen(reading=False, writing=False)
        self.waiting = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def turn(self) -> None:
        """It is its turn: goes on with what waits here, or with what waits in the socket."""
        self.waiting = False
        if self._pending:
            self._go_on()
        else:
            self._listen(reading=True, writing=False)
            self._take()

    def _readable(self) -> None:
        if self._holder.account.line:
            self._line_up()  # behind those who wait already
        else:
            self._take()

    def _take(self) -> None:
        account = self._holder.account
        allowance = self._turns.allowance(account)
        if allowance[0] <= 0 or allowance[1] <= 0:
            self._line_up()
            return
        try:
            size = self._receive(BUFFER)
        except Stuck:
            self._pause(STUCK_SECONDS)
            return
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._relay.close()
            return
        if not size:
            self._end()
            return
        if size >= BULK_BYTES and not self._bulk:
            self._bulk = True
            with contextlib.suppress(OSError):
                self._target.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BYTES)
        cleared = self._clear(BUFFER[:size], allowance)
        try:
            sent = self._send(BUFFER[:cleared]) if cleared else 0
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            self._relay.close()
            return
        if sent < size:
            self._pending, self._cleared = memoryview(bytes(BUFFER[sent:size])), cleared - sent
            self._wait()

    def _clear(self, data: memoryview, allowance: tuple[float, int]) -> int:
        """How much of it may go on now."""
        frames, turns = self._frames, self._turns
        calls, received = frames.calls, frames.data
        cleared, cost = frames.read(data, *allowance, turns.call_seconds)
        account = self._holder.account
        turns.charge(account, cost + EVENT_SECONDS, frames.calls - calls)
        if frames.data > received:
            account.received += frames.data - received
            self._received()
        return cleared

    def _go_on(self) -> None:
        """Sends what waits, as far as it may go on and the server takes it."""
        self._timer = None
        while self._pending:
            if not self._cleared:
                account = self._holder.account
                allowance = self._turns.allowance(account)
                if allowance[0] > 0 and allowance[1] > 0:
                    self._cleared = self._clear(self._pending, allowance)
                if not self._cleared:
                    self._line_up()
                    return
            try:
                sent = self._send(self._pending[: self._cleared])
            except (BlockingIOError, InterruptedError):
                self._wait()
                return
            except OSError:
                self._relay.close()
                return
            self._pending, self._cleared = self._pending[sent:], self._cleared - sent
        self._pending = memoryview(b"")
        self._listen(reading=True, writing=False)

    def _wait(self) -> None:
        """For the server, or for the next turn."""
        if self._cleared:
            self._listen(reading=False, writing=True)
        else:
            self._line_up()

    def _line_up(self) -> None:
        self._listen(reading=False, writing=False)
        self.waiting = True
        self._turns.line_up(self._holder.account, self)

    def _pause(self, seconds: float) -> None:
        self._listen(reading=False, writing=False)
        self._timer = self._loop.call_later(seconds, self._go_on)

    def _listen(self, *, reading: bool, writing: bool) -> None:
        if reading is not self._reading:
            self._reading = reading
            if reading:
                self._loop.add_reader(self._source.fileno(), self._readable)
            else:
                self._loop.remove_reader(self._source.fileno())
        if writing is not self._writing:
            self._writing = writing
            if writing:
                self._loop.add_writer(self._target.fileno(), self._go_on)
            else:
                self._loop.remove_writer(self._target.fileno())

    def _end(self) -> None:
        """The caller has said his last: tell the server so."""
        self.release()
        self.ended = True
        # A server that is gone already hears nothing more, and its own end is on its way.
        with contextlib.suppress(OSError):
            self._target.shutdown(socket.SHUT_WR)
        self._relay.direction_ended()
