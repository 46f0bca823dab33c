"""How often each identity may create a guest: a bucket of launches that refills with time.

Who has created none for a minute may create a minute's worth at once; after that one for each share of the minute that
has passed.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from sev.errors import NEVER, LimitReached

MINUTE = 60.0

BUCKETS = 1024
"""Buckets kept before those that are full again are looked for and dropped."""


class LaunchRate:
    """The buckets of all identities."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, owner: str, per_minute: int) -> None:
        """Takes one launch out of a bucket that holds `per_minute`.

        Raises:
            LimitReached: There is none; `retry_after` says when there will be one.
        """
        now = self._clock()
        left, at = self._buckets.get(owner, (float(per_minute), now))
        left = min(float(per_minute), left + (now - at) * per_minute / MINUTE)
        if left < 1:
            wait = (1 - left) * MINUTE / per_minute if per_minute else NEVER
            raise LimitReached(
                f"{owner} has created {per_minute} guests within a minute: no more are allowed"
                if per_minute
                else f"{owner} may create no guests",
                remedy="Create guests less often, or have the limit raised in the daemon's configuration.",
                metadata={"limit": "launches_per_minute", "value": str(per_minute)},
                retry_after=wait,
            )
        self._buckets[owner] = left - 1, now
        if len(self._buckets) > BUCKETS:
            self._buckets = {one: bucket for one, bucket in self._buckets.items() if now - bucket[1] < MINUTE}
