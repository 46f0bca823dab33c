"""What a stop waits for: calls for as long as the configuration says, and a firmware command in flight to its end.

A firmware command cannot be called back: a daemon that leaves in the middle of one leaves a caller who does not know
whether it acted. What waits behind it for the device is given up when the calls' time is over.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from sevd.devices.scheduler import Scheduler

FIRMWARE_SECONDS = 105.0
"""How long a command in flight may take beyond the calls' time: the kernel's driver gives one up after 100 s."""

STEP_SECONDS = 0.005
"""Pause between two looks, at first; a wait that lasts is looked at less often."""

SAY_AGAIN_SECONDS = 1.0
"""How often a change is said to the service manager."""

SAY_SECONDS = 10.0
"""How often the log repeats what is waited for."""

log = logging.getLogger(__name__)


class Stopping:
    """One stop.

    Args:
        calls: How many calls have no answer yet, streams of answers aside.
        scheduler: What runs the firmware commands.
        seconds: How long calls may take.
        say: Told, in words, what is waited for, whenever that has changed or a second has passed.
        clock: The time in seconds.
    """

    def __init__(
        self,
        calls: Callable[[], int],
        scheduler: Scheduler,
        seconds: float,
        say: Callable[[str], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._calls = calls
        self._scheduler = scheduler
        self._say = say
        self._clock = clock
        self._until = clock() + seconds
        self._said = ("", 0.0)
        self._logged = 0.0

    @property
    def left(self) -> float:
        """Seconds that a command in flight may still take."""
        return max(0.0, self._until + FIRMWARE_SECONDS - self._clock())

    async def wait(self) -> None:
        """Returns when nothing is left to wait for, or its time is over."""
        pause = STEP_SECONDS
        while text := self.text():
            self._tell(text)
            if self._clock() >= self._until:
                if not self._scheduler.running() or not self.left:
                    log.warning("stopping without %s", text)
                    return
                self._scheduler.shed()
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, 0.1)

    def text(self) -> str:
        """What is waited for; empty if nothing is."""
        words = []
        if calls := self._calls():
            words.append(f"{calls} {'call' if calls == 1 else 'calls'}")
        if name := self._scheduler.running():
            words.append(f"the firmware command {name}, {self._scheduler.busy_for():.0f} s so far")
        return " and ".join(words)

    def _tell(self, text: str) -> None:
        now = self._clock()
        said, at = self._said
        if not said or (text != said and now - at >= SAY_AGAIN_SECONDS):
            self._said = (text, now)
            self._say(text)
        if now - self._logged >= SAY_SECONDS or not self._logged:
            self._logged = now
            log.info("stopping, waiting for %s", text)
