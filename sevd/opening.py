"""The endorsements, opened while the daemon serves already.

Reading certificates and checking chains takes time, and most calls do not need them: whoever does waits for it. The
certificate table's lock is taken before anything else and held until the table is made: what an earlier daemon left in
it, which may have been killed or not have run while the platform changed, goes to no guest.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from sev.errors import SevError

if TYPE_CHECKING:
    from sevd.endorsements import Endorsement, Endorsements, EndorsementSet
    from sevd.endorsements.model import RefreshState
    from sevd.endorsements.refresher import Refresher
    from sevd.endorsements.table_file import TableFile

log = logging.getLogger(__name__)


class LateEndorsements:
    """What `sevd.endorsements.Endorsements` offers, for callers that may come before it is open."""

    def __init__(
        self,
        make: Callable[[], Endorsements],
        table: TableFile | None = None,
        refresher: Callable[[Endorsements], Refresher] | None = None,
    ) -> None:
        """
        Args:
            make: Makes the store, with the table. Runs on a thread.
            table: The certificate table's file; None for none.
            refresher: Makes what keeps the store current, when it is open; None for nothing.
        """
        self._make = make
        self._table = table
        self._make_refresher = refresher
        self._refresher: Refresher | None = None
        self._opening: asyncio.Task[Endorsements] | None = None

    def start(self) -> None:
        """Begins to open it."""
        self._opening = asyncio.create_task(self._open())
        self._opening.add_done_callback(_report)

    async def current(self) -> EndorsementSet:
        """What fits this chip now."""
        return (await self._opened()).current()

    async def refreshing(self) -> RefreshState:
        """How it stands with keeping them current."""
        await self._opened()
        assert self._refresher is not None, "something keeps them current"
        return self._refresher.state

    async def renew(self) -> RefreshState:
        """Looks at everything that is needed now, and asks for what is missing or due; answers what came of it."""
        await self._opened()
        assert self._refresher is not None, "something keeps them current"
        return await self._refresher.refresh()

    def ceks(self) -> list[bytes]:
        """The signed CEKs that are kept; none before it is open. From any thread."""
        opening = self._opening
        if opening is None or not opening.done() or opening.cancelled() or opening.exception() is not None:
            return []
        return opening.result().ceks()

    async def import_(self, contents: list[bytes], *, validate_only: bool = False) -> Iterable[Endorsement]:
        """Checks and keeps certificates; answers those that were taken."""
        return await (await self._opened()).import_(contents, validate_only=validate_only)

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Callable[[], bytes]]:
        """Holds the table's read lock; what it gives reads the table, which fits a report that is made meanwhile."""
        await self._opened()
        if self._table is None:
            yield lambda: b""
            return
        async with self._table.shared() as read:
            yield read

    @asynccontextmanager
    async def changing(self) -> AsyncIterator[None]:
        """Holds the table's write lock around a command that changes what reports show; see `Endorsements.changing`."""
        async with (await self._opened()).changing():
            yield

    async def update(self) -> EndorsementSet:
        """Makes set and table fit what the platform says now. Raises NotNow, KernelError."""
        return await (await self._opened()).update()

    async def mend(self) -> None:
        """Tries again to make a table fit that could not be made to. Never raises SevError."""
        endorsements = await self._opened()
        if endorsements.stale:
            try:
                await endorsements.update()
            except SevError as error:
                log.debug("the certificate table still does not fit: %s", error.message)

    async def close(self) -> None:
        """Closes the table's file; an opening under way is given up."""
        if self._refresher is not None:
            await self._refresher.close()
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.wait([self._opening])
            if not self._opening.cancelled() and self._opening.exception() is None:
                self._opening.result().close()
        if self._table is not None:
            self._table.close()

    async def _opened(self) -> Endorsements:
        assert self._opening is not None, "start comes first"
        return await asyncio.shield(self._opening)

    async def _open(self) -> Endorsements:
        async with AsyncExitStack() as stack:
            refused: SevError | None = None
            if self._table is not None:
                try:
                    await stack.enter_async_context(self._table.exclusive())
                except SevError as error:
                    refused = error  # a reader that hangs must not keep the daemon from serving
            endorsements = await asyncio.to_thread(self._make)
            await endorsements.load()
            if refused is None:
                await endorsements.settle()
            else:
                endorsements.mark_stale(refused)
        if self._make_refresher is not None:
            self._refresher = self._make_refresher(endorsements)
            self._refresher.start()
        return endorsements


def _report(opening: asyncio.Task[Endorsements]) -> None:
    """A failure is logged when it happens, not only when somebody asks."""
    if not opening.cancelled() and (error := opening.exception()) is not None:
        log.error("the endorsements cannot be opened", exc_info=error)
