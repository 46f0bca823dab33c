"""Keeps the SNP platform as the configuration wants it, and tells how it deviates.

It is applied at start, when a reload gives the word, and after firmware events: a device that appears, a commit (which
forgets the configured TCB), another firmware, a reset, SNP initialised anew, a VLEK that is gone. What an administrator
changes otherwise, here or with another program, is shown as drift and left alone until the next of these events.

It never commits. What the firmware refuses (a TCB above the committed one) stays drift, with the reason, until the next
event; what may pass by itself (readers of the certificate table, a busy kernel) is tried again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from sev.errors import DeviceMissing, InternalError, KernelError, NotNow, SevError
from sevd.platform.desired import Desired, HashStick, drift_of, why_not
from sevd.platform.views import DesiredView, SnpState

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from sev.abi.tcb import TcbVersion
    from sevd.events import Publisher
    from sevd.platform.snp import SnpPlatform
    from sevd.platform.views import SnpStatusView

RETRY_SECONDS = (1.0, 2.0, 5.0, 15.0, 60.0)
"""Seconds before something is tried again: the first time, the second …; the last for every further time."""

_PASSING = (NotNow, KernelError, DeviceMissing)
"""What may pass by itself."""

_NOT_YET = "The platform was not looked at yet."

log = logging.getLogger(__name__)


class Keeper:
    """The desired state, and what is done for it. Lives on the event loop.

    Args:
        platform: The platform.
        events: Told `platform.drift` when drift appears, changes or vanishes.
        record: Takes an audit record of each command that the daemon issues by itself: the record's keys from
            `method` on.
        changed: Called when `view` answers something else.
        offered: Whether SEV-SNP is offered at all.
        retries: Seconds before something is tried again.
    """

    def __init__(
        self,
        platform: SnpPlatform,
        events: Publisher,
        desired: Desired,
        *,
        record: Callable[[Mapping[str, object]], None],
        changed: Callable[[], None] = lambda: None,
        offered: bool = True,
        retries: tuple[float, ...] = RETRY_SECONDS,
    ) -> None:
        self._platform = platform
        self._events = events
        self._desired = desired
        self._record = record
        self._changed = changed
        self._offered = offered
        self._retries = retries
        self._failures = 0
        self._owed = True
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._status: SnpStatusView | None = None
        self._committed: TcbVersion | None = None
        self._drift: tuple[str, ...] = (_NOT_YET,)
        self._why: list[str] = []
        self._applied_at: datetime | None = None

    def start(self) -> None:
        """Begins to keep it."""
        self._wake.set()
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Stops; a command under way is finished by the platform."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def apply(self) -> None:
        """A firmware event: applied soon. From the event loop."""
        self._owed = True
        self._failures = 0
        self._wake.set()

    def look(self) -> None:
        """The platform was changed by somebody: drift is told anew soon; nothing is undone."""
        self._wake.set()

    def reload(self, desired: Desired) -> None:
        """What is wanted from now on; applied, also if it is the same."""
        self._desired = desired
        self.apply()

    def view(self) -> DesiredView | None:
        """What is wanted and how the platform deviates; None if nothing is wanted."""
        wanted = self._desired
        if not wanted.anything:
            return None
        return DesiredView(
            wanted.reported_tcb,
            wanted.mask_chip_id,
            wanted.mask_chip_key,
            str(wanted.vlek or ""),
            self._status,
            self._drift,
            self._applied_at,
        )

    async def _run(self) -> None:
        while True:
            delay = (
                self._retries[min(self._failures, len(self._retries)) - 1] if self._owed and self._failures else None
            )
            try:
                async with asyncio.timeout(delay):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            try:
                await self._keep()
            except Exception:
                # It must go on: the next event may find nothing wrong.
                log.exception("the platform cannot be kept as the configuration wants it")

    async def _keep(self) -> None:
        # Taken together, and first: an event that comes from here on is for the next time.
        desired, owed = self._desired, self._owed
        self._owed = False
        if not desired.anything:
            self._tell((), None)
            return
        if not self._offered:
            self._tell(("SEV-SNP is not offered here (guests.technologies).",), None)
            return
        try:
            stick = await asyncio.to_thread(HashStick.read, desired.vlek) if desired.vlek is not None else None
            status = await self._platform.status()
        except SevError as error:
            self._owed = owed or self._owed
            self._failures += isinstance(error, _PASSING)
            self._tell((f"The platform does not tell its status: {error.message.rstrip('.')}.",), None)
            return
        if owed and status.state is not SnpState.INIT:
            self._owed = True
            self._failures += 1
            self._why = ["It was not changed: SEV-SNP is not initialised, until the kernel starts its next guest."]
        elif owed:
            self._why = []
            status = await self._apply(desired, status, stick, self._why)
        self._note(status)
        drift = drift_of(desired, status, self._committed, stick)
        self._tell((*drift, *self._why) if drift else (), status)

    async def _apply(
        self, desired: Desired, status: SnpStatusView, stick: HashStick | None, why: list[str]
    ) -> SnpStatusView:
        """Changes what deviates; `why` takes what kept it from that."""
        self._note(status)
        tcb, masks = desired.tcb, desired.masks(status)
        # Whether it follows is only known where the committed TCB is; asking the firmware for it settles that.
        follow = tcb is not None and tcb.committed and self._committed != status.reported_tcb
        named: Mapping[str, int] | int | None = None
        if tcb is not None and not tcb.committed and tcb.deviation(status.reported_tcb, None):
            named = tcb.components if tcb.raw is None else tcb.raw
        changes = follow or named is not None
        done = await self._try(
            "SetSnpConfig",
            lambda: self._platform.set_config(reported_tcb=named, follow_committed=follow, **masks),
            why,
            needed=changes or bool(masks),
        )
        if done is None and changes and masks and not self._owed:
            # The TCB was refused; the masks need not be.
            done = await self._try("SetSnpConfig", lambda: self._platform.set_config(**masks), why, needed=True)
        elif done is not None and follow:
            self._committed = done.reported_tcb
        status = done or status
        if stick is not None and not stick.problem and stick.fits(status) and not stick.loaded(status):
            content = stick.content
            loaded = await self._try("LoadVlek", lambda: self._platform.load_vlek(content), why, needed=True)
            status = loaded or status
        return status

    async def _try(
        self, name: str, command: Callable[[], Awaitable[SnpStatusView]], why: list[str], *, needed: bool
    ) -> SnpStatusView | None:
        """Issues a command, and puts it on record; None if it is not needed, or failed."""
        if not needed:
            return None
        began = time.monotonic()
        facts: dict[str, object] = {"method": f"SnpPlatformService/{name}"}
        try:
            status = await command()
        except SevError as error:
            facts.update(
                result="failed" if isinstance(error, InternalError) else "refused",
                reason=error.reason,
                message=error.message,
            )
            facts.update(firmware_status=error.firmware_status, errno=error.errno)
            why.append(why_not(error))
            self._later(error)
            return None
        else:
            facts["result"] = "done"
            self._applied_at = datetime.now(UTC)
            self._failures = 0
            return status
        finally:
            self._record({**facts, "duration_ms": round((time.monotonic() - began) * 1000, 3)})

    def _later(self, error: SevError) -> None:
        """It is tried again if that may help."""
        if isinstance(error, _PASSING):
            self._owed = True
            self._failures += 1

    def _note(self, status: SnpStatusView) -> None:
        """Learns the committed TCB, which the status of a real platform does not tell; the reported is never above."""
        if status.committed_tcb is not None:
            self._committed = status.committed_tcb
        elif self._committed is not None and not status.reported_tcb.at_most(self._committed):
            self._committed = status.reported_tcb

    def _tell(self, drift: tuple[str, ...], status: SnpStatusView | None) -> None:
        before, self._drift = self._drift, drift
        self._status = status
        self._changed()
        if drift == before or (not drift and before == (_NOT_YET,)):
            return
        for sentence in drift:
            log.warning("the platform deviates from the configuration: %s", sentence)
        if not drift:
            log.info("the platform is as the configuration wants it")
        message = " ".join(drift) or "the platform is as the configuration wants it"
        self._events.publish("platform.drift", message, details={"drift": str(len(drift))})
