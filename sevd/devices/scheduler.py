"""One worker thread for everything that is asked of the devices: ordered per lane, fair between lanes.

A lane is one guest, or the platform. Jobs of one lane run in the order in which they came; the worker takes one job of
each lane in turn, so that a guest with a thousand pieces of an update waiting delays nobody by more than one piece.
Launch steps and platform commands therefore never overlap, which is also what the firmware's one mailbox does.

Cancelling before a job is issued means that it is never issued. Once it is issued it runs to its end: a firmware
command cannot be called back, and `Job.done` tells how it ended.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from concurrent.futures import Future
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Generic, ParamSpec, TypeVar

from sev.errors import LimitReached, NotNow

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
T = TypeVar("T")

QUEUE_JOBS = 4096
"""Jobs of all lanes that may wait; one more is refused."""

LANE_JOBS = 256
"""Jobs of one lane that may wait; one more is refused."""


class Job(Generic[T]):
    """One piece of device work, from the moment it is queued."""

    __slots__ = ("_call", "context", "future", "lane", "name", "queued_at")

    def __init__(self, lane: str, name: str, call: Callable[[], T]) -> None:
        self.lane = lane
        self.name = name
        self.queued_at = time.monotonic()
        self.future: Future[T] = Future()
        # What the worker logs belongs to the call that asked for it.
        self.context = copy_context()
        self._call: Callable[[], T] | None = partial(self.context.run, call)

    def cancel(self) -> bool:
        """Takes the job out of the queue; False if it was issued already."""
        return self.future.cancel()

    async def done(self) -> T:
        """Waits for the end and answers what the function answered, or raises what it raised.

        Cancelling the wait cancels the job if it was not issued yet.
        """
        return await asyncio.wrap_future(self.future)

    def _run(self) -> partial[None] | None:
        """Runs on the worker; answers what tells the outcome to whoever waits. None if there is nothing to tell."""
        call, self._call = self._call, None
        if call is None or not self.future.set_running_or_notify_cancel():
            return None
        try:
            result = call()
        except BaseException as error:
            # Whatever it was belongs to whoever waits for the job; the worker goes on.
            return partial(self.future.set_exception, error)
        return partial(self.future.set_result, result)


class Scheduler:
    """The queue and its worker. `submit` and `run` from any thread; `close` ends the worker.

    Args:
        queue_jobs: Jobs of all lanes that may wait.
        lane_jobs: Jobs of one lane that may wait.
        name: The worker thread's.
        observe: Told, on the worker and in the job's context, of every job that ended: its lane, the function's name,
            seconds in the queue, seconds from there on, and what it raised.
    """

    def __init__(
        self,
        *,
        queue_jobs: int = QUEUE_JOBS,
        lane_jobs: int = LANE_JOBS,
        name: str = "sevd-device",
        observe: Callable[[str, str, float, float, BaseException | None], None] | None = None,
    ) -> None:
        self._observe = observe
        self._queue_jobs = queue_jobs
        self._lane_jobs = lane_jobs
        self._condition = threading.Condition()
        self._lanes: dict[str, deque[Job[object]]] = {}
        self._turns: deque[str] = deque()
        self._waiting = 0
        self._closed = False
        self._issued_at: float | None = None
        self._running = ""
        self._progress = time.monotonic()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Jobs that wait, the one that runs not counted."""
        return self._waiting

    @property
    def progress(self) -> float:
        """time.monotonic() of the last proof of life: now while the worker is idle, else when the job was issued."""
        issued = self._issued_at
        return issued if issued is not None else time.monotonic() if self._thread.is_alive() else self._progress

    def busy_for(self) -> float:
        """Seconds for which the job that runs now has been running; 0 while none does."""
        issued = self._issued_at
        return time.monotonic() - issued if issued is not None else 0.0

    def running(self) -> str:
        """The function's name of the job that runs now; empty while none does."""
        return self._running

    def shed(self) -> None:
        """Cancels what waits; the job that runs goes on."""
        with self._condition:
            for queue in self._lanes.values():
                for job in queue:
                    job.cancel()

    def submit(self, lane: str, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Job[T]:
        """Queues a call at the end of its lane.

        Raises:
            LimitReached: The queue, or this lane of it, is full.
            NotNow: The scheduler is closed.
        """
        return self._queue(Job(lane, _name(function), lambda: function(*args, **kwargs)), bounded=True)

    def release(self, lane: str, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Job[T]:
        """Queues a call that gives something back (a VM, an ASID): taken however full the queue is.

        Raises:
            NotNow: The scheduler is closed.
        """
        return self._queue(Job(lane, _name(function), lambda: function(*args, **kwargs)), bounded=False)

    async def run(self, lane: str, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Queues a call and waits for it; see `submit` and `Job.done`."""
        return await self.submit(lane, function, *args, **kwargs).done()

    def close(self, timeout: float = 5.0) -> bool:
        """Refuses new jobs, cancels those that wait, and waits `timeout` seconds for the one that runs.

        Returns:
            False if it still runs then (a firmware command that does not come back); its thread dies with the process.
        """
        with self._condition:
            self._closed = True
            self._condition.notify()
        self.shed()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _queue(self, job: Job[T], *, bounded: bool) -> Job[T]:
        with self._condition:
            if self._closed:
                raise NotNow("the daemon is stopping", remedy="Try again when it runs again.")
            queue = self._lanes.get(job.lane)
            full = self._waiting >= self._queue_jobs or (queue is not None and len(queue) >= self._lane_jobs)
            if bounded and full:
                raise LimitReached(
                    f"{self._waiting} commands wait for the device already",
                    remedy="Wait for earlier calls to end, then try again.",
                    metadata={"limit": "device_queue"},
                )
            if queue is None:
                queue = self._lanes[job.lane] = deque()
                self._turns.append(job.lane)
            queue.append(job)  # type: ignore[arg-type]  # the worker hands the result on without looking at it
            self._waiting += 1
            self._condition.notify()
        return job

    def _work(self) -> None:
        while True:
            with self._condition:
                while not self._turns and not self._closed:
                    self._condition.wait()
                if not self._turns:
                    return
                lane = self._turns.popleft()
                queue = self._lanes[lane]
                job = queue.popleft()
                self._waiting -= 1
                if queue:
                    self._turns.append(lane)
                else:
                    del self._lanes[lane]
                issued_at = self._issued_at = self._progress = time.monotonic()
                self._running = job.name
            tell = job._run()
            # Before anybody hears of the outcome: who does shall not find the worker busy with it.
            ended_at = self._progress = time.monotonic()
            self._issued_at = None
            self._running = ""
            if tell is not None:
                try:
                    if self._observe is not None:
                        error = tell.args[0] if tell.func == job.future.set_exception else None
                        waited, took = issued_at - job.queued_at, ended_at - issued_at
                        job.context.run(self._observe, job.lane, job.name, waited, took, error)
                finally:
                    tell()
            del job, tell  # an idle worker keeps nothing alive


def _name(function: Callable[..., object]) -> str:
    """A function's name, for those who observe."""
    return getattr(function, "__name__", type(function).__name__)
