"""The upkeep of the SNP platform: what other programs do to it is noticed, what the configuration wants is kept."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from sevd.platform.keeper import RETRY_SECONDS, Keeper
from sevd.platform.watch import LOOK_SECONDS, PlatformWatch

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from sevd.events import Event, Events
    from sevd.platform.desired import Desired
    from sevd.platform.snp import SnpPlatform
    from sevd.platform.views import DesiredView

_FORGETS = frozenset(
    {"platform.committed", "platform.firmware_updated", "platform.sev_reset", "platform.snp_shut_down"}
)
"""Events after which the platform may not be as it was configured."""

_CONFIGURES = frozenset({"platform.configured", "platform.vlek_loaded"})
"""Events of somebody who configured it."""


class Upkeep:
    """Watches the platform, and keeps it. Lives on the event loop.

    Args:
        platform: The platform.
        events: What happens to it is heard and told there.
        desired: What is wanted.
        follow: Makes what depends on the platform follow.
        mend: Tries again what could not be done for it. Never raises SevError.
        record: Takes audit records of what the daemon does by itself.
        changed: Called when `view` answers something else.
        offered: Whether SEV-SNP is offered at all.
        gently: See `PlatformWatch`.
    """

    def __init__(
        self,
        platform: SnpPlatform,
        events: Events,
        desired: Desired,
        *,
        follow: Callable[[], Awaitable[object]],
        mend: Callable[[], Awaitable[None]],
        record: Callable[[Mapping[str, object]], None],
        changed: Callable[[], None],
        offered: bool = True,
        gently: Callable[[], bool] = lambda: False,
        look_seconds: float = LOOK_SECONDS,
        retries: tuple[float, ...] = RETRY_SECONDS,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._keeper = Keeper(
            platform, events, desired, record=record, changed=changed, offered=offered, retries=retries
        )
        self._watch = PlatformWatch(
            platform,
            events,
            follow=follow,
            mend=mend,
            lost=self._keeper.apply,
            changed=self._keeper.look,
            gently=gently,
            seconds=look_seconds,
        )
        self._deafen = events.listen(self._happened)

    def start(self) -> None:
        """Applies what is wanted, and begins to watch."""
        self._keeper.start()
        self._watch.start()

    async def close(self) -> None:
        """Ends both."""
        self._deafen()
        await self._watch.close()
        await self._keeper.close()

    def reload(self, desired: Desired) -> None:
        """What is wanted from now on; applied, also if it is the same."""
        self._keeper.reload(desired)

    def appeared(self) -> None:
        """The device is there, or there again."""
        self._keeper.apply()

    def view(self) -> DesiredView | None:
        """What is wanted and how the platform deviates; None if nothing is wanted."""
        return self._keeper.view()

    def _happened(self, event: Event) -> None:
        """From any thread."""
        if event.kind in _FORGETS:
            self._loop.call_soon_threadsafe(self._keeper.apply)
        elif event.kind in _CONFIGURES:
            self._loop.call_soon_threadsafe(self._keeper.look)
