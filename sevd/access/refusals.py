"""Which refusals of an identity are recorded one by one: so many a minute, and the rest as a number.

The audit trail is bounded, and whoever has no rights can be refused as often as he likes: without a limit he could push
everybody else's records out of it, and keep the daemon busy writing.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

WINDOW_SECONDS = 60.0
"""How long a count counts."""

RECORDED = 120
"""Refusals of one identity for one reason that are recorded one by one within that time."""

KINDS = 4096
"""Most identities and reasons that are told apart within that time; beyond, none is recorded one by one."""


class Refusals:
    """Counts them.

    Args:
        tell: Called with identity, reason and number of refusals that were not recorded, when a window has ended.
        clock: Seconds.
    """

    def __init__(self, tell: Callable[[str, str, int], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._tell = tell
        self._clock = clock
        self._begun = clock()
        self._counts: Counter[tuple[str, str]] = Counter()

    def recorded(self, owner: str, reason: str) -> bool:
        """Whether the next one will be recorded by itself; if not, it counts as one."""
        if self._counts.get((owner, reason), 0) < RECORDED or self._clock() - self._begun >= WINDOW_SECONDS:
            return True
        self._counts[owner, reason] += 1
        return False

    def record(self, owner: str, reason: str) -> bool:
        """Whether this one is to be recorded by itself; counts it."""
        if self._clock() - self._begun >= WINDOW_SECONDS:
            self.renew()
        kind = owner, reason
        if kind not in self._counts and len(self._counts) >= KINDS:
            kind = "", reason
            self._counts[kind] = max(self._counts[kind], RECORDED)
        self._counts[kind] += 1
        return self._counts[kind] <= RECORDED

    def renew(self) -> None:
        """Tells what was left out, and begins to count anew."""
        counts, self._counts, self._begun = self._counts, Counter(), self._clock()
        for (owner, reason), count in counts.items():
            if count > RECORDED:
                self._tell(owner, reason, count - RECORDED)
