"""What a host lacks, as sentences that know their remedy; and a list of them that looks again while it is not empty."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, overload

if TYPE_CHECKING:
    from collections.abc import Callable

LOOK_SECONDS = 2.0
"""Seconds for which an answer is believed while something is missing."""


class Missing(str):
    """One sentence about what is missing.

    Attributes:
        remedy: What to do about it.
    """

    remedy: str

    __slots__ = ("remedy",)

    def __new__(cls, sentence: str, remedy: str) -> Missing:
        """A sentence and its remedy."""
        one = super().__new__(cls, sentence)
        one.remedy = remedy
        return one


def remedy_of(missing: Sequence[str]) -> str:
    """What to do about the first thing that has a remedy; empty if none has."""
    return next((one.remedy for one in missing if isinstance(one, Missing) and one.remedy), "")


class Lacking(Sequence[str]):
    """What is missing now. Once nothing is, it stays so: a device that goes away says so itself.

    Args:
        look: Looks at the host.
        seconds: How long a look is believed.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        look: Callable[[], Sequence[str]],
        *,
        seconds: float = LOOK_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._look = look
        self._seconds = seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._seen = tuple(look())
        self._at = clock()

    def now(self) -> tuple[str, ...]:
        """The sentences."""
        if not self._seen or self._clock() - self._at < self._seconds:
            return self._seen
        with self._lock:
            if self._seen and self._clock() - self._at >= self._seconds:
                self._seen = tuple(self._look())
                self._at = self._clock()
            return self._seen

    def __len__(self) -> int:
        return len(self.now())

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...

    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        return self.now()[index]


class Watched(Sequence[str]):
    """What is missing now, looked at whenever somebody asks: for what may go away and come back. Must be quick.

    Args:
        look: Looks.
    """

    def __init__(self, look: Callable[[], Sequence[str]]) -> None:
        self._look = look

    def __len__(self) -> int:
        return len(self._look())

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...

    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        return self._look()[index]
