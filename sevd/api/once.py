"""A request id acts once: the journal's entries and the calls that are under way, seen together.

A call under an id runs in a task of its own. If its caller's connection breaks, it goes on to its end, so that the
retry finds the outcome; if the caller cancels it, it is cancelled, and its outcome is not known from then on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from sev.errors import KernelError, OutcomeUnknown, UsageError
from sev.records import mutable_record
from sevd.journal import Journal, Outcome

MAX_ID = 64
"""Characters of a request id."""

log = logging.getLogger(__name__)


@mutable_record
class _Running:
    """A call under way: what it is, its task, and how many callers wait for it."""

    method: str
    digest: str
    task: asyncio.Task[Outcome]
    waiting: int = 0


def check_id(request_id: str) -> None:
    """Raises UsageError unless this can be a request id: at most 64 printable ASCII characters."""
    if len(request_id) > MAX_ID or not (request_id.isascii() and request_id.isprintable()):
        raise UsageError(
            f"request_id: expected at most {MAX_ID} printable ASCII characters",
            field="request_id",
            remedy="Make a UUID for every request.",
        )


class Once:
    """Runs calls under their request ids. On one event loop."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._lock = asyncio.Lock()  # the journal's disk is used by one thread at a time
        self._running: dict[tuple[str, str], _Running] = {}

    async def run(
        self,
        owner: str,
        request_id: str,
        method: str,
        digest: str,
        act: Callable[[], Awaitable[Outcome]],
        *,
        cancelled_by_caller: Callable[[], bool],
    ) -> tuple[Outcome, bool]:
        """The outcome of the request under this id, and whether it had been asked before.

        Args:
            owner: The identity.
            request_id: Its id.
            method: Full path of the method.
            digest: SHA-256 of the request, hex.
            act: Does it; called at most once for an id, and raises nothing but CancelledError.
            cancelled_by_caller: Whether a cancellation that arrives is the caller's will (not a broken connection).

        Raises:
            UsageError: The id is malformed, or was used for another request.
            OutcomeUnknown: The first call under this id was cut off.
            KernelError: The journal cannot be written; nothing was done.
            LimitReached: Too many calls of this identity are under way.
        """
        check_id(request_id)
        key = (owner, request_id)
        running, repeated = self._running.get(key), True
        if running is not None and (running.method, running.digest) != (method, digest):
            raise UsageError(
                "request_id: this id is in use for another request",
                field="request_id",
                remedy="Make a fresh id (a UUID) for every request.",
            )
        if running is None:
            entry = self._journal.find(owner, request_id, method, digest)
            if entry is not None:
                return _recorded(entry.outcome), True
            repeated = False
            task = asyncio.create_task(self._first(key, method, digest, act))
            running = self._running[key] = _Running(method, digest, task)
            task.add_done_callback(lambda _: self._running.pop(key, None))
        return await self._wait(running, cancelled_by_caller), repeated

    def __len__(self) -> int:
        """Calls under way."""
        return len(self._running)

    async def drain(self, seconds: float) -> None:
        """Waits for the calls under way; cancels those that take longer."""
        tasks = [running.task for running in self._running.values()]
        if not tasks:
            return
        _, pending = await asyncio.wait(tasks, timeout=seconds)
        for task in pending:
            task.cancel()
        if pending:
            await asyncio.wait(pending, timeout=1)

    async def _wait(self, running: _Running, cancelled_by_caller: Callable[[], bool]) -> Outcome:
        running.waiting += 1
        try:
            # A task ended by a failure of the journal hands that on; by a cancellation of another caller: unknown.
            return await asyncio.shield(running.task)
        except asyncio.CancelledError:
            if running.task.cancelled():
                raise OutcomeUnknown("the first call under this request id was cancelled") from None
            if running.waiting == 1 and cancelled_by_caller():
                running.task.cancel()
            raise
        finally:
            running.waiting -= 1

    async def _first(
        self, key: tuple[str, str], method: str, digest: str, act: Callable[[], Awaitable[Outcome]]
    ) -> Outcome:
        try:
            async with self._lock:
                await asyncio.to_thread(self._journal.begin, *key, method, digest)
        except OSError as error:
            raise KernelError(
                error.errno or 0,
                command="journal",
                message=f"the journal of request ids cannot be written ({error.strerror}): nothing was done",
                remedy="Free space in the state directory.",
            ) from None
        outcome: Outcome | None = None
        try:
            outcome = await act()
        finally:
            await self._finish(key, outcome)
        return outcome

    async def _finish(self, key: tuple[str, str], outcome: Outcome | None) -> None:
        try:
            async with self._lock:
                await asyncio.to_thread(self._journal.finish, *key, outcome)
        except OSError as error:
            log.error("the journal cannot be written, the outcome is known until the daemon ends: %s", error.strerror)


def _recorded(outcome: Outcome | None) -> Outcome:
    if outcome is None:
        raise OutcomeUnknown("a call under this request id was cut off before its outcome was known")
    return outcome
