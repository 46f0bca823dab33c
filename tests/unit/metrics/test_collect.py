"""All metrics of a daemon: what is asked of the firmware, and how seldom."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest

from sev.abi.tcb import TcbVersion
from sev.errors import DeviceMissing
from sev.products import GENOA
from sev.records import replace
from sevd.devices.scheduler import Scheduler
from sevd.endorsements.model import EndorsementSet
from sevd.guests.model import Guest, GuestState, GuestType
from sevd.metrics import collect
from sevd.metrics.collect import Collector, Sources
from sevd.metrics.model import Metric
from sevd.metrics.tally import Tally
from sevd.platform.views import AsidUse, DesiredView, DeviceHealth, FirmwareVersion, HostView, SnpState, SnpStatusView
from tests.support.clock import Clock

HOST = HostView(
    product="genoa",
    simulated=True,
    firmware_version=FirmwareVersion(1, 55, 49),
    kernel="6.18",
    sev_asids=AsidUse(0, 0),
    sev_es_asids=AsidUse(99, 3),
    chip_id=b"",
    technologies=(),
    missing=(),
    device_health=DeviceHealth.READY,
    daemon_version="1",
    guest_count=0,
    cpu_family=25,
    cpu_model=17,
    cpu_stepping=1,
)


def status(snp: int = 27) -> SnpStatusView:
    tcb = TcbVersion.of(GENOA, bootloader=10, tee=0, snp=snp, microcode=88)
    names: dict[str, Any] = dict.fromkeys(SnpStatusView.__annotations__, 0)
    names.update(state=SnpState.INIT, current_tcb=tcb, reported_tcb=tcb, committed_tcb=None, vlek_loaded=True)
    return SnpStatusView(**names)


@dataclass
class Firmware:
    """Answers statuses, or raises, and counts."""

    answers: list[SnpStatusView | Exception]
    asked: int = 0
    hang: asyncio.Event | None = None

    async def status(self) -> SnpStatusView:
        self.asked += 1
        if self.hang is not None:
            await self.hang.wait()
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


@dataclass
class Setup:
    firmware: Firmware
    guests: list[Guest] = field(default_factory=list)
    host: HostView = HOST
    clock: Clock = field(default_factory=Clock)
    endorsements: Callable[[], Awaitable[EndorsementSet]] | None = None

    def collector(self, scheduler: Scheduler) -> Collector:
        async def none() -> EndorsementSet:
            return EndorsementSet((), b"", (), True)

        return Collector(
            Sources(
                version="1",
                tally=Tally(),
                scheduler=scheduler,
                host=lambda: self.host,
                guests=lambda: self.guests,
                status=self.firmware.status,
                endorsements=self.endorsements or none,
                connections=lambda: {"sevd": 2},
                calls=lambda: 1,
            ),
            clock=self.clock,
        )


def collected(setup: Setup, before: Callable[[Collector], Awaitable[None]] | None = None) -> dict[str, Metric]:
    async def run() -> dict[str, Metric]:
        collector = setup.collector(scheduler)
        if before is not None:
            await before(collector)
        return {one.name: one for one in await collector.collect()}

    scheduler = Scheduler()
    try:
        return asyncio.run(run())
    finally:
        scheduler.close()


def values(metric: Metric) -> dict[tuple[str, ...], float]:
    return {tuple(one.labels.values()): one.value for one in metric.samples}


def test_what_there_is_and_nothing_else() -> None:
    found = collected(Setup(Firmware([status()])))
    assert values(found["sevd_asids"]) == {("sev_es", "used"): 3, ("sev_es", "free"): 96}
    assert values(found["sevd_tcb"])["current", "snp"] == 27
    assert ("committed", "snp") not in values(found["sevd_tcb"])
    assert values(found["sevd_build_info"]) == {("1", "genoa", "1.55.49"): 1}
    assert values(found["sevd_device_health"]) == {("ready",): 1}
    assert values(found["sevd_vlek_loaded"]) == {(): 1}
    assert values(found["sevd_connections"]) == {("sevd",): 2}
    assert "sevd_guests" not in found
    assert "sevd_platform_drift" not in found
    assert all(one.samples for one in found.values())


def test_guests_by_type_and_state() -> None:
    def guest(kind: GuestType, state: GuestState) -> Guest:
        return Guest("a-guest-1", kind, state, "uid:1", 1, 4096, datetime.now(UTC))

    guests = [guest(GuestType.SNP, GuestState.READY)] * 2 + [guest(GuestType.SEV_ES, GuestState.FAILED)]
    found = collected(Setup(Firmware([status()]), guests))
    assert values(found["sevd_guests"]) == {("snp", "ready"): 2, ("sev-es", "failed"): 1}


@pytest.mark.parametrize("drift", [(), ("The TCB is another.", "CHIP_ID is shown.")])
def test_drift_is_told_where_there_are_wishes(drift: tuple[str, ...]) -> None:
    host = replace(HOST, desired=DesiredView("committed", None, None, "", None, drift, None))
    found = collected(Setup(Firmware([status()]), host=host))
    assert values(found["sevd_platform_drift"]) == {(): len(drift)}


def test_the_firmware_is_asked_seldom() -> None:
    setup = Setup(Firmware([status(27), status(28)]))

    async def twice(collector: Collector) -> None:
        await collector.collect()
        setup.clock.now += collect.STATUS_SECONDS / 2
        found = {one.name: one for one in await collector.collect()}
        assert (setup.firmware.asked, values(found["sevd_tcb"])["current", "snp"]) == (1, 27)
        setup.clock.now += collect.STATUS_SECONDS / 2

    found = collected(setup, twice)
    assert (setup.firmware.asked, values(found["sevd_tcb"])["current", "snp"]) == (2, 28)


def test_a_platform_that_goes_takes_its_values_with_it() -> None:
    setup = Setup(Firmware([status(), DeviceMissing("gone")]))

    async def once(collector: Collector) -> None:
        await collector.collect()
        setup.clock.now += collect.STATUS_SECONDS

    assert "sevd_tcb" not in collected(setup, once)


def test_nobody_waits_for_a_firmware_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect, "PATIENCE_SECONDS", 0.05)
    setup = Setup(Firmware([status()]))

    async def several(collector: Collector) -> None:
        setup.firmware.hang = asyncio.Event()
        for _ in range(3):
            found = {one.name: one for one in await collector.collect()}
            assert "sevd_tcb" not in found
            setup.clock.now += collect.STATUS_SECONDS * 2
        assert setup.firmware.asked == 1  # one question is enough for a firmware that hangs
        setup.firmware.hang.set()
        await asyncio.sleep(0)

    assert "sevd_tcb" in collected(setup, several)


def test_endorsements_that_are_still_being_opened_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect, "PATIENCE_SECONDS", 0.05)

    async def never() -> EndorsementSet:
        await asyncio.sleep(60)
        raise AssertionError

    assert "sevd_endorsement_expiry_seconds" not in collected(Setup(Firmware([status()]), endorsements=never))
