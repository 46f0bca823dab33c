"""The launch steps themselves: what each does on the device worker, and what it leaves on the guest, failures included.

Every step holds its guest's lock and runs to its end by itself (sevd.guests.work); the checks that need no device have
been made before, and are made again under the lock, because steps that were queued may have changed the guest.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from sev.errors import NotNow, SevError
from sevd.devices.work import Withdrawn
from sevd.guests.aside import aside
from sevd.guests.machine import Finish, Start, accepted_bytes
from sevd.guests.model import PAGE, Guest, GuestState, Region
from sevd.guests.states import Step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from sevd.devices.quiet import Quiet
    from sevd.devices.scheduler import Scheduler
    from sevd.devices.work import Work
    from sevd.events import Publisher
    from sevd.guests.admission import Ledger
    from sevd.guests.hosted import Hosted
    from sevd.guests.port import Found, GuestMachine, Machines
    from sevd.guests.registry import Registry
    from sevd.guests.watch import Watchers


log = logging.getLogger(__name__)


class Launcher:
    """Takes guests through their states. See `Guests` for the arguments."""

    def __init__(
        self,
        scheduler: Scheduler,
        events: Publisher,
        *,
        registry: Registry,
        ledger: Ledger,
        watchers: Watchers,
        quiet: Quiet,
        machines: Machines | None,
        changed: Callable[[], None],
        chunk_bytes: int,
    ) -> None:
        self._scheduler = scheduler
        self._events = events
        self._registry = registry
        self._ledger = ledger
        self._watchers = watchers
        self._quiet = quiet
        self._machines = machines
        self._changed = changed
        self._chunk = max(chunk_bytes // PAGE, 1) * PAGE
        self._losses: set[asyncio.Task[None]] = set()
        self.closed = False

    async def create(self, guest: Hosted, machines: Machines, work: Work) -> Guest:
        """Makes the machine of a guest whose id and limits are reserved; on failure gives everything back."""
        machine: GuestMachine | None = None
        try:
            await self._quiet.admit()
            # A process takes its time to start: other guests' work goes on meanwhile.
            machine = await aside(machines.make)
            await work.do(machine.create, guest.card())
            work.check()
            if self.closed:
                raise NotNow("the daemon is stopping", remedy="Try again when it runs again.")
        except BaseException:
            self._registry.drop(guest.owner, guest.guest_id)
            self._ledger.give_back(guest.owner, guest.request)
            guest.machine = machine
            await self._give_up(guest)
            raise
        self._take(guest, machine)
        self._become(guest, GuestState.CREATED, "guest.created", "was created")
        return guest.view()

    def adopt(self, guest: Hosted, found: Found) -> None:
        """Takes a guest over that an earlier daemon left."""
        self._registry.check_free(guest.owner, guest.guest_id)
        self._ledger.take(guest.owner, guest.request)
        progress = found.progress
        guest.policy, guest.launch_digest = progress.policy, progress.launch_digest
        guest.failure, guest.updated_pages = progress.failure, progress.updated_pages
        guest.measurement = progress.measurement
        for start, end in progress.taken:
            guest.memory.taken.add(start, end)
        if found.machine is None:
            self._registry.add(guest)
            guest.stopping, guest.failure = True, found.reason
            self._become(guest, GuestState.LOST, "guest.lost", f"was lost: {found.reason}")
            return
        self._take(guest, found.machine)
        # Whoever ran it did so by way of the earlier daemon, and with that it paused.
        state = GuestState.PAUSED if progress.state is GuestState.RUNNING else progress.state
        self._become(guest, state, "guest.found", "was found again in its worker")

    async def start(self, guest: Hosted, start: Start, work: Work) -> Guest:
        """LAUNCH_START. A refusal leaves the guest CREATED."""
        async with guest.lock:
            work.check()
            guest.ready_for(Step.START)
            await self._quiet.begin(guest.lane)
            try:
                machine = guest.ready_for(Step.START)  # it may have been deleted while a platform command ran
                await work.do(machine.start, start.policy, start.gosvw, start.certificate, start.session)
                state = guest.after(Step.START)
            except BaseException:
                self._quiet.end(guest.lane)
                raise
            guest.policy = start.policy
            self._become(guest, state, "guest.launching", "began its launch", {"policy": f"0x{start.policy:x}"})
            return guest.view()

    async def update(self, guest: Hosted, regions: tuple[Region, ...], work: Work) -> Guest:
        """LAUNCH_UPDATE, cut into pieces so that other guests get their turns in between."""
        async with guest.lock:
            work.check()
            guest.ready_for(Step.UPDATE)
            guest.memory.check_regions(regions)
            taken, before = guest.memory.taken, guest.updated_pages
            for region in regions:
                taken.add(region.gpa, region.gpa + region.size)
            pieces = list(self._pieces(regions))
            issued = 0
            try:
                for number, (index, gpa, size) in enumerate(pieces):
                    machine = guest.ready_for(Step.UPDATE)
                    self._quiet.touch(guest.lane)
                    try:
                        await work.do(machine.update, gpa, size, regions[index].page_type)
                    except SevError as error:
                        done = accepted_bytes(error)
                        guest.updated_pages += done // PAGE
                        pieces[number] = (index, gpa + done, size - done)
                        error.metadata.setdefault("region", str(index))
                        error.metadata.setdefault("gpa", f"0x{gpa + done:x}")
                        raise
                    issued = number + 1
                    guest.updated_pages += -(-size // PAGE)
            finally:
                for _, gpa, size in pieces[issued:]:
                    taken.remove(gpa, gpa + size)
                if guest.updated_pages != before:
                    self._watchers.publish(guest.view())
            return guest.view()

    async def finish(self, guest: Hosted, finish: Finish, work: Work) -> Guest:
        """LAUNCH_FINISH. Once it was issued for an SNP guest a failure is final: KVM has measured the vCPUs, which
        happens once. An SEV or SEV-ES guest stays MEASURED."""
        async with guest.lock:
            work.check()
            machine = guest.ready_for(Step.FINISH)
            self._quiet.touch(guest.lane)
            try:
                digest = await work.do(machine.finish, finish)
                state = guest.after(Step.FINISH)
            except Withdrawn:
                raise
            except SevError as error:
                self._launch_failed(guest, error, work)
                raise
            self._quiet.end(guest.lane)
            guest.launch_digest = digest or guest.launch_digest
            self._become(guest, state, "guest.ready", "is launched", {"launch_digest": guest.launch_digest.hex()})
            return guest.view()

    async def measure(self, guest: Hosted, work: Work) -> Guest:
        """LAUNCH_UPDATE_VMSA and LAUNCH_MEASURE. Once issued a failure is final: what was measured is not known."""
        async with guest.lock:
            work.check()
            machine = guest.ready_for(Step.MEASURE)
            self._quiet.touch(guest.lane)
            try:
                measured = await work.do(machine.measure)
                state = guest.after(Step.MEASURE)
            except Withdrawn:
                raise
            except SevError as error:
                self._launch_failed(guest, error, work)
                raise
            # Its owner may take days to answer: platform commands do not wait for that.
            self._quiet.end(guest.lane)
            guest.measurement, guest.launch_digest = measured.measurement, measured.digest
            self._become(guest, state, "guest.measured", "was measured", {"launch_digest": measured.digest.hex()})
            return guest.view()

    async def inject(self, guest: Hosted, gpa: int, header: bytes, payload: bytes, work: Work) -> Guest:
        """LAUNCH_SECRET. A refusal changes nothing."""
        async with guest.lock:
            work.check()
            machine = guest.ready_for(Step.INJECT)
            await work.do(machine.secret, gpa, header, payload)
            guest.memory.taken.add(gpa, gpa + len(payload))
            where = {"gpa": f"0x{gpa:x}", "bytes": str(len(payload))}
            self._become(guest, guest.after(Step.INJECT), "guest.secret", "took a secret of its owner", where)
            return guest.view()

    def _launch_failed(self, guest: Hosted, error: SevError, work: Work) -> None:
        """What came of a step that is made once."""
        if work.issued and guest.state is GuestState.LAUNCHING:
            guest.failure = error.message
            self._quiet.end(guest.lane)
            self._become(guest, GuestState.FAILED, "guest.failed", f"failed to launch: {error.message}")

    async def delete(self, guest: Hosted) -> None:
        """Gives up everything that the guest holds, then forgets it."""
        async with guest.lock:
            if guest.state is GuestState.DELETED:
                raise guest.gone()
            await self._give_up(guest)
            if guest.state is GuestState.LOST and self._machines is not None:
                await aside(self._machines.forget, guest.owner, guest.guest_id)
            self._registry.remove(guest)
            self._ledger.give_back(guest.owner, guest.request)
            self._become(guest, GuestState.DELETED, "guest.deleted", "was deleted")

    async def lose(self, reason: str) -> None:
        """Every guest is LOST, and what it held is given back."""
        for guest in self._registry:
            self._declare_lost(guest, reason)
        for guest in self._registry:
            async with guest.lock:
                await self._give_up(guest, reason)

    async def lose_one(self, guest: Hosted, machine: GuestMachine, reason: str) -> None:
        """The machine of this guest ended by itself: the guest is LOST, and what it held is given back."""
        if guest.machine is not machine or guest.state is GuestState.DELETED:
            return
        self._declare_lost(guest, reason)
        async with guest.lock:
            if guest.machine is machine:
                await self._give_up(guest, reason)

    async def leave(self) -> None:
        """The daemon ends and the guests do not: gives up what the daemon holds of them."""
        for guest in self._registry:
            async with guest.lock:
                machine, guest.machine = guest.machine, None
                if machine is not None:
                    await asyncio.to_thread(machine.leave)

    def _declare_lost(self, guest: Hosted, reason: str) -> None:
        if guest.state not in (GuestState.LOST, GuestState.DELETED):
            guest.stopping = True
            guest.failure = reason
            self._become(guest, GuestState.LOST, "guest.lost", f"was lost: {reason}")

    def _take(self, guest: Hosted, machine: GuestMachine) -> None:
        """The guest has this machine from now on, and is LOST if that ends."""
        guest.machine = machine
        guest.asid = machine.asid
        self._registry.add(guest)

        def lost(reason: str) -> None:
            task = asyncio.ensure_future(self.lose_one(guest, machine, reason))
            self._losses.add(task)
            task.add_done_callback(self._losses.discard)

        if self._machines is not None:
            self._machines.watch(machine, lost)

    def _pieces(self, regions: tuple[Region, ...]) -> Iterator[tuple[int, int, int]]:
        """(index of the region, address, bytes) of every piece, in order."""
        for index, region in enumerate(regions):
            for offset in range(0, region.size, self._chunk):
                yield index, region.gpa + offset, min(self._chunk, region.size - offset)

    async def _give_up(self, guest: Hosted, lost: str = "") -> None:
        """Closes the machine; `lost`: why the guest was lost. A close that fails is logged."""
        self._quiet.end(guest.lane)
        machine, guest.machine, guest.asid = guest.machine, None, 0
        if machine is not None:
            try:
                try:
                    if self._machines is not None and self._machines.outlive:
                        # Its own process frees what it held: other guests' steps need not wait for that.
                        await aside(machine.close, lost)
                    else:
                        await self._scheduler.release(guest.lane, machine.close).done()
                except NotNow:  # the worker has ended: nothing of this guest runs any more
                    await aside(machine.close, lost)
            except Exception:
                log.exception("the machine of guest %s could not be closed", guest.lane)
        self._changed()

    def ran(self, guest: Hosted, state: GuestState, kind: str, what: str) -> None:
        """A state that its running brought (sevd.guests.running)."""
        self._become(guest, state, kind, what)

    def _become(
        self, guest: Hosted, state: GuestState, kind: str, what: str, details: Mapping[str, str] | None = None
    ) -> None:
        """A new state, told to watchers and as an event that only the owner and administrators see."""
        guest.state = state
        self._watchers.publish(guest.view())
        self._changed()
        self._events.publish(kind, f"guest {guest.guest_id} {what}", guest.guest_id, guest.owner, details)
