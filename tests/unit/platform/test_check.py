"""The daemon's checks of its host: statuses through its own queue, kept for a second, never waited for without end."""

from __future__ import annotations

import asyncio
import errno
import threading
from typing import TYPE_CHECKING, Any

import pytest

from sev.abi.sev_device import PlatformStatus, SnpStatus
from sev.errors import UsageError
from sev.host.result import SKIPPED
from sevd.devices.scheduler import Scheduler
from sevd.platform.check import HostChecker
from sevd.platform.device import PlatformDevice
from tests.support.machines import TCB, FakeReader, genoa

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sev.launch.seam import Kernel


@pytest.fixture
def scheduler() -> Iterator[Scheduler]:
    made = Scheduler()
    yield made
    made.close(5)


class Answering:
    """What `PlatformDevice.ask` answers, by a function of its own: the rest is the real thing."""

    def __init__(self, scheduler: Scheduler, ask: Any, *, present: bool = True) -> None:
        self._device = PlatformDevice(None, scheduler)
        self._scheduler = scheduler
        self._ask = ask
        self.present = present

    def busy_for(self) -> float:
        return self._scheduler.busy_for()

    async def ask(self, function: Any) -> Any:
        return await self._scheduler.submit("platform", lambda: function(self._ask)).done()


class Platform:
    """An open device."""

    def __init__(self, wait: threading.Event | None = None) -> None:
        self.asked = 0
        self._wait = wait

    def platform_status(self) -> bytes:
        self.asked += 1
        if self._wait is not None:
            self._wait.wait(10)
        return PlatformStatus(1, 55, 1, 0x100, 40, 2).encode()

    def snp_status(self) -> bytes:
        return SnpStatus(1, 55, 1, 3, 40, 0, 7, TCB, TCB).encode()


class Silent(FakeReader):
    """A machine whose devices must not be asked beside the queue."""

    def platform_status(self) -> PlatformStatus:
        raise AssertionError("the platform was asked beside the queue")

    def snp_status(self) -> SnpStatus:
        raise AssertionError("the platform was asked beside the queue")


def reader() -> FakeReader:
    return Silent(**vars(genoa()))


def checker(device: Answering, **more: Any) -> HostChecker:
    return HostChecker(reader, device, simulated=False, **more)  # type: ignore[arg-type]


async def test_statuses_come_through_the_queue_and_are_kept(scheduler: Scheduler) -> None:
    platform = Platform()
    now = [0.0]
    it = checker(Answering(scheduler, platform), clock=lambda: now[0])
    checked = await it.check("sev-snp")
    assert checked.able
    reasons = {check.id: check.reason for check in checked.checks}
    assert reasons["snp.state"] == "INIT, 7 guests"
    assert await it.check("sev-snp") is checked
    assert platform.asked == 1
    now[0] = 1.5
    await asyncio.gather(*(it.check("sev-snp") for _ in range(20)))
    assert platform.asked == 2


async def test_a_command_that_hangs_is_not_waited_for(scheduler: Scheduler) -> None:
    hangs = threading.Event()
    try:
        it = checker(Answering(scheduler, Platform(hangs)), seconds=0.1)
        checked = await asyncio.wait_for(it.check(""), 5)
        results = {check.id: check for check in checked.checks}
        assert "has been running" in results["firmware.answers"].reason
        assert "reload of ccp" in results["firmware.answers"].remedy
        assert results["firmware.version"].result == SKIPPED
        assert not checked.able
    finally:
        hangs.set()


async def test_without_a_device_the_rest_is_looked_at(scheduler: Scheduler) -> None:
    bare = genoa().but(devices={"/dev/sev": errno.ENOENT})
    device: Any = Answering(scheduler, Platform(), present=False)
    it = HostChecker(lambda: bare, device, simulated=False)
    checked = await it.check("")
    assert [check.result for check in checked.checks if check.id == "firmware.answers"] == [SKIPPED]
    assert checked.abilities[2].blocked_by == ("device.sev",)


async def test_an_unknown_technology_is_refused(scheduler: Scheduler) -> None:
    with pytest.raises(UsageError):
        await checker(Answering(scheduler, Platform())).check("tdx")


def test_a_platform_device_that_may_appear(scheduler: Scheduler) -> None:
    there: list[bool] = []
    kernel: Kernel = object()  # type: ignore[assignment]
    device = PlatformDevice(kernel, scheduler, there=lambda: bool(there))
    assert not device.present
    there.append(True)
    assert device.present
