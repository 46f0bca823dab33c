"""Launches in flight, and platform commands that must not fall between two of their steps.

A launch is in flight from its START to its FINISH, its failure or its deletion, as long as its owner goes on with it:
one that was left alone for `idle_seconds` does not hold up the platform for ever. A platform command that needs quiet
waits for the launches in flight, a bounded time; launches that want to start meanwhile wait behind it, so that a busy
host cannot starve its administrator. All of it happens on the event loop.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from sev.errors import NotNow

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

IDLE_SECONDS = 30.0
"""Seconds without a step after which a launch no longer counts as in flight."""

WAIT_SECONDS = 5.0
"""Seconds that a platform command waits for launches in flight."""


class Quiet:
    """Keeps launches and quiet-needing platform commands apart."""

    def __init__(
        self,
        *,
        idle_seconds: float = IDLE_SECONDS,
        wait_seconds: float = WAIT_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._idle = idle_seconds
        self._wait = wait_seconds
        self._clock = clock
        self._launches: dict[str, float] = {}
        self._platform = 0
        self._alone = 0
        self._changed = asyncio.Event()

    async def begin(self, launch: str) -> None:
        """A launch wants to start: waits while a platform command has, or waits for, the quiet."""
        while self._platform:
            await self._wait_change(None)
        self._launches[launch] = self._clock()

    async def admit(self) -> None:
        """A guest is to be created: waits while a platform command runs that no guest may meet."""
        while self._alone:
            await self._wait_change(None)

    def touch(self, launch: str) -> None:
        """A launch in flight takes a step."""
        if launch in self._launches:
            self._launches[launch] = self._clock()

    def end(self, launch: str) -> None:
        """A launch ended, whichever way; unknown ones are ignored."""
        if self._launches.pop(launch, None) is not None:
            self._notify()

    def in_flight(self) -> tuple[str, ...]:
        """Launches in flight, in the order in which they started."""
        oldest = self._clock() - self._idle
        return tuple(launch for launch, touched in self._launches.items() if touched >= oldest)

    @asynccontextmanager
    async def platform(self, command: str) -> AsyncIterator[None]:
        """Holds the quiet for a platform command.

        Raises:
            NotNow: Launches are still in flight after the wait; metadata `launches` says how many.
        """
        self._platform += 1
        try:
            deadline = self._clock() + self._wait
            while flying := self.in_flight():
                left = deadline - self._clock()
                if left <= 0:
                    raise NotNow(
                        f"{command} needs a quiet platform, and {len(flying)} "
                        f"{'launch is' if len(flying) == 1 else 'launches are'} in flight",
                        remedy="Try again when they are finished; an administrator may delete them (sev guest list).",
                        command=command,
                        metadata={"launches": str(len(flying))},
                    )
                await self._wait_change(min(left, 0.25))
            yield
        finally:
            self._platform -= 1
            self._notify()

    @asynccontextmanager
    async def alone(self, command: str) -> AsyncIterator[None]:
        """The same, and no guest is created meanwhile. Raises as `platform`."""
        self._alone += 1
        try:
            async with self.platform(command):
                yield
        finally:
            self._alone -= 1
            self._notify()

    async def _wait_change(self, seconds: float | None) -> None:
        changed = self._changed
        try:
            async with asyncio.timeout(seconds):
                await changed.wait()
        except TimeoutError:
            pass  # an idle launch ages without telling anybody

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
