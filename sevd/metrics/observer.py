"""What is made of every piece of device work that ended: it is counted, and told to the call that it was done for."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from sevd.calling import CURRENT

if TYPE_CHECKING:
    from sevd.metrics.tally import Tally
    from sevd.tracing import Spans


class Observer:
    """Told by the device's scheduler.

    Args:
        tally: Where steps are counted.
        traced: Spans are written: a call keeps its steps for them.
    """

    def __init__(self, tally: Tally, *, traced: bool) -> None:
        self._tally = tally
        self._traced = traced

    def spans(self) -> Spans | None:
        """What writes spans, if they are wanted. Raises UsageError where that is not installed."""
        if not self._traced:
            return None
        from sevd.tracing import Spans

        return Spans()

    def job(self, lane: str, name: str, waited: float, took: float, error: BaseException | None) -> None:
        """A piece of device work ended just now. Runs on the worker, in the context of whoever asked for it.

        Args:
            lane: The scheduler's lane; that of a guest contains a slash, and is not told.
            name: The function's name.
            waited: Seconds in the queue.
            took: Seconds from there on.
            error: What it raised.
        """
        step = name if "/" in lane else lane
        result = "done" if error is None else str(getattr(error, "reason", "INTERNAL"))
        self._tally.step(step, result, waited, took)
        call = CURRENT.get() if self._traced else None
        if call is not None:
            from sevd.tracing import Step

            call.steps.append(Step(step, time.monotonic() - took, took, waited, result))
