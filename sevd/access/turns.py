"""Shares the event loop between identities, so that a busy one cannot make the others wait.

Whatever a caller sends costs time of the one event loop that serves everybody: relaying it, and above all the calls
that it begins. What an identity has cost lately is its debt; it is paid off with time. As long as no other identity has
called for a while nobody is held back. Otherwise one with more debt than BURST_SECONDS waits until it has paid: what it
sends stays in its sockets. And of no identity are more than a few calls on their way through the server to their
handlers at any time: so whoever calls now and then finds few calls of others in front of his own.

What a call costs is measured: the processor time of the event loop's thread, over the calls that were made with it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from sevd.access.accounts import Account

    class Waiter(Protocol):
        """A connection that waits.

        Attributes:
            waiting: It still does.
        """

        waiting: bool

        def turn(self) -> None:
            """Its turn has come."""


BURST_SECONDS = 0.001
"""Debt that nobody has to wait for."""

LONE_BURST_SECONDS = 0.1
"""Most debt of an identity that is alone; so much it pays when another one comes."""

SHARE = 0.75
"""What those who have debt may have of the event loop together, where others call too."""

OTHERS_SECONDS = 2.0
"""How long after its last call another identity is reckoned with."""

CALLS = 8
"""Calls of an identity that are on their way to their handlers, where others call too."""

LONE_CALLS = 64
"""The same where no others do."""

PENDING_SECONDS = 0.002
"""How long to wait for calls that are on their way."""

LOST_SECONDS = 0.25
"""When none of them arrives for so long they are not waited for any more: the server has refused them itself."""

EVENT_SECONDS = 20e-6
"""Of waking up for a connection."""

CONNECTION_SECONDS = 1e-3
"""Of a connection: admitted, joined to the server, and ended."""

CALL_SECONDS = 400e-6
"""Of a call, before any was measured."""

CALLS_MEASURED = 128
"""So many calls are measured together."""

_LEAST, _MOST = 100e-6, 3e-3


class Turns:
    """The debts of all identities. On one event loop, whose thread it is made on."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, processor: Callable[[], float] = time.thread_time
    ) -> None:
        self.call_seconds = CALL_SECONDS
        """What a call costs."""
        self._clock = clock
        self._processor = processor
        self._calls = 0
        self._used = processor()
        self._latest = ""
        self._latest_at = -OTHERS_SECONDS
        self._other_at = -OTHERS_SECONDS
        self._waiting: dict[str, float] = {}

    def allowance(self, account: Account) -> tuple[float, int]:
        """Seconds that an identity may cost now, and calls that it may begin; 0 or less of either: it has to wait."""
        now = self._clock()
        # By name: an identity that hung up and comes again has another account, and is no other identity.
        if account.owner != self._latest:
            self._latest, self._other_at = account.owner, self._latest_at
        self._latest_at = now
        alone = now - self._other_at > OTHERS_SECONDS
        paid = (now - account.paid_at) * (1.0 if alone else self._share())
        account.debt = min(max(0.0, account.debt - paid), LONE_BURST_SECONDS)
        account.paid_at = now
        calls = (LONE_CALLS if alone else CALLS) - self._pending(account, now)
        return LONE_BURST_SECONDS if alone else BURST_SECONDS - account.debt, calls

    def charge(self, account: Account, seconds: float, calls: int) -> None:
        """Adds to an identity's debt."""
        account.debt += seconds
        if calls:
            account.begun += calls
            self._calls += calls
            if self._calls >= CALLS_MEASURED:
                used = self._processor()
                measured = (used - self._used) / self._calls
                self.call_seconds = min(max((self.call_seconds + measured) / 2, _LEAST), _MOST)
                self._calls, self._used = 0, used

    def take(self, account: Account, seconds: float) -> float:
        """Charges what costs so much if an identity's turn has come, and answers 0; else seconds until it may come."""
        if self.allowance(account)[0] <= 0:
            return self.wait(account)
        self.charge(account, seconds, 0)
        return 0.0

    def wait(self, account: Account) -> float:
        """Seconds until an identity may cost something again."""
        now = self._clock()
        self._waiting[account.owner] = now
        if account.debt < BURST_SECONDS:
            return PENDING_SECONDS
        return (account.debt - BURST_SECONDS / 2) / self._share()

    def line_up(self, account: Account, waiter: Waiter) -> None:
        """Has a connection wait for its identity's turn, behind those that wait already. One timer serves them all."""
        account.line.append(waiter)
        if not account.awaited:
            account.awaited = True
            asyncio.get_running_loop().call_later(self.wait(account), self._serve, account)

    def _serve(self, account: Account) -> None:
        """Lets those in line go on, as far as their identity may cost something."""
        line = account.line
        while line:
            waiter = line[0]
            if waiter.waiting:
                seconds, calls = self.allowance(account)
                if seconds <= 0 or calls <= 0:
                    asyncio.get_running_loop().call_later(self.wait(account), self._serve, account)
                    return
            line.popleft()
            if waiter.waiting:
                waiter.turn()
        account.awaited = False

    def _pending(self, account: Account, now: float) -> int:
        """Calls that have been passed to the server and are not with their handlers yet."""
        if account.arrived != account.seen:
            account.seen, account.seen_at = account.arrived, now
        if account.arrived > account.begun or now - account.seen_at > LOST_SECONDS:
            account.begun, account.seen_at = account.arrived, now
        return account.begun - account.arrived

    def _share(self) -> float:
        """What one of those that wait gets of the event loop."""
        if len(self._waiting) > 1:
            limit = self._clock() - OTHERS_SECONDS
            self._waiting = {owner: at for owner, at in self._waiting.items() if at > limit}
        return SHARE / max(1, len(self._waiting))
