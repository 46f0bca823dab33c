"""All metrics of a daemon, made when somebody asks: what was counted, and how things are now.

Nothing is asked of the firmware more often than every STATUS_SECONDS, however many ask here, and nobody waits for a
firmware that is busy for longer than PATIENCE_SECONDS: what it does not tell in time is left out.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from typing import TYPE_CHECKING

from sev.errors import SevError
from sev.records import record
from sevd.metrics.model import Kind, Metric, Sample, gauge

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from sevd.devices.scheduler import Scheduler
    from sevd.endorsements import EndorsementSet
    from sevd.guests.model import Guest
    from sevd.metrics.tally import Tally
    from sevd.platform.views import HostView, SnpStatusView

STATUS_SECONDS = 15.0
"""Seconds for which an answer of the firmware is told again."""

PATIENCE_SECONDS = 1.0
"""Seconds to wait for the firmware."""


@record
class Sources:
    """Where values come from. Everything but `status` is quick.

    Attributes:
        version: The daemon's.
        tally: What was counted.
        scheduler: The device's queue.
        host: The host as it is known.
        guests: All guests.
        status: Asks the SNP platform for its status; raises SevError where there is none.
        endorsements: The certificates and lists at hand.
        connections: Open connections by socket.
        calls: Calls in flight.
        remote: When the certificate and the lists for remote callers run out, by kind, in seconds since 1970; nothing
            where none are served.
    """

    version: str
    tally: Tally
    scheduler: Scheduler
    host: Callable[[], HostView]
    guests: Callable[[], Iterable[Guest]]
    status: Callable[[], Awaitable[SnpStatusView]]
    endorsements: Callable[[], Awaitable[EndorsementSet]]
    connections: Callable[[], Mapping[str, int]]
    calls: Callable[[], int]
    remote: Callable[[], Mapping[str, float]] = dict


class Collector:
    """Makes the metrics. On the event loop."""

    def __init__(self, sources: Sources, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._sources = sources
        self._clock = clock
        self._started = time.time()
        self._status: SnpStatusView | None = None
        self._asked_at: float | None = None
        self._asking: asyncio.Task[None] | None = None
        self._known: EndorsementSet | None = None
        self._expiries: tuple[Sample, ...] = ()

    async def collect(self) -> list[Metric]:
        """Every metric, as of now."""
        await self._ask()
        await self._read_endorsements()
        sources, view = self._sources, self._sources.host()
        out = [
            Metric(
                "sevd_build_info",
                "Version of the daemon, and what it runs on.",
                Kind.GAUGE,
                (Sample({"version": sources.version, "product": view.product, "firmware": view.firmware}, 1),),
            ),
            gauge("sevd_start_time_seconds", "When the daemon started, in seconds since 1970.", self._started),
            gauge("sevd_simulated", "1 if the platform is simulated: nothing here is protected.", view.simulated),
            Metric(
                "sevd_device_health",
                "1 for how the SEV device does: ready, missing or wedged.",
                Kind.GAUGE,
                (Sample({"health": view.device_health.name.lower()}, 1),),
            ),
            Metric("sevd_asids", "ASIDs by kind and use; SNP guests count under sev_es.", Kind.GAUGE, _asids(view)),
            Metric("sevd_guests", "Guests by type and state.", Kind.GAUGE, _guests(sources.guests())),
            gauge("sevd_device_queue", "Pieces of device work that wait.", sources.scheduler.waiting),
            gauge(
                "sevd_device_busy_seconds",
                "For how long the piece of device work that runs now has been running.",
                sources.scheduler.busy_for(),
            ),
            Metric(
                "sevd_connections",
                "Open connections by socket.",
                Kind.GAUGE,
                tuple(Sample({"socket": name}, count) for name, count in sorted(sources.connections().items())),
            ),
            gauge("sevd_calls_in_flight", "Calls in flight, streams included.", sources.calls()),
            Metric(
                "sevd_endorsement_expiry_seconds",
                "When certificates and lists run out, in seconds since 1970.",
                Kind.GAUGE,
                self._expiries,
            ),
            Metric(
                "sevd_remote_expiry_seconds",
                "When certificate and lists for remote callers run out, in seconds since 1970.",
                Kind.GAUGE,
                tuple(Sample({"kind": kind}, end) for kind, end in sources.remote().items()),
            ),
            *self._platform(),
            *_process(),
            *sources.tally.metrics(),
        ]
        if view.desired is not None:
            help_ = "In how many ways the platform is not as the configuration wants it."
            out.append(gauge("sevd_platform_drift", help_, len(view.desired.drift)))
        return [metric for metric in out if metric.samples]

    def _platform(self) -> list[Metric]:
        status = self._status
        if status is None:
            return []
        tcbs = {"current": status.current_tcb, "reported": status.reported_tcb, "committed": status.committed_tcb}
        samples = [
            Sample({"tcb": which, "component": name}, level)
            for which, tcb in tcbs.items()
            if tcb is not None
            for name, level in tcb.components().items()
        ]
        return [
            Metric("sevd_tcb", "Security patch levels by TCB and component.", Kind.GAUGE, tuple(samples)),
            gauge("sevd_vlek_loaded", "1 if a VLEK is loaded.", status.vlek_loaded),
            gauge("sevd_firmware_guests", "SNP guests that the firmware knows.", status.guest_count),
        ]

    async def _read_endorsements(self) -> None:
        """When each runs out; read again where they are others than the last time."""
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                found = await self._sources.endorsements()
        except Exception:  # whatever keeps them from being opened was logged when it happened
            return
        if found is not self._known:
            self._known = found
            self._expiries = await asyncio.to_thread(_expiries, found)

    async def _ask(self) -> None:
        now = self._clock()
        if self._asking is None and (self._asked_at is None or now - self._asked_at >= STATUS_SECONDS):
            self._asked_at = now
            self._asking = asyncio.ensure_future(self._renew())
        if self._asking is not None:
            await asyncio.wait((self._asking,), timeout=PATIENCE_SECONDS)

    async def _renew(self) -> None:
        """What the firmware does not tell is not known any more."""
        try:
            self._status = await self._sources.status()
        except SevError:
            self._status = None
        finally:
            self._asking = None


def _expiries(found: EndorsementSet) -> tuple[Sample, ...]:
    from sev.certs.files import load_all

    out = []
    for one in found.endorsements:
        certificates, lists = load_all(one.der)
        ends = [each.not_after for each in certificates] + [each.next_update for each in lists]
        out.append(Sample({"kind": one.kind.name.lower()}, min(ends).timestamp()))
    return tuple(out)


def _asids(view: HostView) -> tuple[Sample, ...]:
    return tuple(
        Sample({"kind": kind, "use": use}, value)
        for kind, asids in (("sev", view.sev_asids), ("sev_es", view.sev_es_asids))
        if asids.total
        for use, value in (("used", asids.in_use), ("free", max(asids.total - asids.in_use, 0)))
    )


def _guests(guests: Iterable[Guest]) -> tuple[Sample, ...]:
    counts = Counter((guest.type.name.lower().replace("_", "-"), guest.state.name.lower()) for guest in guests)
    return tuple(Sample({"type": kind, "state": state}, count) for (kind, state), count in sorted(counts.items()))


def _process() -> list[Metric]:
    """The daemon's own process."""
    out = []
    try:
        with open("/proc/self/statm", "rb") as file:
            pages = int(file.read().split()[1])
        out.append(gauge("sevd_resident_memory_bytes", "Resident memory.", pages * os.sysconf("SC_PAGE_SIZE")))
        out.append(gauge("sevd_open_descriptors", "Open descriptors.", len(os.listdir("/proc/self/fd")) - 1))
    except OSError:
        pass  # a /proc that is closed to us tells nothing
    times = os.times()
    seconds = Sample({}, times.user + times.system)
    out.append(Metric("sevd_cpu_seconds_total", "Processor time of the daemon.", Kind.COUNTER, (seconds,)))
    return out
