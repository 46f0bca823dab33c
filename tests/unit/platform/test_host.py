"""The host's view: right at once after a change, cheap otherwise, honest about what is missing."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from sev import status
from sevd.devices import HostFacts, Scheduler
from sevd.platform import AsidUse, DeviceHealth, HostPlatform, PlatformDevice
from sevd.platform import host as host_module
from sevd.simulator.firmware_status import FirmwareStatus
from tests.support.hosting import ALICE, hosting
from tests.support.simulated import simulated_host


async def test_a_simulated_host(tmp_path: Path) -> None:
    async with hosting(tmp_path) as it:
        device = PlatformDevice(it.simulator.process(), it.scheduler)
        host = HostPlatform(
            it.simulator.host_facts(), device, asids=it.simulator.asids, guest_count=lambda: len(it.guests),
            simulated=True, daemon_version="1.2.3",
        )  # fmt: skip
        it.events.listen(lambda _event: host.changed())
        assert host.view().device_health is DeviceHealth.UNSPECIFIED
        view = await host.refresh()
        assert (view.product, view.simulated, view.daemon_version) == ("genoa", True, "1.2.3")
        assert view.device_health is DeviceHealth.READY
        assert view.firmware.startswith("1.55.")
        assert view.missing == ()
        assert len(view.chip_id) == 64
        assert "sev-snp" in view.technologies
        version = host.version
        assert host.view() is view
        assert host.version == version
        guest = await it.created()
        created = host.view()
        assert (created.guest_count, created.sev_es_asids.in_use) == (1, 1)
        assert host.version == version + 1
        await it.guests.delete(ALICE, guest.guest_id)
        assert host.view() == view
        assert host.version == version + 2
        host.changed()
        assert host.view() == view
        assert host.version == version + 2  # nothing new, nothing to serialise again
        await device.close()


def facts() -> HostFacts:
    return HostFacts("genoa", 25, 17, 1, "6.18.0")


async def test_without_a_device() -> None:
    scheduler = Scheduler()
    device = PlatformDevice(None, scheduler)
    host = HostPlatform(
        facts(), device, asids=dict, missing=lambda: ["There is no /dev/sev."], simulated=False, daemon_version="1"
    )
    view = await host.refresh()
    assert view.device_health is DeviceHealth.MISSING
    assert view.missing == ("There is no /dev/sev.",)
    assert (view.firmware, view.firmware_version, view.chip_id) == ("", None, b"")
    assert (view.sev_asids, view.sev_es_asids) == (AsidUse(0, 0), AsidUse(0, 0))
    scheduler.close()


@pytest.mark.parametrize(
    ("fault", "health", "words"),
    [
        (TimeoutError(), DeviceHealth.WEDGED, "does not tell its status"),
        (FirmwareStatus(status.HWERROR_PLATFORM), DeviceHealth.READY, "HWERROR_PLATFORM"),
    ],
    ids=["silence", "a refusal"],
)
async def test_a_platform_that_does_not_tell(
    tmp_path: Path, fault: Exception, health: DeviceHealth, words: str
) -> None:
    with simulated_host(tmp_path) as simulator:
        scheduler = Scheduler()
        device = PlatformDevice(simulator.process(), scheduler)
        host = HostPlatform(facts(), device, asids=simulator.asids, simulated=True, daemon_version="1")

        def hook(_command: str) -> None:
            raise fault

        simulator.faults = hook
        view = await host.refresh()
        assert view.device_health is health
        assert len(view.missing) == 1
        assert words in view.missing[0]
        simulator.faults = lambda _command: None
        if health is DeviceHealth.READY:
            assert (await host.refresh()).missing == ()
        await device.close()
        scheduler.close()


async def test_a_command_that_never_ends_makes_the_device_wedged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_module, "WEDGED_SECONDS", 0.05)
    with simulated_host(tmp_path) as simulator:
        scheduler = Scheduler()
        device = PlatformDevice(simulator.process(), scheduler)
        host = HostPlatform(facts(), device, asids=simulator.asids, simulated=True, daemon_version="1")
        version = (await host.refresh(), host.version)[1]
        gate = threading.Event()
        job = scheduler.submit("guest", gate.wait, 10)
        await asyncio.sleep(0.1)
        assert host.view().device_health is DeviceHealth.WEDGED
        assert host.version == version + 1
        gate.set()
        await job.done()
        assert host.view().device_health is DeviceHealth.READY
        await device.close()
        scheduler.close()


async def test_asids_of_a_real_host_age() -> None:
    """Others on the host use ASIDs too; the number is believed for a while only."""
    now, used = [0.0], [3]
    scheduler = Scheduler()
    host = HostPlatform(
        facts(), PlatformDevice(None, scheduler), asids=lambda: {"sev_es": (99, used[0])}, simulated=False,
        daemon_version="1", max_age=1.0, clock=lambda: now[0],
    )  # fmt: skip
    assert host.view().sev_es_asids == AsidUse(99, 3)
    used[0] = 4
    now[0] = 0.9
    assert host.view().sev_es_asids == AsidUse(99, 3)
    now[0] = 1.1
    assert host.view().sev_es_asids == AsidUse(99, 4)
    assert host.version == 2
    scheduler.close()


async def test_a_cached_view_is_cheap(tmp_path: Path) -> None:
    with simulated_host(tmp_path) as simulator:
        scheduler = Scheduler()
        device = PlatformDevice(simulator.process(), scheduler)
        asked = []

        def asids() -> dict[str, tuple[int, int]]:
            asked.append(1)
            return simulator.asids()

        host = HostPlatform(facts(), device, asids=asids, simulated=True, daemon_version="1")
        await host.refresh()
        before = len(asked)
        for _ in range(1000):
            host.view()
        assert len(asked) == before
        await device.close()
        scheduler.close()
