"""What SEV and SEV-ES guests have and others do not: a measurement, secrets of their owner, reports of the platform,
debugging.

Methods belong to the event loop, as those of `sevd.guests.service.Guests` do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sev.errors import MalformedInput, NotPermitted, UsageError
from sevd.devices.work import Steps, Work
from sevd.guests.memory import BLOCK
from sevd.guests.model import LEGACY
from sevd.guests.sev_launch import no_such_step
from sevd.guests.states import Step

if TYPE_CHECKING:
    from sevd.access.identity import Caller
    from sevd.devices.scheduler import Scheduler
    from sevd.guests.hosted import Hosted
    from sevd.guests.launcher import Launcher
    from sevd.guests.model import Guest
    from sevd.guests.registry import Registry

CERTIFICATE_BYTES = 2084
"""Bytes of an owner's certificate."""
SESSION_BYTES = 128
"""Bytes of a launch blob."""
HEADER_BYTES = 52
"""Bytes of a secret's header."""
SECRET_BYTES = 16 << 10
"""Bytes of the largest secret that the kernel takes."""
MNONCE_BYTES = 16
DEBUG_BYTES = 1 << 20
"""Bytes of one read or write of guest memory."""
POLICY_ES = 0x4
"""The bit of a guest policy that says SEV-ES."""


class SevSteps:
    """Steps of SEV and SEV-ES guests. Every one raises NotFound where the guest does not exist for the caller, and
    NotOffered for a guest of another type."""

    def __init__(self, registry: Registry, scheduler: Scheduler, steps: Steps, launcher: Launcher) -> None:
        self._registry = registry
        self._scheduler = scheduler
        self._steps = steps
        self._launcher = launcher

    async def measure(self, caller: Caller, guest_id: str, *, validate_only: bool = False) -> Guest:
        """LAUNCH_MEASURE: LAUNCHING to MEASURED, with measurement and launch digest. A refusal is final: FAILED.

        Raises:
            WrongState, FirmwareError, KernelError: Refused.
        """
        guest = self._find(caller, guest_id, Step.MEASURE)
        guest.ready_for(Step.MEASURE)
        if validate_only:
            return guest.view()
        work = Work(self._scheduler, guest.lane)
        return await self._steps.run(self._launcher.measure(guest, work), work)

    async def inject(
        self, caller: Caller, guest_id: str, gpa: int, header: bytes, payload: bytes, *, validate_only: bool = False
    ) -> Guest:
        """LAUNCH_SECRET: what the owner packed goes into guest memory. A refusal changes nothing.

        Raises:
            MalformedInput: A header that is not 52 bytes, or a payload that is no multiple of 16 up to 16 KiB.
            UsageError: Not within the guest's memory, or not at a multiple of 16.
            WrongState, FirmwareError, KernelError: Refused; BAD_MEASUREMENT: packed for another launch.
        """
        guest = self._find(caller, guest_id, Step.INJECT)
        exactly("header", header, HEADER_BYTES)
        if not 0 < len(payload) <= SECRET_BYTES or len(payload) % BLOCK:
            raise MalformedInput(
                f"payload: {len(payload)} bytes, expected a multiple of {BLOCK} up to {SECRET_BYTES}", field="payload"
            )
        if gpa % BLOCK:
            raise UsageError(f"gpa: 0x{gpa:x} is not a multiple of {BLOCK}", field="gpa")
        guest.memory.check_bounds(gpa, len(payload), "gpa")
        guest.ready_for(Step.INJECT)
        if validate_only:
            return guest.view()
        work = Work(self._scheduler, guest.lane)
        return await self._steps.run(self._launcher.inject(guest, gpa, header, payload, work), work)

    async def report(self, caller: Caller, guest_id: str, mnonce: bytes) -> bytes:
        """GET_ATTESTATION_REPORT over a nonce of 16 bytes: 208 bytes.

        Raises:
            MalformedInput: A nonce of another length.
            WrongState, FirmwareError, KernelError: Refused.
        """
        guest = self._find(caller, guest_id, Step.REPORT)
        exactly("mnonce", mnonce, MNONCE_BYTES)
        machine = guest.ready_for(Step.REPORT)
        return await Work(self._scheduler, guest.lane).do(machine.attestation, mnonce)

    async def read(self, caller: Caller, guest_id: str, gpa: int, size: int, *, validate_only: bool = False) -> bytes:
        """DBG_DECRYPT: memory in plain, at most 1 MiB, for the owner alone.

        Raises:
            NotPermitted: It is somebody else's.
            UsageError: Not within the guest's memory, nothing, or too much.
            WrongState, FirmwareError, KernelError: Refused; POLICY_FAILURE: the guest may not be debugged.
        """
        guest = self._debuggable(caller, guest_id, gpa, size, "size_bytes")
        machine = guest.ready_for(Step.DEBUG)
        if validate_only:
            return b""
        return await Work(self._scheduler, guest.lane).do(machine.debug_read, gpa, size)

    async def write(self, caller: Caller, guest_id: str, gpa: int, data: bytes, *, validate_only: bool = False) -> None:
        """DBG_ENCRYPT: replaces memory, at most 1 MiB, for the owner alone. Raises as `read`."""
        guest = self._debuggable(caller, guest_id, gpa, len(data), "data")
        machine = guest.ready_for(Step.DEBUG)
        if not validate_only:
            work = Work(self._scheduler, guest.lane)
            await self._steps.run(work.do(machine.debug_write, gpa, data), work)

    def _find(self, caller: Caller, guest_id: str, step: str) -> Hosted:
        guest = self._registry.find(caller, guest_id)
        if guest.request.type not in LEGACY:
            no_such_step(guest.request.type, step)
        return guest

    def _debuggable(self, caller: Caller, guest_id: str, gpa: int, size: int, field: str) -> Hosted:
        guest = self._find(caller, guest_id, Step.DEBUG)
        if guest.owner != caller.owner:
            raise NotPermitted(f"the memory of guest {guest.guest_id} is its owner's alone", field="guest_id")
        if not 0 < size <= DEBUG_BYTES:
            raise UsageError(f"{field}: {size} bytes, expected 1 to {DEBUG_BYTES}", field=field)
        guest.memory.check_bounds(gpa, size, "gpa")
        return guest


def check_start(guest: Hosted, policy: int, gosvw: bytes, certificate: bytes, session: bytes) -> None:
    """Raises unless LAUNCH_START can be meant so for a guest of this type.

    Raises:
        MalformedInput: Bytes of another length.
        UsageError: Something that only guests of another type have, one of certificate and session, or a policy that
            does not fit the type.
    """
    if guest.request.type not in LEGACY:
        for field, given in (("owner_certificate", certificate), ("session", session)):
            if given:
                raise UsageError(f"{field}: only SEV and SEV-ES guests have an owner's session", field=field)
        return
    if any(gosvw):
        raise UsageError("gosvw: only SNP guests have OS visible workarounds", field="gosvw")
    if bool(certificate) != bool(session):
        lacking = "session" if certificate else "owner_certificate"
        raise UsageError(f"{lacking}: the owner's certificate and the launch blob go together", field=lacking)
    if certificate:
        exactly("owner_certificate", certificate, CERTIFICATE_BYTES)
        exactly("session", session, SESSION_BYTES)
    if policy >= 1 << 32:
        raise UsageError(f"policy: 0x{policy:x} does not fit in 32 bits", field="policy")
    name = guest.request.type.name.replace("_", "-")
    if bool(policy & POLICY_ES) != (name == "SEV-ES"):
        state = "needs" if name == "SEV-ES" else "cannot have"
        raise UsageError(f"policy: 0x{policy:x}: an {name} guest {state} bit 2 (es)", field="policy")


def exactly(field: str, data: bytes, size: int) -> None:
    """Raises MalformedInput unless there are exactly so many bytes."""
    if len(data) != size:
        raise MalformedInput(f"{field}: {len(data)} bytes, expected {size}", field=field)
