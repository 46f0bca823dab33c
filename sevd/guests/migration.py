"""SEV guests that go to another host and come from one, step by step; the client carries what passes between the two.

Methods belong to the event loop, as those of `sevd.guests.service.Guests` do. A guest that is being sent belongs to
this host until `finish_sending`: whatever fails before that, `cancel_sending` gives it back whole, a restart of the
daemon in between included.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sev.errors import MalformedInput, NotPermitted, SevError, UsageError
from sev.launch.sev_migration import HEADER_SIZE, SESSION_SIZE, Departure
from sevd.devices.work import Steps, Work
from sevd.guests.model import PAGE, GuestState, GuestType
from sevd.guests.sev_launch import no_such_step
from sevd.guests.sev_steps import CERTIFICATE_BYTES, exactly
from sevd.guests.states import Step

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sevd.access.identity import Caller
    from sevd.devices.scheduler import Scheduler
    from sevd.guests.hosted import Hosted
    from sevd.guests.launcher import Launcher
    from sevd.guests.model import Guest
    from sevd.guests.registry import Registry
    from sevd.guests.sev_travel import Carried, Leaving

CHAIN_BYTES = 3 * CERTIFICATE_BYTES
AUTHORITIES_BYTES = 16 << 10
BATCH = 256
"""Pages of one call."""
SHARED_RUNS = 1 << 16
"""Ranges of memory that a guest can share with its host: a guest of 64 GiB that shares every other 512 KiB."""
STATE_BYTES = 16 << 10
"""Bytes of the state of one vCPU."""


class Migration:
    """Every one raises NotFound where the guest does not exist for the caller, NotPermitted where it is somebody
    else's, NotOffered for a guest of another type than SEV, and WrongState out of order."""

    def __init__(self, registry: Registry, scheduler: Scheduler, steps: Steps, launcher: Launcher) -> None:
        self._registry = registry
        self._scheduler = scheduler
        self._steps = steps
        self._launcher = launcher

    async def start_sending(
        self,
        caller: Caller,
        guest_id: str,
        pdh: bytes,
        chain: bytes,
        authorities: bytes,
        *,
        validate_only: bool = False,
    ) -> tuple[Hosted, Leaving | None]:
        """SEND_START: READY or PAUSED to SENDING. A refusal changes nothing."""
        guest = self._own(caller, guest_id, Step.SEND)
        exactly("pdh", pdh, CERTIFICATE_BYTES)
        exactly("chain", chain, CHAIN_BYTES)
        if not 0 < len(authorities) <= AUTHORITIES_BYTES:
            raise MalformedInput(f"authorities: {len(authorities)} bytes, expected ASK and ARK", field="authorities")
        if validate_only:
            return guest, None

        async def step() -> Leaving:
            async with guest.lock:
                travel = guest.ready_for(Step.SEND).travel
                leaving = await work.do(travel.start_sending, pdh, chain, authorities)
                self._launcher.ran(guest, GuestState.SENDING, "guest.sending", "begins to leave for another host")
                return leaving

        work = Work(self._scheduler, guest.lane)
        return guest, await self._steps.run(step(), work)

    async def send(
        self, caller: Caller, guest_id: str, position: int, *, validate_only: bool = False
    ) -> tuple[list[Carried], int]:
        """SEND_UPDATE_DATA: at most 256 pages from a position on, and where to go on (0: that was all)."""
        guest = self._own(caller, guest_id, Step.SEND_PAGES)
        if validate_only:
            return [], position
        work = Work(self._scheduler, guest.lane)
        async with guest.lock:
            return await work.do(guest.ready_for(Step.SEND_PAGES).travel.send, position, BATCH)

    async def cancel_sending(self, caller: Caller, guest_id: str, *, validate_only: bool = False) -> Guest:
        """SEND_CANCEL: SENDING to PAUSED."""
        guest = self._own(caller, guest_id, Step.CANCEL)
        if validate_only:
            return guest.view()

        async def step() -> None:
            async with guest.lock:
                await work.do(guest.ready_for(Step.CANCEL).travel.cancel)
                self._launcher.ran(guest, guest.after(Step.CANCEL), "guest.paused", "stays on this host")

        work = Work(self._scheduler, guest.lane)
        await self._steps.run(step(), work)
        return guest.view()

    async def finish_sending(self, caller: Caller, guest_id: str, *, validate_only: bool = False) -> None:
        """SEND_FINISH, and the guest is deleted: it is at the other host now."""
        guest = self._own(caller, guest_id, Step.SENT)
        if validate_only:
            return

        async def step() -> None:
            async with guest.lock:
                await work.do(guest.ready_for(Step.SENT).travel.finish_sending)
                guest.stopping = True
            await self._launcher.delete(guest)

        work = Work(self._scheduler, guest.lane)
        await self._steps.run(step(), None)

    async def start_receiving(
        self, caller: Caller, guest_id: str, policy: int, pdh: bytes, session: bytes, *, validate_only: bool = False
    ) -> Guest:
        """RECEIVE_START: CREATED to RECEIVING. A refusal changes nothing."""
        guest = self._own(caller, guest_id, Step.RECEIVE)
        exactly("pdh", pdh, CERTIFICATE_BYTES)
        exactly("session", session, SESSION_SIZE)
        if not 0 <= policy < 1 << 32:
            raise UsageError(f"policy: 0x{policy:x} does not fit in 32 bits", field="policy")
        if validate_only:
            return guest.view()

        async def step() -> None:
            async with guest.lock:
                travel = guest.ready_for(Step.RECEIVE).travel
                await work.do(travel.start_receiving, Departure(policy, session), pdh)
                guest.policy = policy
                self._launcher.ran(guest, GuestState.RECEIVING, "guest.receiving", "comes from another host")

        work = Work(self._scheduler, guest.lane)
        await self._steps.run(step(), work)
        return guest.view()

    async def receive(
        self, caller: Caller, guest_id: str, pages: Sequence[Carried], *, validate_only: bool = False
    ) -> None:
        """RECEIVE_UPDATE_DATA. What was changed on the way is refused (BAD_MEASUREMENT)."""
        guest = self._own(caller, guest_id, Step.RECEIVE_PAGES)
        if len(pages) > BATCH:
            raise UsageError(f"pages: {len(pages)}, expected at most {BATCH}", field="pages")
        for index, one in enumerate(pages):
            if one.gpa % PAGE or len(one.data) != PAGE or len(one.header) not in (0, HEADER_SIZE):
                raise UsageError(
                    f"pages[{index}]: at 0x{one.gpa:x}, {len(one.header)} and {len(one.data)} bytes: expected a page, "
                    f"and {HEADER_SIZE} or none and {PAGE} bytes",
                    field=f"pages[{index}]",
                )
            guest.memory.check_bounds(one.gpa, PAGE, f"pages[{index}].gpa")
        if validate_only:
            return
        work = Work(self._scheduler, guest.lane)
        async with guest.lock:
            await work.do(guest.ready_for(Step.RECEIVE_PAGES).travel.receive, pages)

    async def finish_receiving(
        self,
        caller: Caller,
        guest_id: str,
        vcpus: Sequence[bytes],
        shared: Sequence[tuple[int, int]],
        *,
        validate_only: bool = False,
    ) -> Guest:
        """RECEIVE_FINISH: RECEIVING to READY. A refusal is final: FAILED."""
        guest = self._own(caller, guest_id, Step.RECEIVED)
        if len(shared) > SHARED_RUNS:
            raise UsageError(f"shared: {len(shared)} ranges, expected at most {SHARED_RUNS}", field="shared")
        for index, (gpa, size) in enumerate(shared):
            if gpa % PAGE or size % PAGE or not size:
                raise UsageError(f"shared[{index}]: 0x{gpa:x} and {size} bytes, expected whole pages", field="shared")
            guest.memory.check_bounds(gpa, size, f"shared[{index}]")
        if len(vcpus) != guest.request.vcpu_count or any(len(one) > STATE_BYTES for one in vcpus):
            raise UsageError(f"vcpus: {len(vcpus)} states for {guest.request.vcpu_count} vCPUs", field="vcpus")
        if validate_only:
            return guest.view()

        async def step() -> None:
            async with guest.lock:
                try:
                    await work.do(guest.ready_for(Step.RECEIVED).travel.finish_receiving, vcpus, shared)
                except SevError as error:
                    if work.issued and guest.state is GuestState.RECEIVING:
                        guest.failure = error.message
                        self._launcher.ran(guest, GuestState.FAILED, "guest.failed", f"did not come: {error.message}")
                    raise
                self._launcher.ran(guest, GuestState.READY, "guest.ready", "has come from another host")

        work = Work(self._scheduler, guest.lane)
        await self._steps.run(step(), work)
        return guest.view()

    def _own(self, caller: Caller, guest_id: str, step: Step) -> Hosted:
        guest = self._registry.find(caller, guest_id)
        if guest.owner != caller.owner:
            raise NotPermitted(f"the guest {guest.guest_id} is its owner's alone to move", field="guest_id")
        if guest.request.type != GuestType.SEV:
            no_such_step(guest.request.type, step)
        guest.ready_for(step)
        return guest
