"""A device that appears after the daemon started: looked for while something is missing, and taken into use.

One that another process serves may also go away again, and is looked at for ever.

Calls look by themselves whether the device is there; this is for what was asked at the start only: what the host is,
which endorsements fit it, and what health and events tell.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from sev.errors import SevError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from sevd.devices.facts import HostFacts
    from sevd.events import Publisher
    from sevd.platform.host import HostPlatform

PAUSE_SECONDS = 5.0
"""Seconds between two looks."""

log = logging.getLogger(__name__)


class Appearing:
    """Looks for what is missing until nothing is.

    Args:
        missing: What is missing now; looks again by itself.
        look: Reads the machine's facts anew; None where they never change.
        host: Renewed whenever something else is missing than before.
        then: Called once when nothing is missing any more.
        events: Told about it.
        pause: Seconds between two looks.
        forever: What is there may go away again.
    """

    def __init__(
        self,
        missing: Sequence[str],
        look: Callable[[], HostFacts] | None,
        host: HostPlatform,
        then: Callable[[], Awaitable[None]],
        events: Publisher,
        *,
        pause: float = PAUSE_SECONDS,
        forever: bool = False,
    ) -> None:
        self._missing = missing
        self._look = look
        self._host = host
        self._then = then
        self._events = events
        self._pause = pause
        self._forever = forever
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to look, if something is missing that could appear."""
        if self._look is not None and (self._missing or self._forever):
            self._task = asyncio.create_task(self._run(self._look))

    async def close(self) -> None:
        """Stops looking."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self, look: Callable[[], HostFacts]) -> None:
        before = tuple(self._missing)
        while before or self._forever:
            await asyncio.sleep(self._pause)
            now = tuple(self._missing)
            if now == before:
                continue
            before = now
            self._host.update(await asyncio.to_thread(look))
            await self._host.refresh()
            log.warning("missing: %s", " ".join(now)) if now else log.info("nothing is missing any more")
            self._events.publish("host.changed", " ".join(now) or "nothing is missing any more")
            if not now:
                await self._take_into_use()

    async def _take_into_use(self) -> None:
        try:
            await self._then()
        except SevError as error:
            log.warning("the endorsements were not renewed: %s", error.message)
