"""SEV and SEV-ES guests of a daemon over the simulated host, brought to a state."""

from __future__ import annotations

from sevd.guests import Guest, GuestType, PageType, Region
from tests.support.hosting import ALICE, FIRMWARE, FIRMWARE_GPA, Hosting, firmware

KINDS = (GuestType.SEV, GuestType.SEV_ES)
POLICIES = {GuestType.SEV: 0x1, GuestType.SEV_ES: 0x5}
WHOLE = (Region(FIRMWARE_GPA, FIRMWARE, PageType.NORMAL),)


async def created(it: Hosting, kind: GuestType, **changes: object) -> Guest:
    """A guest of ALICE, whose memory is empty."""
    return await it.created(ALICE, **{"type": kind, **changes})


async def launching(it: Hosting, kind: GuestType, policy: int | None = None) -> Guest:
    """The same with its firmware image, started; without a policy with that of its kind."""
    guest = await created(it, kind)
    loader = await it.guests.load(ALICE, guest.guest_id)
    loader.write(FIRMWARE_GPA, firmware())
    chosen = POLICIES[kind] if policy is None else policy
    return await it.guests.start(ALICE, guest.guest_id, chosen)


async def measured(it: Hosting, kind: GuestType, policy: int | None = None) -> Guest:
    """The same, measured."""
    guest = await launching(it, kind, policy)
    await it.guests.update(ALICE, guest.guest_id, WHOLE)
    return await it.guests.sev.measure(ALICE, guest.guest_id)


async def ready(it: Hosting, kind: GuestType, policy: int | None = None) -> Guest:
    """The same, finished."""
    guest = await measured(it, kind, policy)
    return await it.guests.finish(ALICE, guest.guest_id)
