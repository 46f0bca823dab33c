"""A daemon's guest logic over a simulated host, as the guest tests need it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from sevd.access.identity import Caller
from sevd.access.roles import Role
from sevd.devices import Quiet, Scheduler
from sevd.events import Event, Events
from sevd.guests import CreateGuest, Guest, Guests, Limits, PageType, Region, SimulatedView
from sevd.guests.machine import OwnMachines
from sevd.simulator import Simulator
from sevd.simulator.process import Process
from tests.support.simulated import simulated_host

POLICY = 0x30000
FIRMWARE = 64 << 10
FIRMWARE_GPA = (4 << 30) - FIRMWARE

ALICE = Caller.local(1001, 1001, 11, Role.LAUNCHER)
BOB = Caller.local(1002, 1002, 12, Role.LAUNCHER)
ROOT = Caller.local(0, 0, 1, Role.ADMIN)

REGIONS = (
    Region(FIRMWARE_GPA, FIRMWARE, PageType.NORMAL),
    Region(0x800000, 0x4000, PageType.ZERO),
    Region(0x804000, 0x1000, PageType.SECRETS),
    Region(0x805000, 0x1000, PageType.CPUID),
    Region(0x806000, 0x2000, PageType.UNMEASURED),
)
PAGES = sum(region.size for region in REGIONS) // 4096


def request(**changes: object) -> CreateGuest:
    """A small guest with one vCPU."""
    fields: dict[str, object] = {
        "memory_bytes": 16 << 20,
        "firmware_bytes": FIRMWARE,
        "vcpu_count": 1,
        "cpuid_signature": 0xA10F10,
    }
    return CreateGuest(**{**fields, **changes})  # type: ignore[arg-type]


def firmware() -> bytes:
    """Content in which every page is different."""
    return b"".join(bytes([page]) * 4096 for page in range(FIRMWARE // 4096))


@dataclass
class Hosting:
    """Everything of one test."""

    simulator: Simulator
    scheduler: Scheduler
    events: Events
    guests: Guests
    told: list[Event] = field(default_factory=list)
    processes: list[Process] = field(default_factory=list)
    changes: list[int] = field(default_factory=list)
    dead: bool = False
    """The secure processor was made to hang: what it holds cannot be freed any more, as on real hosts."""

    def in_use(self) -> int:
        """ASIDs that SNP guests hold."""
        return self.simulator.asids()["sev_es"][1]

    def kinds(self) -> list[str]:
        """Kinds of the events so far."""
        return [event.kind for event in self.told]

    def held(self) -> tuple[int, int, int]:
        """ASIDs, contexts of the firmware, and descriptors of all guests' processes: zero where nothing is held."""
        descriptors = sum(len(process.descriptors()) for process in self.processes)
        return self.in_use(), self.simulator.guest_count(), descriptors

    async def created(self, caller: Caller = ALICE, **changes: object) -> Guest:
        return await self.guests.create(caller, request(**changes))

    async def launching(self, caller: Caller = ALICE, **changes: object) -> Guest:
        guest = await self.created(caller, **changes)
        loader = await self.guests.load(caller, guest.guest_id)
        loader.write(FIRMWARE_GPA, firmware())
        return await self.guests.start(caller, guest.guest_id, POLICY)

    async def ready(self, caller: Caller = ALICE, **changes: object) -> Guest:
        guest = await self.launching(caller, **changes)
        await self.guests.update(caller, guest.guest_id, REGIONS)
        return await self.guests.finish(caller, guest.guest_id)


@asynccontextmanager
async def hosting(
    directory: Path,
    *,
    limits: Limits | None = None,
    observer: Callable[[Simulator], SimulatedView | None] = lambda simulator: simulator,
    quiet: Quiet | None = None,
    technologies: tuple[str, ...] = ("snp", "sev-es", "sev"),
    product: str = "genoa",
) -> AsyncIterator[Hosting]:
    """Guests over a simulated host; checks at the end that nothing is left behind."""
    with simulated_host(directory, product) as simulator:
        scheduler = Scheduler()
        events = Events(simulated=True)
        processes: list[Process] = []
        changes: list[int] = []

        def process() -> Process:
            processes.append(simulator.process())
            return processes[-1]

        view = observer(simulator)
        guests = Guests(
            OwnMachines(process, view),
            scheduler,
            events,
            limits=limits,
            simulated=view is not None,
            technologies=technologies,
            changed=lambda: changes.append(simulator.asids()["sev_es"][1]),
            quiet=quiet,
        )
        it = Hosting(simulator, scheduler, events, guests, processes=processes, changes=changes)
        events.listen(it.told.append)
        try:
            yield it
        finally:
            await guests.close()
            scheduler.close()
            assert it.held()[2] == 0, "descriptors are left behind"
            assert it.dead or it.held() == (0, 0, 0), "something is left behind"
