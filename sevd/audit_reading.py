"""The audit trail for whoever may read it: what is in the files, then what is added.

The files are read on threads, a slice at a time, as fast as they are taken; a reader that follows has a bounded queue.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Iterator
from itertools import islice

from sev.audit_trail import AuditFilter, AuditRecord, newest_first, open_files, records
from sev.errors import LimitReached, NotFound, UsageError
from sevd.audit import Audit

LAST_RECORDS = 10_000
"""Most records that can be asked for by their number from the end."""

QUEUE_RECORDS = 4096
"""Records that a reader may lag behind before it is ended."""

_SLICE = 256


class AuditReading:
    """Reads the trail of one daemon. On one event loop."""

    def __init__(self, audit: Audit) -> None:
        self._audit = audit
        self._following: set[_Following] = set()
        self._closed = False

    async def read(
        self, wanted: AuditFilter, *, last: int = 0, follow: bool = False
    ) -> AsyncGenerator[AuditRecord, None]:
        """The records that are wanted, oldest first.

        Args:
            wanted: Which.
            last: Only so many from the end; 0: all.
            follow: Afterwards those that are added, without end.

        Raises:
            UsageError: More than LAST_RECORDS from the end, or an end for what has none.
            NotFound: There is no file.
            LimitReached: The reader lags too far behind.
        """
        if last > LAST_RECORDS:
            raise UsageError(f"last: {last}, expected at most {LAST_RECORDS}", field="last")
        if follow and wanted.until is not None:
            raise UsageError("until: what is followed has no end", field="until")
        following = _Following(self._audit) if follow else None
        if following is not None:
            self._following.add(following)
            if self._closed:
                following.end()
        try:
            newest = 0
            async for one in self._kept(wanted, last):
                newest = max(newest, one.sequence)
                yield one
            while following is not None and (added := await following.next()) is not None:
                # What was added while the files were read is in both.
                if added.sequence > newest and wanted.admits(added):
                    yield added
        finally:
            if following is not None:
                following.close()
                self._following.discard(following)

    def close(self) -> None:
        """Ends those that follow, after what they have not read yet."""
        self._closed = True
        for one in self._following:
            one.end()

    async def _kept(self, wanted: AuditFilter, last: int) -> AsyncGenerator[AuditRecord, None]:
        """What is in the files."""
        if self._audit.path is None:
            raise NotFound("this daemon keeps no audit file")
        try:
            files = await asyncio.to_thread(open_files, str(self._audit.path))
        except FileNotFoundError:
            return  # nothing was recorded since somebody took it away
        try:
            if last:
                newest: list[AuditRecord] = []
                lines = newest_first(files)
                while len(newest) < last and (slice_ := await asyncio.to_thread(_take, lines)):
                    newest += [one for one in slice_ if wanted.admits(one)]
                for one in reversed(newest[:last]):
                    yield one
                return
            lines = records(files)
            while slice_ := await asyncio.to_thread(_take, lines):
                for one in slice_:
                    if wanted.admits(one):
                        yield one
        finally:
            for file in files:
                file.close()


def _take(lines: Iterator[AuditRecord]) -> list[AuditRecord]:
    """Runs on a thread: few at a time, so that calls are served in between."""
    return list(islice(lines, _SLICE))


class _Following:
    """What one reader still has to hear."""

    def __init__(self, audit: Audit) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: deque[str] = deque()
        self._ready = asyncio.Event()
        self._ended = self._overrun = False
        self.close = audit.listen(self._hear)

    def end(self) -> None:
        """Ends it after what is queued."""
        self._ended = True
        self._wake()

    async def next(self) -> AuditRecord | None:
        """The next record; None at the end."""
        while not self._queue:
            if self._overrun:
                raise LimitReached(
                    f"the reader lags more than {QUEUE_RECORDS} records behind", remedy="Read again, and faster."
                )
            if self._ended:
                return None
            # Whoever adds something from now on sets it later, on this loop.
            self._ready.clear()
            await self._ready.wait()
        return AuditRecord.parse(self._queue.popleft())

    def _hear(self, sequence: int, line: str) -> None:
        """On whichever thread writes."""
        if len(self._queue) >= QUEUE_RECORDS:
            self._overrun = True
        elif not self._ended:
            self._queue.append(line)
        self._wake()

    def _wake(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._ready.set)
        except RuntimeError:  # the loop is closed: nobody reads any more
            self._ended = True
