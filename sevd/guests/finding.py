"""Guests that an earlier daemon left: taken over at the start, or later where their process is busy by then.

A worker in the middle of a firmware command does not answer before the command has ended, and a command that hangs is
what a daemon may have been killed for. The others are served meanwhile; ids of such guests are kept for them.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from sevd.guests.port import Found, Machines
    from sevd.guests.registry import Registry

log = logging.getLogger(__name__)


class Finding:
    """Takes over what was left.

    Args:
        machines: Whose machines may have been left; None: nobody's.
        registry: Where guests are known.
        adopt: Takes one over.
    """

    def __init__(self, machines: Machines | None, registry: Registry, adopt: Callable[[Found], None]) -> None:
        self._machines = machines
        self._registry = registry
        self._adopt = adopt
        self._late: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Takes over what answers at once, and goes on with the others in the background."""
        if (machines := self._machines) is None:
            return
        for found in await asyncio.to_thread(lambda: list(machines.find())):
            self._adopt(found)
        awaited = {(card.owner, self._registry.reserve(card.owner, card.guest_id)) for card in machines.awaited()}
        if awaited:
            self._late = asyncio.create_task(self._take_late(machines, awaited))

    async def close(self) -> None:
        """The machines were closed: waits until nobody looks for theirs any more."""
        if self._late is not None:
            await asyncio.wait([self._late])

    async def _take_late(self, machines: Machines, awaited: set[tuple[str, str]]) -> None:
        late = machines.find_late()
        try:
            while (found := await asyncio.to_thread(next, late, None)) is not None:
                key = (found.card.owner, found.card.guest_id)
                self._registry.drop(*key)
                awaited.discard(key)
                self._adopt(found)
        except Exception:
            log.exception("the guests of busy workers are not taken over")
        finally:
            for owner, guest_id in awaited:
                self._registry.drop(owner, guest_id)
