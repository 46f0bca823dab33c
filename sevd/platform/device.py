"""The daemon's own /dev/sev: opened when first needed, used on the device worker only, in the platform's lane."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, TypeVar

from sev.errors import DeviceMissing, KernelError, NotPermitted
from sev.launch.platform import SevDevice
from sevd.devices.missing import remedy_of
from sevd.devices.work import Steps, Work

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Sequence

    from sev.launch.seam import Kernel
    from sevd.devices.scheduler import Scheduler

T = TypeVar("T")

_SERVER_GONE = frozenset({errno.ENOTCONN, errno.ECONNABORTED})

LANE = "platform"
"""The scheduler's lane of platform commands. Lanes of guests contain a slash."""


class PlatformDevice:
    """The platform's commands, one after the other.

    Args:
        kernel: The kernel as the daemon sees it; None while the device is missing.
        scheduler: Where commands run.
        path: The device.
        missing: What is missing, one sentence each; told where there is no device.
        there: Whether the device can be opened; it may appear later.
        observe: Told of every command that ended, as by `SevDevice`.

    Attributes:
        opened: How often it was opened: again only if what served it had ended.
    """

    def __init__(
        self,
        kernel: Kernel | None,
        scheduler: Scheduler,
        *,
        path: str = "/dev/sev",
        missing: Callable[[], Sequence[str]] = tuple,
        there: Callable[[], bool] = lambda: True,
        observe: Callable[[str, int, int, float], None] | None = None,
    ) -> None:
        self._observe = observe
        self._there = there
        self._kernel = kernel
        self._scheduler = scheduler
        self._path = path
        self._missing = missing
        self._device: SevDevice | None = None
        self.opened = 0
        self._steps = Steps()

    @property
    def present(self) -> bool:
        """There is a device to ask; whether it answers is another matter."""
        return self._kernel is not None and (self._device is not None or self._there())

    def require(self) -> None:
        """Raises DeviceMissing, with the list of what is missing, where there is no device."""
        if not self.present:
            missing = list(self._missing())
            raise DeviceMissing(
                " ".join(["there is no SEV platform here.", *missing]),
                remedy=remedy_of(missing),
                metadata={"missing": "\n".join(missing)},
            )

    def busy_for(self) -> float:
        """Seconds for which the device worker has been in one command."""
        return self._scheduler.busy_for()

    def work(self) -> Work:
        """A step of the platform, to be run by `step`."""
        self.require()
        return Work(self._scheduler, LANE)

    async def step(self, step: Coroutine[object, object, T], work: Work) -> T:
        """Runs a step to its end; a caller that goes away takes back only what was not issued."""
        return await self._steps.run(step, work)

    def ask(self, function: Callable[[SevDevice], T], work: Work | None = None) -> Awaitable[T]:
        """One piece of work with the open device, on the worker.

        Raises:
            DeviceMissing: There is no device, or SNP is not initialised.
            FirmwareError, KernelError: Refused.
        """
        return (work or self.work()).do(self._ask, function)

    async def close(self) -> None:
        """Waits for steps under way and closes the descriptor."""
        await self._steps.drain(5)
        device, self._device = self._device, None
        if device is not None:
            device.close()

    def _ask(self, function: Callable[[SevDevice], T]) -> T:
        if self._device is None:
            self.require()
            assert self._kernel is not None
            self.opened += 1
            try:
                self._device = SevDevice(self._kernel, self._path, observe=self._observe)
            except NotPermitted:
                # Reading is enough for the status; a command that writes will say that it is not.
                self._device = SevDevice(self._kernel, self._path, writable=False, observe=self._observe)
        try:
            return function(self._device)
        except KernelError as error:
            if error.errno not in _SERVER_GONE:
                raise
            # What served the device has ended; if it is served again, that is another device.
            device, self._device = self._device, None
            device.close()
            self.require()
            raise DeviceMissing(f"{self._path}: what served it has ended", errno=error.errno) from None
