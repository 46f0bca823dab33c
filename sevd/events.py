"""What happens on this host, told to whoever watches and may know.

`publish` may be called from any thread; subscribers run on the event loop. Every subscriber has a bounded queue: one
that does not read is ended with an error, it never slows anybody down.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from sev.errors import LimitReached
from sev.records import field, record
from sevd.access.identity import Caller

QUEUE_EVENTS = 1024
"""Events that one subscriber may lag behind before its subscription ends."""

RECENT_EVENTS = 512
"""Events that are kept for whoever asks what happened lately."""

WATCHES = 32
"""Subscriptions of one identity."""

if TYPE_CHECKING:
    from typing import Protocol

    class Publisher(Protocol):
        """Where events go: what the logic needs of `Events`."""

        def publish(
            self,
            kind: str,
            message: str,
            guest_id: str = "",
            owner: str | None = None,
            details: Mapping[str, str] | None = None,
        ) -> object: ...


log = logging.getLogger(__name__)


@record
class Event:
    """One thing that happened.

    Attributes:
        sequence: Counts up by one from the daemon's start, from 1.
        time: When, in UTC.
        kind: A stable word such as "guest.created" or "platform.committed".
        message: One sentence for people.
        guest_id: The guest it is about, if any.
        owner: Only this owner and admins may see it; None: every caller may.
        details: Further facts, by name.
        simulated: The platform is simulated.
    """

    sequence: int
    time: datetime
    kind: str
    message: str
    guest_id: str = ""
    owner: str | None = None
    details: Mapping[str, str] = field(default_factory=dict)
    simulated: bool = False

    def visible_to(self, caller: Caller) -> bool:
        """Whether the caller may know of it."""
        return self.owner is None or caller.may_see(self.owner)


class Events:
    """The stream of events of one daemon."""

    def __init__(self, *, simulated: bool = False, queue_events: int = QUEUE_EVENTS) -> None:
        self._simulated = simulated
        self._limit = queue_events
        self._sequence = 0
        self._lock = threading.Lock()
        self._subscriptions: set[Subscription] = set()
        self.watches = WATCHES
        """Subscriptions of one identity that has no limit of its own."""
        self._listeners: list[Callable[[Event], None]] = []
        self._closed = False
        self._recent: deque[Event] = deque(maxlen=RECENT_EVENTS)

    def publish(
        self,
        kind: str,
        message: str,
        guest_id: str = "",
        owner: str | None = None,
        details: Mapping[str, str] | None = None,
    ) -> Event:
        """Tells everybody who may know; answers the event. From any thread; never blocks, never raises."""
        with self._lock:
            self._sequence += 1
            event = Event(
                self._sequence, datetime.now(UTC), kind, message, guest_id, owner, dict(details or {}), self._simulated
            )
            self._recent.append(event)
            subscriptions = list(self._subscriptions)
            listeners = list(self._listeners)
        for listener in listeners:
            try:
                listener(event)
            except Exception:
                log.exception("a listener failed on event %s", kind)
        for subscription in subscriptions:
            subscription.offer(event)
        return event

    def listen(self, listener: Callable[[Event], None]) -> Callable[[], None]:
        """Calls `listener` for every event, in the publishing thread; answers a function that ends it."""
        with self._lock:
            self._listeners.append(listener)

        def stop() -> None:
            with self._lock:
                if listener in self._listeners:
                    self._listeners.remove(listener)

        return stop

    def subscribe(self, caller: Caller, *, recent: int = 0, only_recent: bool = False) -> Subscription:
        """Events that the caller may see. To be called on the event loop; use as an async iterator.

        Args:
            caller: Who asks.
            recent: Begin with at most so many that have happened already, of those that are kept; nothing between
                them and what follows is missing.
            only_recent: End after these.

        Raises:
            LimitReached: Too many subscriptions of this identity; or, while iterating: the subscriber lags too far
                behind.
        """
        self._check(caller)
        subscription = Subscription(caller, self._limit, asyncio.get_running_loop(), self._forget)
        with self._lock:
            seen = [event for event in self._recent if event.visible_to(caller)]
            for event in seen[-recent:] if recent else ():
                subscription.offer(event)
            if self._closed or only_recent:
                subscription.end()
            else:
                self._subscriptions.add(subscription)
        return subscription

    def _check(self, caller: Caller) -> None:
        most = caller.limit(caller.limits.watches, self.watches)
        with self._lock:
            open_now = sum(one.caller.owner == caller.owner for one in self._subscriptions)
        if most is not None and open_now >= most:
            raise LimitReached(
                f"{open_now + 1} streams of events of one identity: the limit is {most}",
                remedy="Close streams that are no longer read.",
                metadata={"limit": "watches", "value": str(most), "in_use": str(open_now)},
            )

    def close(self) -> None:
        """Ends every subscription after what is queued."""
        with self._lock:
            self._closed = True
            subscriptions = list(self._subscriptions)
        for subscription in subscriptions:
            subscription.end()

    def _forget(self, subscription: Subscription) -> None:
        with self._lock:
            self._subscriptions.discard(subscription)


class Subscription(AsyncIterator[Event]):
    """What one subscriber still has to read. An async iterator; `close` it when done (the iterator's end does)."""

    def __init__(
        self,
        caller: Caller,
        limit: int,
        loop: asyncio.AbstractEventLoop,
        forget: Callable[[Subscription], None],
    ) -> None:
        self.caller = caller
        self._limit = limit
        self._loop = loop
        self._forget = forget
        self._queue: deque[Event] = deque()
        self._ready = asyncio.Event()
        self._ended = False
        self._overrun = False

    def offer(self, event: Event) -> None:
        """Queues an event that the caller may see. From any thread."""
        if self._ended or not event.visible_to(self.caller):
            return
        if len(self._queue) >= self._limit:
            self._overrun = True
        else:
            self._queue.append(event)
        self._wake()

    def end(self) -> None:
        """Ends the iteration after what is queued. From any thread."""
        self._ended = True
        self._wake()

    def close(self) -> None:
        """Forgets the subscription; nothing more is queued."""
        self._ended = True
        self._forget(self)

    async def aclose(self) -> None:
        """The same as `close`, for users of async generators."""
        self.close()

    def _wake(self) -> None:
        try:
            running: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is self._loop:
            self._ready.set()
            return
        try:
            self._loop.call_soon_threadsafe(self._ready.set)
        except RuntimeError:  # the loop is closed: nobody reads any more
            self._forget(self)

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Event:
        while True:
            if self._queue:
                return self._queue.popleft()
            if self._overrun:
                self.close()
                raise LimitReached(
                    f"the subscriber lags more than {self._limit} events behind",
                    remedy="Read faster, or subscribe again and look at the current state.",
                    metadata={"limit": "watch_backlog", "value": str(self._limit)},
                )
            if self._ended:
                self.close()
                raise StopAsyncIteration
            self._ready.clear()
            # Looked at again after clearing: an event may have come from another thread in between.
            if not self._pending():
                await self._ready.wait()

    def _pending(self) -> bool:
        return bool(self._queue) or self._ended or self._overrun
