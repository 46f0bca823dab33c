"""Waiting for a host that is busy: ever longer, and not for ever."""

from __future__ import annotations

import time

from sev.guest.errors import Throttled

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    T = TypeVar("T")


class Busy(Exception):
    """An attempt that may be made again; the text says what answered. Never leaves this package."""


class Patience:
    """How attempts are repeated.

    Args:
        limit: Seconds after which no further attempt is made. (The kernel waits up to a minute by itself, at every
            attempt, for a host that says it is busy.)
        first: Seconds before the second attempt; every further pause is twice as long.
        longest: Seconds of the longest pause.
        clock: Seconds that pass.
        sleep: Waits.
    """

    def __init__(
        self,
        limit: float = 30.0,
        *,
        first: float = 0.1,
        longest: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.limit = limit
        self._first = first
        self._longest = longest
        self._clock = clock
        self._sleep = sleep

    def run(self, attempt: Callable[[], T]) -> T:
        """What the first attempt answers that does not raise Busy.

        Raises:
            Throttled: Time is up.
        """
        end = self._clock() + self.limit
        pause = self._first
        count = 0
        while True:
            count += 1
            try:
                return attempt()
            except Busy as busy:
                left = end - self._clock()
                if left <= 0:
                    times = "once" if count == 1 else f"{count} times in {self.limit:g} seconds"
                    raise Throttled(f"{busy} (asked {times})", metadata={"attempts": str(count)}) from None
            self._sleep(min(pause, left))
            pause = min(2 * pause, self._longest)
