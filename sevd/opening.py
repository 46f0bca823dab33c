"""The endorsements, opened while the daemon serves already.

Reading certificates and checking chains takes time, and most calls do not need them: whoever does waits for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from sev.errors import SevError

if TYPE_CHECKING:
    from sevd.endorsements import ChipIdentity, Endorsement, Endorsements, EndorsementSet

log = logging.getLogger(__name__)


class LateEndorsements:
    """What `sevd.endorsements.Endorsements` offers, for callers that may come before it is open."""

    def __init__(self, make: Callable[[], Endorsements], identity: Callable[[], Awaitable[ChipIdentity]]) -> None:
        """
        Args:
            make: Makes the store. Runs on a thread.
            identity: Asks the platform which chip this is. Raises SevError where there is none.
        """
        self._make = make
        self._identity = identity
        self._opening: asyncio.Task[Endorsements] | None = None

    def start(self) -> None:
        """Begins to open it."""
        self._opening = asyncio.create_task(self._open())
        self._opening.add_done_callback(_report)

    async def current(self) -> EndorsementSet:
        """What fits this chip now."""
        return (await self._opened()).current()

    async def import_(self, contents: list[bytes], *, validate_only: bool = False) -> Iterable[Endorsement]:
        """Checks and keeps certificates; answers those that were taken."""
        return await (await self._opened()).import_(contents, validate_only=validate_only)

    async def table(self) -> bytes:
        """The certificate table that guests receive."""
        return (await self.current()).certificate_table

    @asynccontextmanager
    async def exclusive(self) -> AsyncIterator[None]:
        """Holds the table's write lock."""
        async with (await self._opened()).exclusive():
            yield

    async def refresh(self, identity: ChipIdentity) -> EndorsementSet:
        """Makes set and table fit this chip; `exclusive` must be held."""
        return await (await self._opened()).refresh(identity)

    async def close(self) -> None:
        """Closes the table's file; an opening under way is given up."""
        if self._opening is None:
            return
        self._opening.cancel()
        await asyncio.wait([self._opening])
        if not self._opening.cancelled() and self._opening.exception() is None:
            self._opening.result().close()

    async def _opened(self) -> Endorsements:
        assert self._opening is not None, "start comes first"
        return await asyncio.shield(self._opening)

    async def _open(self) -> Endorsements:
        endorsements = await asyncio.to_thread(self._make)
        identity: ChipIdentity | None = None
        try:
            identity = await self._identity()
        except SevError as error:
            log.info("the chip cannot be asked who it is: %s", error.message)
        await endorsements.open(identity)
        return endorsements


def _report(opening: asyncio.Task[Endorsements]) -> None:
    """A failure is logged when it happens, not only when somebody asks."""
    if not opening.cancelled() and (error := opening.exception()) is not None:
        log.error("the endorsements cannot be opened", exc_info=error)
