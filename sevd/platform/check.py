"""The checks of `sev.host`, run by the daemon: the platform's statuses through its own queue, the rest on a thread.

A look costs two firmware commands and some dozens of small files; it is kept for a second, so that a caller who asks
without end costs no more than that. A firmware command that hangs keeps nobody waiting: the statuses are then what
could not be looked at.
"""

from __future__ import annotations

import asyncio
import errno
import time
from contextlib import closing
from typing import TYPE_CHECKING

from sev.abi import sev_device as abi
from sev.errors import KernelError, SevError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sev.host.reader import Reader
    from sev.host.verdict import HostCheck
    from sev.launch.platform import SevDevice
    from sevd.platform.device import PlatformDevice

KEEP_SECONDS = 1.0
"""Seconds for which a look stays true."""

STATUS_SECONDS = 5.0
"""Seconds that the platform is waited for."""


class HostChecker:
    """Checks the host.

    Args:
        reader: Makes a reader of the host; called on a thread.
        device: The platform's device.
        simulated: The host is a model.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        reader: Callable[[], Reader],
        device: PlatformDevice,
        *,
        simulated: bool,
        seconds: float = STATUS_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._reader = reader
        self._device = device
        self._seconds = seconds
        self._clock = clock
        self._lock = asyncio.Lock()
        self._kept: dict[str, tuple[float, HostCheck]] = {}
        self.simulated = simulated

    async def check(self, technology: str) -> HostCheck:
        """The host, looked at now or within the last second.

        Raises:
            UsageError: No such technology.
        """
        from sev.host.verdict import require  # no start of a simulated host needs the checks

        require(technology)
        async with self._lock:
            made_at, checked = self._kept.get(technology, (0.0, None))
            if checked is None or self._clock() - made_at > KEEP_SECONDS:
                statuses = await self._statuses()
                checked = await asyncio.to_thread(self._look, technology, statuses)
                self._kept[technology] = (self._clock(), checked)
            return checked

    def _look(self, technology: str, statuses: dict[str, object]) -> HostCheck:
        from sev.host.verdict import check_host

        with closing(self._reader()) as reader:
            return check_host(reader, technology, statuses=statuses)

    async def _statuses(self) -> dict[str, object]:
        """What the platform answers, or the error instead; nothing where there is no device."""
        if not self._device.present:
            return {}
        try:
            async with asyncio.timeout(self._seconds):
                return await self._device.ask(_ask)
        except TimeoutError:
            busy = KernelError(
                errno.EBUSY,
                command="PLATFORM_STATUS",
                message=f"another firmware command has been running for {self._device.busy_for():.0f} s",
                remedy="Wait until it ends; a secure processor that hangs takes a reload of ccp or a reboot.",
            )
            return {"platform": busy, "snp": busy}
        except SevError as error:
            return {"platform": error, "snp": error}


def _ask(device: SevDevice) -> dict[str, object]:
    """Runs on the worker."""
    out: dict[str, object] = {}
    try:
        out["platform"] = abi.PlatformStatus.decode(device.platform_status())
    except SevError as error:
        out["platform"] = error
    try:
        out["snp"] = abi.SnpStatus.decode(device.snp_status())
    except SevError as error:
        out["snp"] = error
    return out
