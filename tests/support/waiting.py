"""Waiting for what must come."""

from __future__ import annotations

import time
from collections.abc import Callable


def eventually(true: Callable[[], bool], what: str, seconds: float = 30) -> None:
    """Waits until it is so; fails the test, and says what was waited for, if it is not within so many seconds."""
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, f"not in {seconds} s: {what}"
        time.sleep(0.05)
