"""When to ask again after a failure: later each time, never at the same moment as everybody else, never before told.

A failure of the service itself (no connection, throttled, broken) holds up everything; one of a single answer (unknown
chip, something that is not genuine) holds up that one alone.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from sev.kds.errors import KdsUnavailable
from sev.records import mutable_record

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from sev.errors import SevError

LONGEST = 6 * 3600.0
"""Seconds between two attempts at most, unless the service asks for more."""

SERVICE = ""
"""The key of the service itself."""


@mutable_record
class _Pause:
    failures: int = 0
    until: float = 0.0
    told: bool = False


class Pauses:
    """The pauses of one service.

    Args:
        first: Seconds after the first failure; each further one doubles them.
        clock: Monotonic seconds.
        jitter: From 0 to 1: a pause is between half of its length and all of it.
    """

    def __init__(self, first: float, clock: Callable[[], float], jitter: Callable[[], float] = random.random) -> None:
        self._first = first
        self._clock = clock
        self._jitter = jitter
        self._pauses: dict[str, _Pause] = {}

    def failed(self, key: str, error: SevError) -> None:
        """Something failed; what that holds up waits."""
        told = error.retry_after if isinstance(error, KdsUnavailable) else None
        pause = self._pauses.setdefault(SERVICE if self.of_service(error) else key, _Pause())
        pause.failures += 1
        doubled = 2.0 ** min(pause.failures - 1, 30)
        pause.told = told is not None
        if told is None:
            length = min(self._first * doubled, LONGEST) * (0.5 + 0.5 * self._jitter())
        else:
            # Its word counts; one that keeps saying so is given more time than it asks for.
            length = max(told, min(told * doubled, LONGEST)) * (1.0 + 0.1 * self._jitter())
        pause.until = self._clock() + length

    def worked(self, key: str) -> None:
        """The service answered, and this was good."""
        self._pauses.pop(SERVICE, None)
        self._pauses.pop(key, None)

    def left(self, key: str) -> float:
        """Seconds until this may be asked for; 0: now."""
        until = max((self._pauses[one].until for one in (SERVICE, key) if one in self._pauses), default=0.0)
        return max(0.0, until - self._clock())

    def hasten(self) -> None:
        """Somebody has a reason to ask now: all pauses end, but for those that the service itself asked for."""
        for key, pause in list(self._pauses.items()):
            if not pause.told:
                del self._pauses[key]

    def forget_all_but(self, keys: Collection[str]) -> None:
        """Forgets what nobody needs any more."""
        for key in set(self._pauses) - {SERVICE, *keys}:
            del self._pauses[key]

    @staticmethod
    def of_service(error: SevError) -> bool:
        """Whether an error is one of the service itself."""
        return isinstance(error, KdsUnavailable) and error.passes
