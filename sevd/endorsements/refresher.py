"""Keeps the certificates of a chip current by itself, in the background: nothing waits for it.

It looks at what is needed (sevd.endorsements.needs) when the daemon starts, when another chip or TCB is reported, when
the offline directory changes, when something runs out, and when somebody asks. What is missing or due is taken from the
first source that has it:

1. what is at hand and valid: nothing is asked for then;
2. the offline directory;
3. the key distribution service, AMD's or a mirror.

Whatever the source, it is checked before it is kept, and the certificate table follows under its lock.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from sev.errors import NotNow, SevError
from sev.records import replace
from sevd.endorsements import asking, needs, offline_taking
from sevd.endorsements.expiry import Expiry
from sevd.endorsements.model import Refreshed, RefreshResult, RefreshState
from sevd.endorsements.pauses import Pauses

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sev.certs.sev_roots import SevRoots
    from sev.products import Product
    from sevd.endorsements.asking import Kds
    from sevd.endorsements.needs import Need
    from sevd.endorsements.offline import Offline
    from sevd.endorsements.service import Endorsements
    from sevd.events import Publisher

OFFLINE_SECONDS = 30.0
"""How often the offline directory is looked at."""

LONGEST_SECONDS = 3600.0
"""How long nothing is looked at, at most: clocks are set, and machines sleep."""

TABLE_SECONDS = 5.0
"""Pause before a table that could not be written, because it was being read, is written again."""

log = logging.getLogger(__name__)


class Refresher:
    """Refreshes. Lives on one event loop.

    Args:
        endorsements: What is kept.
        events: Where to say what happened.
        kds: The service; None for none.
        offline: The directory; None for none.
        product: The processor line whose CEKs are wanted; None for none.
        chip_ids: Asks for the identifiers of chips whose CEK is wanted. Raises SevError.
        sev_roots: The trusted roots of SEV.
        retry_seconds: The first pause after a failure.
        warning_days: How long before the end of a certificate is warned of it.
        now: The time that dates are compared with.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        endorsements: Endorsements,
        events: Publisher,
        *,
        kds: Kds | None = None,
        offline: Offline | None = None,
        product: Product | None = None,
        chip_ids: Callable[[], Awaitable[tuple[bytes, ...]]] | None = None,
        sev_roots: Callable[[], SevRoots] | None = None,
        retry_seconds: float = 60.0,
        warning_days: int = 30,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._endorsements = endorsements
        self._events = events
        self._kds = kds
        self._offline = offline_taking.Watch(offline, endorsements) if offline is not None else None
        self._product = product
        self._chip_ids = chip_ids
        self._sev_roots = sev_roots or _amd
        self._pauses = Pauses(retry_seconds, clock)
        self._expiry = Expiry(events, warning_days)
        self._now = now
        self._busy = asyncio.Lock()
        self._woken = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._table_waits = False
        self._state = RefreshState(kds.url if kds is not None else "")
        endorsements.changed = self.wake

    @property
    def state(self) -> RefreshState:
        """How it stands."""
        return self._state

    def start(self) -> None:
        """Begins."""
        self._task = asyncio.create_task(self._run())

    def wake(self, moved: bool = True) -> None:
        """Something is other than before; with `moved` so that no earlier failure says anything about what to do."""
        if moved:
            self._pauses.hasten()
        self._woken.set()

    async def refresh(self) -> RefreshState:
        """Looks at everything now, lists and authorities at hand included; answers what came of it.

        Pauses after earlier failures end, but for those that the service itself asked for.
        """
        async with self._busy:
            self._pauses.hasten()
            await self._round(everything=True)
        return self._state

    async def close(self) -> None:
        """Stops; a question under way ends."""
        if self._task is not None:
            self._task.cancel()
        if self._kds is not None:
            await asyncio.to_thread(self._kds.close)
        if self._task is not None:
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        while True:
            self._woken.clear()
            try:
                async with self._busy:
                    await self._round(everything=False)
            except Exception:
                log.exception("the endorsements could not be refreshed; they are looked at again later")
            with suppress(TimeoutError):
                async with asyncio.timeout(self._patience()):
                    await self._woken.wait()

    def _patience(self) -> float:
        seconds = LONGEST_SECONDS
        if self._state.next is not None:
            seconds = min(seconds, max((self._state.next - self._now()).total_seconds(), 0.05))
        if self._offline is not None:
            seconds = min(seconds, OFFLINE_SECONDS)
        return min(seconds, TABLE_SECONDS) if self._table_waits else seconds

    async def _round(self, *, everything: bool) -> None:
        offline: list[Refreshed] = []
        table = self._table_waits
        if self._offline is not None:
            taken, problems = await self._offline.take(anew=everything)
            table = table or taken > 0
            offline = [Refreshed("offline", RefreshResult.FAILED, sentence) for sentence in problems]
        wanted = self._needs(await self._chips())
        self._pauses.forget_all_but({need.key for need in wanted})
        items = [await self._have(need, everything=everything) for need in wanted]
        fetched = [item.what for item in items if item.result is RefreshResult.FETCHED]
        if self._kds is not None and any(item.result in _ASKED for item in items):
            await asyncio.to_thread(self._kds.rest)
        if table or set(fetched) - {needs.CRL, needs.CEK}:
            await self._write_table()
        elif any(item.result in (RefreshResult.FETCHED, RefreshResult.UNCHANGED) for item in items):
            self._endorsements.look_again()
        self._tell(fetched)
        # What is due may have changed with what came.
        items = [self._with_next(*pair) for pair in zip(items, self._needs_again(wanted), strict=True)]
        soon = min((item.next for item in items if item.next is not None), default=None)
        self._state = RefreshState(self._state.service, self._now(), soon, (*offline, *items))
        self._expiry.look(self._endorsements.current(), self._now())

    def _needs(self, chip_ids: tuple[bytes, ...]) -> list[Need]:
        found = self._endorsements
        return needs.needs(found.identity, self._product, chip_ids, found.kept, self._now())

    def _needs_again(self, before: list[Need]) -> list[Need]:
        """The same needs as they stand now."""
        chips = tuple(need.chip_id for need in before if need.what == needs.CEK)
        now = {need.key: need for need in self._needs(chips)}
        return [now.get(need.key, need) for need in before]

    async def _chips(self) -> tuple[bytes, ...]:
        if self._kds is None or self._product is None or self._chip_ids is None:
            return ()
        try:
            return await self._chip_ids()
        except SevError as error:
            log.debug("no CEK is asked for: %s", error.message)
            return ()

    async def _have(self, need: Need, *, everything: bool) -> Refreshed:
        """Sees to one need."""
        looked_at = everything and need.what in (needs.CRL, needs.CA)
        if not looked_at and need.due is not None and need.due > self._now():
            return Refreshed(need.what, RefreshResult.AT_HAND)
        if self._kds is None:
            result = RefreshResult.AT_HAND if need.at_hand else RefreshResult.MISSING
            return Refreshed(need.what, result)
        if self._pauses.left(need.key) > 0:
            why = next((one.message for one in self._state.items if one.what == need.what), "")
            return Refreshed(need.what, RefreshResult.WAITING, why)
        identity = self._endorsements.identity
        try:
            found = await asyncio.to_thread(
                asking.fetch,
                need,
                self._kds,
                identity,
                roots=self._endorsements.roots,
                sev_roots=self._sev_roots,
                given=self._endorsements.authorities(),
                kept=self._endorsements.kept,
                now=self._now,
            )
            unchanged = all(
                (before := self._endorsements.kept(each.name)) is not None and before.der == each.der for each in found
            )
            await self._endorsements.keep(*found)
        except SevError as error:
            self._pauses.failed(need.key, error)
            log.warning("%s: %s", need.what, error.message)
            return Refreshed(need.what, RefreshResult.FAILED, error.message)
        self._pauses.worked(need.key)
        return Refreshed(need.what, RefreshResult.UNCHANGED if unchanged else RefreshResult.FETCHED)

    async def _write_table(self) -> None:
        try:
            await self._endorsements.update()
        except NotNow as error:
            self._table_waits = True
            log.info("the certificate table is written later: %s", error.message)
        except SevError as error:
            self._table_waits = False
            self._endorsements.mark_stale(error)
        else:
            self._table_waits = False

    def _tell(self, fetched: list[str]) -> None:
        if not fetched:
            return
        what = ", ".join(fetched)
        log.info("fetched %s from %s", what, self._state.service)
        self._events.publish(
            "endorsements.refreshed",
            f"endorsements were fetched: {what}",
            details={"fetched": what, "service": self._state.service},
        )

    def _with_next(self, item: Refreshed, need: Need) -> Refreshed:
        """The item with when it is asked for next."""
        due = self._now() if need.due is None else need.due
        if self._kds is None or due.year > _FOR_EVER:
            return item
        pause = timedelta(seconds=self._pauses.left(need.key))
        return replace(item, next=max(due, self._now() + pause))


_FOR_EVER = 9000
_ASKED = (RefreshResult.FETCHED, RefreshResult.UNCHANGED, RefreshResult.FAILED)


def _amd() -> SevRoots:
    from sev.certs.sev_roots import SevRoots

    return SevRoots.amd()
