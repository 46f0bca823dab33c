"""One hosted guest inside the daemon: what it is, how far its launch is, and its machine."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from sev.errors import NotFound
from sevd.guests.memory import MemoryMap
from sevd.guests.model import LEGACY, CreateGuest, Guest, GuestState, GuestType
from sevd.guests.port import Card
from sevd.guests.states import Step, after

if TYPE_CHECKING:
    from sevd.guests.port import GuestMachine


class Hosted:
    """A guest. Everything but `machine` belongs to the event loop.

    Attributes:
        request: What was asked for.
        guest_id: Its id.
        owner: Who created it.
        state: State.
        machine: Its VM; None once it was given up.
        memory: Bounds of its memory and the pages that are part of the launch.
        lock: Held by the step that is under way: steps of one guest follow each other.
        stopping: It is to be deleted or given up; a step under way ends at the next piece.
        sequence: Its place in the order of creation.
    """

    def __init__(
        self,
        request: CreateGuest,
        guest_id: str,
        owner: str,
        *,
        simulated: bool,
        create_time: datetime | None = None,
    ) -> None:
        self.request = request
        self.guest_id = guest_id
        self.owner = owner
        self.simulated = simulated
        self.create_time = create_time or datetime.now(UTC)
        self.state = GuestState.CREATED
        self.policy = 0
        self.launch_digest = b""
        self.measurement = b""
        self.asid = 0
        self.failure = ""
        self.updated_pages = 0
        self.machine: GuestMachine | None = None
        self.memory = MemoryMap(request.memory_bytes, request.firmware_bytes, legacy=request.type in LEGACY)
        self.lock = asyncio.Lock()
        self.stopping = False
        self.sequence = 0

    @property
    def lane(self) -> str:
        """The scheduler's lane of this guest."""
        return f"{self.owner}/{self.guest_id}"

    def view(self) -> Guest:
        """The guest as it is now."""
        return Guest(
            guest_id=self.guest_id,
            type=self.request.type,
            state=self.state,
            owner=self.owner,
            vcpu_count=self.request.vcpu_count,
            memory_bytes=self.request.memory_bytes,
            create_time=self.create_time,
            policy=self.policy,
            launch_digest=self.launch_digest,
            asid=self.asid,
            failure=self.failure,
            simulated=self.simulated,
            label=self.request.label,
            updated_pages=self.updated_pages,
            protected=self.protected,
            measurement=self.measurement,
        )

    @property
    def protected(self) -> bool:
        """Whether its technology protects it from its host: not where there is none, nor where it is a model."""
        return self.request.type != GuestType.PLAIN and not self.simulated

    def card(self) -> Card:
        """What its machine keeps for a daemon that starts again."""
        return Card(self.guest_id, self.owner, self.create_time, self.simulated, self.request)

    def ready_for(self, step: Step) -> GuestMachine:
        """The machine, for a step that is possible now.

        Raises:
            NotFound: The guest is being deleted.
            WrongState: The step is out of order.
        """
        if self.stopping and self.state is not GuestState.LOST:
            raise self.gone()
        self.after(step)
        if self.machine is None:
            raise self.gone()
        return self.machine

    def after(self, step: Step) -> GuestState:
        """The state after a step. Raises WrongState: it is out of order."""
        return after(self.state, step, self.request.type)

    def gone(self) -> NotFound:
        """The answer to whoever comes while, or after, the guest is deleted."""
        return NotFound(f"the guest {self.guest_id!r} was deleted", field="guest_id")

    def writable(self, gpa: int, size: int) -> memoryview:
        """The bytes of an address range, for a write. Raises as `ready_for`."""
        return self.ready_for(Step.LOAD).memory(gpa, size)
