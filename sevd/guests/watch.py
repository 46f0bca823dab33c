"""Streams of guests and their changes, for any number of watchers, none of which can slow anybody down.

A watcher sees each guest as it is, then as it became. What it did not fetch yet is kept as the newest state per guest:
a slow watcher misses steps in between, never the last one. One that lets more guests than its backlog pile up is ended
with an error.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from sev.errors import LimitReached
from sevd.guests.model import GuestState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sevd.access.identity import Caller
    from sevd.guests.model import Guest


class Watch(AsyncIterator["Guest"]):
    """One stream: an async iterator of guests. `close` it when done; its end and `aclose` do so too.

    Raises (while iterating):
        LimitReached: More guests changed than the watcher's backlog holds.
    """

    def __init__(
        self, caller: Caller, only: tuple[str, str] | None, backlog: int, forget: Callable[[Watch], None]
    ) -> None:
        self.caller = caller
        self._only = only
        self._backlog = backlog
        self._forget = forget
        self._pending: dict[tuple[str, str], Guest] = {}
        self._wake = asyncio.Event()
        self._ended = False
        self._overrun = False

    def offer(self, guest: Guest) -> None:
        """Queues a guest's newest state if the watcher may see it and asked for it."""
        key = guest.owner, guest.guest_id
        if self._ended or (self._only or key) != key or not self.caller.may_see(guest.owner):
            return
        self._pending.pop(key, None)  # the newest state stands at the end
        self._pending[key] = guest
        if len(self._pending) > self._backlog:
            self._overrun = self._ended = True
            self._pending.clear()
        elif self._only and guest.state is GuestState.DELETED:
            self._ended = True
        self._wake.set()

    def end(self) -> None:
        """Ends the stream after what is queued."""
        self._ended = True
        self._wake.set()

    def close(self) -> None:
        """Ends the stream at once and gives its place back."""
        self._pending.clear()
        self.end()
        self._forget(self)

    async def aclose(self) -> None:
        """The same as `close`, for users of async generators."""
        self.close()

    def __aiter__(self) -> Watch:
        return self

    async def __anext__(self) -> Guest:
        while not self._pending and not self._ended:
            self._wake.clear()
            await self._wake.wait()
        if self._pending:
            return self._pending.pop(next(iter(self._pending)))
        self.close()
        if self._overrun:
            self._overrun = False
            raise LimitReached(
                f"more than {self._backlog} guests changed while the watcher read nothing",
                remedy="Read faster, or watch again: the stream begins with the guests as they are.",
                metadata={"limit": "watch_backlog", "value": str(self._backlog)},
            )
        raise StopAsyncIteration


class Watchers:
    """All streams."""

    def __init__(self, backlog: int) -> None:
        self._backlog = backlog
        self._watches: dict[Watch, Callable[[Caller], None]] = {}

    def open(
        self,
        caller: Caller,
        guests: Iterable[Guest],
        only: tuple[str, str] | None,
        closed: Callable[[Caller], None],
    ) -> Watch:
        """A stream that begins with these guests. `only` is (owner, id) of the one guest asked for.

        `closed` is called once, with the caller, when the stream ends.
        """
        first = list(guests)
        watch = Watch(caller, only, max(self._backlog, 2 * len(first)), self._forget)
        self._watches[watch] = closed
        for guest in first:
            watch.offer(guest)
        return watch

    def publish(self, guest: Guest) -> None:
        """Tells everybody who may know how a guest became."""
        for watch in tuple(self._watches):
            watch.offer(guest)

    def end(self) -> None:
        """Ends every stream after what is queued."""
        for watch in tuple(self._watches):
            watch.end()

    def _forget(self, watch: Watch) -> None:
        closed = self._watches.pop(watch, None)
        if closed is not None:
            closed(watch.caller)
