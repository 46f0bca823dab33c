"""A step that outlives its caller, so that nothing is left half done when a client goes away.

The step runs as a task of its own. If its caller is cancelled, the piece of device work that waits is taken back, the
step ends at the next piece, and what the firmware did until then is recorded.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from sev.errors import InternalError, NotNow, SevError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from sevd.devices.scheduler import Job, Scheduler

P = ParamSpec("P")
T = TypeVar("T")

log = logging.getLogger(__name__)


class Withdrawn(Exception):
    """The caller is gone; nobody sees this error but the step itself."""


class Work:
    """One step under way.

    Attributes:
        withdrawn: The caller is gone.
        issued: The last piece reached the device, whatever it answered.
    """

    def __init__(self, scheduler: Scheduler, lane: str) -> None:
        self._scheduler = scheduler
        self._lane = lane
        self._job: Job[object] | None = None
        self.withdrawn = False
        self.issued = False

    def withdraw(self) -> None:
        """The caller is gone: takes back the piece that waits; no further piece is issued."""
        self.withdrawn = True
        if self._job is not None:
            self._job.cancel()

    def check(self) -> None:
        """Raises Withdrawn if the caller is gone."""
        if self.withdrawn:
            raise Withdrawn

    async def do(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """One piece of device work, in the order of its lane.

        Raises:
            Withdrawn: It was not issued, because the caller is gone.
            NotNow: It was not issued, because the daemon stops or the queue is full (LimitReached).
            SevError: It failed; what is no SevError becomes an InternalError.
        """
        self.check()
        self.issued = False
        job = self._scheduler.submit(self._lane, function, *args, **kwargs)
        self._job = job  # type: ignore[assignment]  # only ever cancelled
        try:
            return await job.done()
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not job.future.cancelled() or (task is not None and task.cancelling()):
                raise  # whoever waits was cancelled, and not the job alone
            self.check()
            raise NotNow("the daemon is stopping", remedy="Try again when it runs again.") from None
        except SevError:
            raise
        except Exception as error:
            log.exception("device work failed in lane %s", self._lane)
            raise InternalError(f"{type(error).__name__} in the device driver") from error
        finally:
            self.issued = job.future.done() and not job.future.cancelled()
            self._job = None


class Steps:
    """Steps under way."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[object]] = set()

    async def run(self, step: Coroutine[object, object, T], work: Work | None) -> T:
        """Runs a step to its end, whatever happens to the caller.

        A cancelled caller withdraws `work`; with None the step simply goes on.
        """
        task = asyncio.ensure_future(step)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if work is not None:
                work.withdraw()
            raise

    async def drain(self, seconds: float) -> None:
        """Waits for every step under way, at most so long."""
        if self._tasks:
            await asyncio.wait(tuple(self._tasks), timeout=seconds)

    def _done(self, task: asyncio.Task[object]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # a caller that is gone will not ask for it
