"""Every step of SEV and SEV-ES guests in every state."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest

from sev.errors import FirmwareError, WrongState
from sevd.guests import Guest, GuestState, GuestType, PageType, Region
from sevd.guests.states import LEGACY_AFTER, Step
from tests.support.hosting import ALICE, Hosting, hosting
from tests.support.sev_hosting import KINDS, POLICIES, created, launching, measured, ready
from tests.support.simulated import refuse

S = GuestState


async def take(it: Hosting, guest: Guest, step: Step) -> Any:
    """One step with arguments that are right, but for what the firmware refuses when it is asked: secrets, debugging."""
    sev, name = it.guests.sev, guest.guest_id
    match step:
        case Step.LOAD:
            return (await it.guests.load(ALICE, name)).write(0x100000, b"data")
        case Step.START:
            return await it.guests.start(ALICE, name, POLICIES[guest.type])
        case Step.UPDATE:
            return await it.guests.update(ALICE, name, [Region(0x200000, 64, PageType.NORMAL)])
        case Step.MEASURE:
            return await sev.measure(ALICE, name)
        case Step.INJECT:
            with contextlib.suppress(FirmwareError):
                await sev.inject(ALICE, name, 0x1000, bytes(52), bytes(16))
            return None
        case Step.FINISH:
            return await it.guests.finish(ALICE, name)
        case Step.REPORT:
            return await sev.report(ALICE, name, bytes(16))
        case Step.DEBUG:
            with contextlib.suppress(FirmwareError):
                await sev.read(ALICE, name, 0, 16)
            return None
        case Step.DELETE:
            return await it.guests.delete(ALICE, name)
        case _:
            raise AssertionError(f"nothing executes here: {step}")


async def brought_to(it: Hosting, kind: GuestType, state: GuestState) -> Guest:
    """A guest in this state, by the ways that exist."""
    match state:
        case S.CREATED:
            return await created(it, kind)
        case S.LAUNCHING:
            return await launching(it, kind)
        case S.MEASURED:
            return await measured(it, kind)
        case S.READY:
            return await ready(it, kind)
        case S.FAILED:
            guest = await launching(it, kind)
            refuse(it.simulator, "LAUNCH_MEASURE")
            with pytest.raises(FirmwareError):
                await it.guests.sev.measure(ALICE, guest.guest_id)
            it.simulator.faults = lambda command: None
            return it.guests.get(ALICE, guest.guest_id)
        case _:
            guest = await created(it, kind)
            await it.guests.lose("somebody pulled the plug")
            return it.guests.get(ALICE, guest.guest_id)


STATES = (S.CREATED, S.LAUNCHING, S.MEASURED, S.READY, S.FAILED, S.LOST)
ELSEWHERE = (
    Step.RUN, Step.PAUSE, Step.PLAY, Step.SEND, Step.SEND_PAGES, Step.CANCEL, Step.SENT, Step.RECEIVE,
    Step.RECEIVE_PAGES, Step.RECEIVED,
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("state", STATES)
async def test_every_step_in_every_state(tmp_path: Path, kind: GuestType, state: GuestState) -> None:
    async with hosting(tmp_path, product="rome") as it:
        for step in Step:
            if step in ELSEWHERE:
                continue
            guest = await brought_to(it, kind, state)
            assert guest.state is state
            allowed = LEGACY_AFTER[state]
            if step in allowed:
                await take(it, guest, step)
                if step is not Step.DELETE:
                    assert it.guests.get(ALICE, guest.guest_id).state is allowed[step]
            else:
                with pytest.raises(WrongState) as refused:
                    await take(it, guest, step)
                assert refused.value.metadata == {"state": state.name, "allowed": ",".join(allowed)}
            if step is not Step.DELETE or step not in allowed:
                await it.guests.delete(ALICE, guest.guest_id)


async def test_a_platform_that_fails_to_measure_fails_the_launch(tmp_path: Path) -> None:
    async with hosting(tmp_path, product="rome") as it:
        guest = await brought_to(it, GuestType.SEV_ES, S.FAILED)
        assert "HWERROR_UNSAFE" in guest.failure
        assert it.kinds()[-1] == "guest.failed"
