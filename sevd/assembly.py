"""The parts of one daemon, put together: logic on the host, skins on the logic, the server around the skins.

Lives on one event loop. Nothing here knows whether the host is simulated, beyond handing the fact on.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextlib import closing
from typing import TYPE_CHECKING

from google.protobuf.descriptor import ServiceDescriptor

from sev import __version__
from sev.errors import UsageError
from sev.host.facts import kernel_facts
from sev.records import replace
from sev.v1 import endorsement_pb2, guest_pb2, host_pb2, sev_platform_pb2, simulator_pb2, snp_platform_pb2
from sevd.access.accounts import GateLimits
from sevd.access.descriptors import Descriptors, Shared
from sevd.access.identity import Caller
from sevd.access.listeners import FD, METRICS, Listener
from sevd.access.policy import AccessPolicy
from sevd.api.dispatch import Skin
from sevd.api.endorsement import EndorsementSkin
from sevd.api.guest import GuestSkin
from sevd.api.host import HostSkin
from sevd.api.server import END_SECONDS, Server, ServerLimits
from sevd.api.sev_platform import SevPlatformSkin
from sevd.api.simulator import NoSimulatorSkin, SimulatorSkin
from sevd.api.snp_platform import SnpPlatformSkin
from sevd.api.withheld import WithheldSkin
from sevd.appearing import PAUSE_SECONDS, Appearing
from sevd.audit import Audit
from sevd.audit_reading import AuditReading
from sevd.audit_recovery import recover
from sevd.config import Settings
from sevd.devices.quiet import Quiet
from sevd.devices.scheduler import Scheduler
from sevd.events import Event, Events
from sevd.guests.limits import Limits
from sevd.guests.service import Guests
from sevd.host_parts import HostParts
from sevd.journal import Journal
from sevd.metrics.collect import Collector, Sources
from sevd.metrics.observer import Observer
from sevd.metrics.tally import Tally
from sevd.platform.check import HostChecker
from sevd.platform.device import PlatformDevice
from sevd.platform.host import HostPlatform
from sevd.platform.views import DesiredView, DeviceHealth
from sevd.platform_parts import PlatformParts
from sevd.state import StateDirectory
from sevd.stopping import Stopping

if TYPE_CHECKING:
    from sevd.devices.facts import HostFacts
    from sevd.metrics.serving import MetricsServer

ANSWER_SECONDS = 3.0
"""How long a start waits for the firmware: one whose command hangs keeps nobody else from being served."""

GOING_SECONDS = 1.0
"""How often a platform that may go away is looked at; calls look by themselves."""

log = logging.getLogger(__name__)


def server_limits(settings: Settings) -> ServerLimits:
    """The limits on connections and calls of a configuration."""
    gate = GateLimits(settings.connections, settings.connections_per_identity)
    return ServerLimits(gate, settings.calls_per_identity, settings.message_bytes, settings.bytes_in_flight)


def guest_limits(settings: Settings) -> Limits:
    """The limits on guests of a configuration."""
    return Limits(
        guests=settings.guests_per_identity,
        memory_bytes=settings.guest_memory_per_identity,
        launches_per_minute=settings.launches_per_minute,
        vcpus_per_guest=settings.vcpus_per_guest,
        watches=settings.watches_per_identity,
    )


class Assembly:
    """Everything that runs between the start and the stop of a daemon."""

    def __init__(self, settings: Settings, state: StateDirectory, parts: HostParts, policy: AccessPolicy) -> None:
        """
        Raises:
            UsageError: State cannot be read or written.
            UndeclaredMethod: The API and the skins do not fit together.
        """
        self._settings = settings
        self.parts = parts
        self.events = Events(simulated=parts.simulated)
        self.events.watches = settings.watches_per_identity
        self._tally = Tally()
        observer = Observer(self._tally, traced=settings.tracing)
        self.scheduler = Scheduler(observe=observer.job)
        self._audit, self._journal = _records(settings, state)
        self._reading = AuditReading(self._audit)
        self._audit.count_refused = self._tally.connection_refused
        self._device = PlatformDevice(
            parts.platform_kernel,
            self.scheduler,
            path=parts.sev_path,
            missing=lambda: parts.missing,
            there=parts.present,
            observe=self._tally.command,
        )
        quiet = Quiet()
        self.guests = Guests(
            parts.machines,
            self.scheduler,
            self.events,
            limits=guest_limits(settings),
            simulated=parts.simulated,
            plain=settings.plain_guests,
            technologies=settings.technologies,
            missing=lambda: parts.missing,
            changed=self._changed,
            quiet=quiet,
        )
        self.host = HostPlatform(
            self._facts(parts.facts),
            self._device,
            asids=parts.asids,
            missing=lambda: parts.missing,
            guest_count=lambda: len(self.guests),
            simulated=parts.simulated,
            daemon_version=__version__,
            max_age=parts.asids_age,
            desired=self._wanted,
        )
        self._platforms = PlatformParts(
            settings,
            state,
            parts,
            device=self._device,
            scheduler=self.scheduler,
            events=self.events,
            audit=self._audit,
            quiet=quiet,
            host=self.host,
            occupants=self.guests.occupants,
        )
        self._appearing = Appearing(
            parts.missing,
            None if parts.look is None else self._look_again,
            self.host,
            self._platforms.taken_into_use,
            self.events,
            pause=GOING_SECONDS if parts.may_go else PAUSE_SECONDS,
            forever=parts.may_go,
        )
        self._collector = Collector(
            Sources(
                version=__version__,
                tally=self._tally,
                scheduler=self.scheduler,
                host=self.host.view,
                guests=self.guests.all,
                status=self._platforms.snp.status,
                endorsements=self._platforms.endorsements.current,
                connections=self._by_socket,
                calls=self._calls_in_flight,
                remote=self._remote_ends,
            )
        )
        self._metrics: MetricsServer | None = None
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self.server = Server(
            state.folder("private"),
            self._skins(),
            policy=policy,
            audit=self._audit,
            journal=self._journal,
            limits=server_limits(settings),
            missing=parts.missing_for,
            tally=self._tally,
            hidden=()
            if parts.simulated
            else (simulator_pb2.DESCRIPTOR.services_by_name["SimulatorService"].full_name,),
        )
        self._descriptors = Descriptors(policy, self._audit, self._shared, self.server.gate)
        self.server.frame.spans = observer.spans()
        self.events.listen(self._happened)

    async def start(self) -> None:
        """Asks the platform who it is and opens the private listener; endorsements are looked up meanwhile."""
        self._platforms.endorsements.start()  # first of all: it takes the lock of the certificate table
        asked = asyncio.create_task(self._ask_platform())
        await asyncio.wait([asked], timeout=ANSWER_SECONDS)
        if not asked.done():
            log.error("the firmware does not answer: what needs it waits, everything else is served")
            self.host.silent()
            self._tasks.add(asked)
            asked.add_done_callback(self._tasks.discard)
        await self.guests.open()
        await self.server.start()
        self._appearing.start()
        self._platforms.upkeep.start()

    async def _ask_platform(self) -> None:
        await self.host.refresh()

    def open(self, listeners: Iterable[Listener]) -> None:
        """Serves callers from here on."""
        listeners = list(listeners)
        self.server.open(one for one in listeners if one.kind not in (FD, METRICS))
        for one in listeners:
            if one.kind is FD:
                self._descriptors.open(one)
            elif one.kind is METRICS:
                from sevd.metrics.serving import MetricsServer

                self._metrics = MetricsServer(one.socket, self._collector.collect)
                self._start(self._metrics.start())

    def reload(self, settings: Settings, policy: AccessPolicy) -> None:
        """Takes what a reload may change."""
        self._settings = settings
        self._descriptors.reload(policy)
        self.server.reload(policy, server_limits(settings))
        self.guests.limit(guest_limits(settings))
        self._platforms.reload(settings)
        self.events.watches = settings.watches_per_identity

    async def stop(self, say: Callable[[str, float], None]) -> None:
        """Ends calls, guests and streams, and gives everything back.

        Args:
            say: Told what is waited for, in words, and for how many seconds at most.
        """
        stopping = Stopping(
            self.server.frame.unanswered,
            self.scheduler,
            self._settings.drain_seconds,
            lambda text: say(text, stopping.left),
        )
        self._descriptors.close()
        if self._metrics is not None:
            await self._metrics.close()
        await self.server.stop(END_SECONDS, self._end_streams, stopping.wait)
        for task in self._tasks:
            task.cancel()
        await self._appearing.close()
        await self._platforms.upkeep.close()
        await self._device.close()  # with it end the commands under way, which hold the certificate table
        await self._platforms.endorsements.close()
        if not await asyncio.to_thread(self.scheduler.close, max(stopping.left, 1.0)):
            log.error("a firmware command is still running: the daemon ends without it")
        if self.server.frame.spans is not None:
            await asyncio.to_thread(self.server.frame.spans.close)
        self._journal.close()
        self._audit.close()

    def status(self) -> str:
        """One line about the daemon, for the service manager."""
        parts, view = self.parts, self.host.view()
        kind = f"SIMULATED {view.product}" if parts.simulated else view.product or "unknown processor"
        silent = view.device_health is DeviceHealth.WEDGED
        unknown = "the firmware does not answer" if silent else "no device"
        words = [kind, f"firmware {view.firmware}" if view.firmware else unknown]
        words.append(f"{view.guest_count} guests")
        if parts.missing:
            words.append("degraded: " + " ".join(parts.missing))
        return ", ".join(words)

    def _skins(self) -> dict[ServiceDescriptor, Skin]:
        services = {
            name: service
            for module in (host_pb2, snp_platform_pb2, sev_platform_pb2, guest_pb2, endorsement_pb2, simulator_pb2)
            for name, service in module.DESCRIPTOR.services_by_name.items()
        }
        simulator: Skin = NoSimulatorSkin()
        if self.parts.simulated:
            simulator = SimulatorSkin(self.guests, self._platforms.snp, self._platforms.endorsements.reading)
        skins: dict[str, Skin] = {
            "HostService": HostSkin(
                self.host,
                self.events,
                HostChecker(self.parts.host_reader, self._device, simulated=self.parts.simulated),
                self._collector,
                self._reading,
            ),
            "SnpPlatformService": SnpPlatformSkin(self._platforms.snp),
            "SevPlatformService": SevPlatformSkin(self._platforms.sev),
            "GuestService": GuestSkin(self.guests),
            "EndorsementService": EndorsementSkin(self._platforms.endorsements),
            "SimulatorService": simulator,
        }
        offered = self._settings.technologies
        if "snp" not in offered:
            skins["SnpPlatformService"] = WithheldSkin("snp")
        if not {"sev", "sev-es"} & set(offered):
            skins["SevPlatformService"] = WithheldSkin("sev")
        return {services[name]: skin for name, skin in skins.items()}

    def _end_streams(self) -> Iterable[asyncio.Future[None]]:
        async def end() -> None:
            await self.guests.close()
            self.events.close()
            self._reading.close()

        return [asyncio.ensure_future(end())]

    def _shared(self, caller: Caller, guest_id: str) -> Shared:
        return Shared(*self.guests.share(caller, guest_id))

    def _changed(self) -> None:
        self.host.changed()

    def _happened(self, event: Event) -> None:
        """What others must hear of an event, on whichever thread it was published."""
        self.host.changed()
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            self._loop.call_soon_threadsafe(self._tell_health)
        else:
            self._tell_health()

    def _wanted(self) -> DesiredView | None:
        return self._platforms.upkeep.view()

    def _by_socket(self) -> Mapping[str, int]:
        return self.server.gate.by_socket()

    def _calls_in_flight(self) -> int:
        return self.server.frame.in_flight

    def _remote_ends(self) -> Mapping[str, float]:
        remote = self.server.gate.remote
        return {} if remote is None else remote.ends()

    def _tell_health(self) -> None:
        self._start(self.server.foreign.refresh_health())

    def _start(self, work: Coroutine[object, object, None]) -> None:
        """Does something beside everything else."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _facts(self, facts: HostFacts) -> HostFacts:
        with closing(self.parts.host_reader()) as reader:
            offered = {"sev-snp" if name == "snp" else name for name in self._settings.technologies}
            here = tuple(name for name in facts.technologies if name in offered)
            return replace(facts, offers=kernel_facts(reader), technologies=here)

    def _look_again(self) -> HostFacts:
        """Runs on a thread."""
        assert self.parts.look is not None
        return self._facts(self.parts.look())


def _records(settings: Settings, state: StateDirectory) -> tuple[Audit, Journal]:
    try:
        trail = settings.audit_file or state.path / "audit.jsonl"
        audit = Audit(trail, file_bytes=settings.audit_file_bytes, files=settings.audit_files)
        journal = Journal(
            state.path / "journal.jsonl",
            entries=settings.journal_entries,
            entries_per_owner=settings.journal_entries_per_identity,
            seconds=settings.journal_seconds,
        )
    except OSError as error:
        what = os.strerror(error.errno or errno.EIO)
        raise UsageError(f"{error.filename or state.path}: {what}", field="state_dir") from None
    late = recover(audit, journal)
    if late:
        log.warning("the daemon before this one ended before it could record %d calls; they are in the audit now", late)
    return audit, journal
