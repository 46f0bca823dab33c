"""Hosted guests: every step of their lives, for whoever owns them.

All methods belong to one event loop. Device work runs on the scheduler's worker, in the lane of the guest; steps of
one guest follow each other, steps of different guests take turns. With `validate_only` a method checks what it would
check, and changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from sev.errors import DeviceMissing, MalformedInput, NotNow, NotPermitted, UsageError, WrongState
from sevd.devices.missing import remedy_of
from sevd.devices.quiet import Quiet
from sevd.devices.work import Steps, Work
from sevd.guests.admission import TECHNOLOGIES, Ledger, check_create
from sevd.guests.finding import Finding
from sevd.guests.hosted import Hosted
from sevd.guests.launcher import Launcher
from sevd.guests.limits import Limits
from sevd.guests.machine import Finish, KeyRequest, Start
from sevd.guests.memory import MemoryLoader
from sevd.guests.migration import Migration
from sevd.guests.model import LEGACY, CreateGuest, Guest, GuestState, GuestType, Region
from sevd.guests.port import Found, Machines, SharedMemory
from sevd.guests.registry import Registry
from sevd.guests.running import Running
from sevd.guests.sev_launch import no_such_step
from sevd.guests.sev_steps import SevSteps, check_start
from sevd.guests.states import Step
from sevd.guests.watch import Watch, Watchers

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from sevd.access.identity import Caller
    from sevd.devices.scheduler import Scheduler
    from sevd.events import Publisher

REPORT_DATA = 64
"""Bytes of report data."""

log = logging.getLogger(__name__)


class Guests:
    """All hosted guests of one daemon.

    Args:
        machines: Where guests' machines come from; None while a device is missing.
        scheduler: Where device work runs.
        events: Where to say what happened.
        limits: Limits per identity.
        simulated: The platform is a model.
        plain: Plain guests are admitted.
        technologies: Technologies that are offered: "snp", "sev-es", "sev".
        missing: What is missing, one sentence each; told where `machines` is None.
        changed: Called whenever a guest came, went, or took or freed an ASID.
        quiet: Shared with the platform's commands that need no launch in flight.
    """

    def __init__(
        self,
        machines: Machines | None,
        scheduler: Scheduler,
        events: Publisher,
        *,
        limits: Limits | None = None,
        simulated: bool = False,
        plain: bool = False,
        technologies: Collection[str] = tuple(TECHNOLOGIES.values()),
        missing: Callable[[], Sequence[str]] = tuple,
        changed: Callable[[], None] = lambda: None,
        quiet: Quiet | None = None,
    ) -> None:
        self._machines = machines
        self._scheduler = scheduler
        self._limits = limits or Limits()
        self._simulated = simulated
        self._plain = plain
        self._technologies = technologies
        self._missing = missing
        self._registry = Registry()
        self._ledger = Ledger(self._limits)
        self._watchers = Watchers(self._limits.watch_backlog)
        self._steps = Steps()
        self._closed = False
        self._launcher = Launcher(
            scheduler,
            events,
            registry=self._registry,
            ledger=self._ledger,
            watchers=self._watchers,
            quiet=quiet or Quiet(),
            machines=machines,
            changed=changed,
            chunk_bytes=self._limits.chunk_bytes,
        )
        self._finding = Finding(machines, self._registry, self._take_over)
        self.running = Running(self._registry, self._launcher.ran)
        """Guests that are launched, and run."""
        self.sev = SevSteps(self._registry, scheduler, self._steps, self._launcher)
        """What SEV and SEV-ES guests alone have."""
        self.migration = Migration(self._registry, scheduler, self._steps, self._launcher)
        """SEV guests on their way."""

    def __len__(self) -> int:
        """How many guests there are, of everybody."""
        return len(self._registry)

    def all(self) -> Iterator[Guest]:
        """All guests, of everybody."""
        return (guest.view() for guest in self._registry)

    def limit(self, limits: Limits) -> None:
        """Takes other limits for what is asked from here on; what is held already stays."""
        self._limits = self._ledger.limits = limits

    def occupants(self) -> list[str]:
        """The guests of everybody that hold something of the host, and those that are being created, a phrase each."""
        there = [
            f"the guest {guest.guest_id} of {guest.owner} ({guest.request.type.name.replace('_', '-')}, "
            f"{guest.state.name.lower()})"
            for guest in self._registry
            if guest.machine is not None
        ]
        return [*there, *(f"the guest {name} of {owner} (being created)" for owner, name in self._registry.reserved)]

    def get(self, caller: Caller, guest_id: str) -> Guest:
        """One guest. Raises NotFound if it does not exist for this caller."""
        return self._registry.find(caller, guest_id).view()

    def list(self, caller: Caller, page_size: int = 0, token: str = "") -> tuple[list[Guest], str]:
        """Visible guests in the order of creation, and the token of the next page (empty at the end)."""
        page, following = self._registry.page(caller, page_size, token)
        return [guest.view() for guest in page], following

    def watch(self, caller: Caller, guest_id: str = "") -> Watch:
        """A stream of visible guests, or of one: as they are, then every change. Close it when done.

        Raises:
            NotFound: The one guest does not exist for this caller.
            LimitReached: Too many streams of this identity.
        """
        guests = [self._registry.find(caller, guest_id)] if guest_id else self._registry.visible(caller)
        only = (guests[0].owner, guests[0].guest_id) if guest_id else None
        self._ledger.take_watch(caller)
        watch = self._watchers.open(caller, [guest.view() for guest in guests], only, self._ledger.give_back_watch)
        if self._closed:
            watch.end()
        return watch

    async def create(self, caller: Caller, request: CreateGuest, *, validate_only: bool = False) -> Guest:
        """A VM with an ASID and empty memory: CREATED. A cancelled call leaves nothing behind.

        Raises:
            UsageError: A field that cannot be meant, or an id that the caller uses already.
            LimitReached: A limit of the caller; or, with an errno, of the host (no free ASID: EBUSY).
            NotPermitted: A plain guest, and the configuration does not admit them.
            NotOffered: A technology that the configuration leaves out, or that KVM does not have here.
            DeviceMissing: There is no device; the message lists what is missing.
            FirmwareError, KernelError: Refused.
        """
        check_create(request, self._limits, plain=self._plain, technologies=self._technologies)
        machines = self._open_for_business(request)
        if request.guest_id:
            self._registry.check_free(caller.owner, request.guest_id)
        self._ledger.check(caller, request)
        if validate_only:
            return Hosted(request, request.guest_id, caller.owner, simulated=self._simulated).view()
        self._ledger.launch(caller)
        guest_id = self._registry.reserve(caller.owner, request.guest_id)
        self._ledger.take(caller.owner, request)
        guest = Hosted(request, guest_id, caller.owner, simulated=self._simulated)
        work = Work(self._scheduler, guest.lane)
        return await self._steps.run(self._launcher.create(guest, machines, work), work)

    async def load(self, caller: Caller, guest_id: str) -> MemoryLoader:
        """A way to fill the guest's memory; legal in CREATED and LAUNCHING. Writing does not wait for the device."""
        guest = self._registry.find(caller, guest_id)
        guest.ready_for(Step.LOAD)
        return MemoryLoader(guest.guest_id, guest.memory, guest.writable)

    async def start(
        self,
        caller: Caller,
        guest_id: str,
        policy: int,
        gosvw: bytes = b"",
        *,
        certificate: bytes = b"",
        session: bytes = b"",
        validate_only: bool = False,
    ) -> Guest:
        """LAUNCH_START: CREATED to LAUNCHING. Refused, the guest stays CREATED and may be started again.

        Raises:
            MalformedInput: gosvw is neither empty nor 16 bytes, a certificate not 2084, a launch blob not 128.
            UsageError: What does not fit the guest's type.
            WrongState, FirmwareError, KernelError: Refused.
        """
        guest = self._registry.find(caller, guest_id)
        if not 0 <= policy < 1 << 64:
            raise UsageError(f"policy: 0x{policy:x} does not fit in 64 bits", field="policy")
        _check_length("gosvw", gosvw, 16)
        check_start(guest, policy, gosvw, certificate, session)
        guest.ready_for(Step.START)
        if validate_only:
            return guest.view()
        work = Work(self._scheduler, guest.lane)
        step = Start(policy, gosvw or bytes(16), certificate, session)
        return await self._steps.run(self._launcher.start(guest, step, work), work)

    async def update(
        self, caller: Caller, guest_id: str, regions: Sequence[Region], *, validate_only: bool = False
    ) -> Guest:
        """LAUNCH_UPDATE over regions, in this order. Pages accepted before a refusal stay part of the launch.

        Raises:
            UsageError: No or too many regions, an unknown type, a misaligned address or size, a region outside memory
                or overlapping another or an earlier one (field `regions[i]…`). Nothing was issued.
            WrongState, FirmwareError, KernelError: Refused.
        """
        guest = self._registry.find(caller, guest_id)
        most = self._limits.regions_per_update
        if not 0 < len(regions) <= most:
            raise UsageError(f"regions: {len(regions)}, expected 1 to {most}", field="regions")
        guest.ready_for(Step.UPDATE)
        guest.memory.check_regions(regions)
        if validate_only:
            return guest.view()
        work = Work(self._scheduler, guest.lane)
        return await self._steps.run(self._launcher.update(guest, tuple(regions), work), work)

    async def finish(
        self,
        caller: Caller,
        guest_id: str,
        *,
        id_block: bytes = b"",
        id_auth: bytes = b"",
        author_key_enabled: bool = False,
        vcek_disabled: bool = False,
        host_data: bytes = b"",
        validate_only: bool = False,
    ) -> Guest:
        """SNP_LAUNCH_FINISH: LAUNCHING to READY, with the launch digest. A refusal is final: FAILED, with the reason.

        LAUNCH_FINISH of SEV and SEV-ES guests: MEASURED to READY; a refusal leaves them MEASURED.

        Raises:
            MalformedInput: An ID block that is not 96 bytes, ID auth not 4096, host data not 32.
            UsageError: ID block without ID auth or the reverse; an author key without an ID block; any of these for a
                guest without SNP.
            WrongState, FirmwareError, KernelError: Refused.
        """
        guest = self._registry.find(caller, guest_id)
        _check_length("id_block", id_block, 96)
        _check_length("id_auth", id_auth, 4096)
        _check_length("host_data", host_data, 32)
        if bool(id_block) != bool(id_auth):
            lacking = "id_auth" if id_block else "id_block"
            raise UsageError(f"{lacking}: an ID block and its authentication page go together", field=lacking)
        if author_key_enabled and not id_block:
            raise UsageError(
                "author_key_enabled: there is no ID block that an author key could vouch for",
                field="author_key_enabled",
            )
        _check_finish(guest, id_block, vcek_disabled, host_data)
        guest.ready_for(Step.FINISH)
        if validate_only:
            return guest.view()
        work = Work(self._scheduler, guest.lane)
        step = Finish(id_block, id_auth, author_key_enabled, vcek_disabled, host_data or bytes(32))
        return await self._steps.run(self._launcher.finish(guest, step, work), work)

    async def delete(self, caller: Caller, guest_id: str, *, validate_only: bool = False) -> None:
        """Ends a guest in any state; its ASID, memory and descriptors are free when this returns.

        A cancelled call goes on to the end all the same.
        """
        guest = self._registry.find(caller, guest_id)
        guest.after(Step.DELETE)
        if not validate_only:
            guest.stopping = True
            await self._steps.run(self._launcher.delete(guest), None)

    async def guest_report(
        self, caller: Caller, guest_id: str, report_data: bytes, *, vmpl: int = 0, key_selection: int = 0
    ) -> bytes:
        """Plays the guest on a simulated host: MSG_REPORT_REQ, 1184 bytes. For the owner alone."""
        guest = self._playable(caller, guest_id)
        if len(report_data) != REPORT_DATA:
            raise MalformedInput(f"report_data: {len(report_data)} bytes, expected {REPORT_DATA}", field="report_data")
        machine = guest.ready_for(Step.PLAY)
        return await Work(self._scheduler, guest.lane).do(machine.report, report_data, vmpl, key_selection)

    async def guest_key(self, caller: Caller, guest_id: str, request: KeyRequest) -> bytes:
        """Plays the guest on a simulated host: MSG_KEY_REQ, 32 bytes. For the owner alone."""
        guest = self._playable(caller, guest_id)
        machine = guest.ready_for(Step.PLAY)
        return await Work(self._scheduler, guest.lane).do(machine.key, request)

    async def lose(self, reason: str) -> None:
        """The platform is gone (a power loss): every guest is LOST, and what it held is given back."""
        await self._launcher.lose(reason)

    def share(self, caller: Caller, guest_id: str) -> SharedMemory:
        """The guest's memory to be mapped, for the owner alone, as long as there is any.

        Raises:
            NotFound: The guest does not exist for this caller.
            NotPermitted: It is somebody else's.
            WrongState: It was lost.
        """
        guest = self._registry.find(caller, guest_id)
        if guest.owner != caller.owner:
            raise NotPermitted(f"the memory of guest {guest.guest_id} is its owner's alone", field="guest_id")
        if guest.state is GuestState.LOST:
            raise WrongState(
                f"the guest {guest.guest_id} was lost: {guest.failure}",
                remedy="Delete it and create another one.",
                metadata={"state": guest.state.name, "allowed": Step.DELETE},
            )
        if guest.stopping or guest.machine is None:
            raise guest.gone()
        return guest.machine.share()

    def _take_over(self, found: Found) -> None:
        card = found.card
        guest = Hosted(card.request, card.guest_id, card.owner, simulated=card.simulated, create_time=card.create_time)
        self._launcher.adopt(guest, found)

    async def open(self) -> None:
        """Takes over the guests that an earlier daemon left; to be called once, before anything else."""
        await self._finding.open()

    async def close(self, seconds: float = 10.0) -> None:
        """The daemon ends: no new guests. Those in workers go on without it; others are LOST, and streams say so."""
        self._closed = True
        self._launcher.closed = True
        await self.running.close()
        if self._machines is not None and self._machines.outlive:
            if going_on := sum(guest.machine is not None for guest in self._registry):
                log.info("the daemon ends and its guests do not: workers=%d", going_on)
            await self._steps.drain(seconds)
            await self._launcher.leave()
        else:
            await self.lose("the daemon ended, and its guests with it")
            await self._steps.drain(seconds)
        if self._machines is not None:
            await asyncio.to_thread(self._machines.close)
            await self._finding.close()
        self._watchers.end()

    def _open_for_business(self, request: CreateGuest) -> Machines:
        if self._closed:
            raise NotNow("the daemon is stopping", remedy="Try again when it runs again.")
        missing = list(self._missing())
        if self._machines is None or (missing and request.type != GuestType.PLAIN):
            raise DeviceMissing(
                " ".join(["no such guest can be launched here.", *missing]),
                remedy=remedy_of(missing),
                metadata={"missing": "\n".join(missing)},
            )
        return self._machines

    def _playable(self, caller: Caller, guest_id: str) -> Hosted:
        """A guest that the caller may play: its own. An administrator sees others' guests, not their secrets."""
        guest = self._registry.find(caller, guest_id)
        if guest.owner != caller.owner:
            raise NotPermitted(f"the guest {guest.guest_id} is not yours to play", field="guest_id")
        if guest.request.type in LEGACY:
            no_such_step(guest.request.type, Step.PLAY)
        return guest


def _check_finish(guest: Hosted, id_block: bytes, vcek_disabled: bool, host_data: bytes) -> None:
    """Raises UsageError for what only a report of an SNP guest could show."""
    if guest.request.type == GuestType.SNP:
        return
    for field, given in (("id_block", id_block), ("vcek_disabled", vcek_disabled), ("host_data", any(host_data))):
        if given:
            raise UsageError(
                f"{field}: only SNP guests have that, and this is a guest of type {guest.request.type.name}",
                field=field,
                remedy="Leave it out, or launch an SNP guest.",
            )


def _check_length(field: str, data: bytes, size: int) -> None:
    if data and len(data) != size:
        raise MalformedInput(f"{field}: {len(data)} bytes, expected {size}, or none", field=field)
