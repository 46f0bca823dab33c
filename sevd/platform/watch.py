"""Changes of the SNP platform that other programs make: noticed, and followed by the certificate table.

Others should hold the table's lock while they change the platform; most do not know of it. What they did is seen at the
next look: guests may have got certificates that do not fit for so long.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from sev.errors import NotOffered, SevError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sevd.events import Publisher
    from sevd.platform.snp import SnpPlatform
    from sevd.platform.views import SnpStatusView

LOOK_SECONDS = 10.0
"""Seconds between two looks: one firmware command each."""

_LOST = ("state", "firmware_version", "current_tcb", "vlek_loaded")
"""What a reset, a new initialisation or another firmware changes, by which the configuration may be lost too."""

_SET = ("reported_tcb", "mask_chip_id", "mask_chip_key")

log = logging.getLogger(__name__)


class PlatformWatch:
    """Looks at the platform now and then.

    Args:
        platform: The platform.
        events: Told `platform.changed`.
        follow: Makes what depends on the platform follow.
        mend: Called at every look: what could not be done before may be possible now. Never raises SevError.
        lost: Called when the platform may have lost its configuration.
        changed: Called after every other change that was noticed.
        gently: Whether the kernel may initialise SNP for the status alone, and shut it down again, while it is not
            initialised: then nothing is asked until SEV is, with which kernels initialise SNP.
        seconds: Between two looks.
    """

    def __init__(
        self,
        platform: SnpPlatform,
        events: Publisher,
        *,
        follow: Callable[[], Awaitable[object]],
        mend: Callable[[], Awaitable[None]],
        lost: Callable[[], None] = lambda: None,
        changed: Callable[[], None] = lambda: None,
        gently: Callable[[], bool] = lambda: False,
        seconds: float = LOOK_SECONDS,
    ) -> None:
        self._platform = platform
        self._events = events
        self._follow = follow
        self._mend = mend
        self._lost = lost
        self._changed = changed
        self._gently = gently
        self._seconds = seconds
        self._generation = 0
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to look."""
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Stops looking."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._seconds)
            try:
                await self.look()
            except NotOffered:
                return  # and never will be
            except SevError as error:
                log.debug("the platform does not tell its status: %s", error.message)
            except Exception:
                log.exception("the platform cannot be watched")

    async def look(self) -> None:
        """Looks once. Raises SevError as the status does."""
        if self._gently() and not await self._platform.sev_initialised():
            return
        await self._mend()
        before = self._platform.last
        now = await self._platform.status()
        another = self._generation not in (0, self._platform.generation)
        self._generation = self._platform.generation
        if another:
            # What served the device ended and is there again, so soon that nobody missed it.
            self._platform.last = now
            await self._followed()
            self._lost()
            return
        if self._platform.last is not before:
            return  # a command of this daemon came in between, and everything followed it
        self._platform.last = now
        if before is None:
            return
        differing = [name for name in (*_LOST, *_SET) if getattr(before, name) != getattr(now, name)]
        if not differing:
            return
        self._events.publish(
            "platform.changed",
            f"another program or a reset changed the platform: {', '.join(differing)}",
            details={"changed": ",".join(differing), "reported_tcb": f"{now.reported_tcb.raw:016x}"},
        )
        await self._followed()
        (self._lost if lost(before, now) else self._changed)()

    async def _followed(self) -> None:
        try:
            await self._follow()
        except SevError as error:
            log.warning("the certificate table did not follow the platform: %s", error.message)


def lost(before: SnpStatusView, now: SnpStatusView) -> bool:
    """Whether the platform may have lost its configuration in between, rather than been configured by somebody."""
    if now.vlek_loaded and not before.vlek_loaded and before.state is now.state:
        return False  # a VLEK was loaded
    return any(getattr(before, name) != getattr(now, name) for name in _LOST)
