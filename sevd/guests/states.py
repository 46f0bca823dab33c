"""The launch state machine of a hosted guest: the one place that says which step is possible in which state.

    (create) ── CREATED ── start_launch ──> LAUNCHING ── finish_launch ──> READY
                load_memory                 load_memory
                                            update_launch

An SEV or SEV-ES guest is measured before its owner lets it go on:

    LAUNCHING ── measure_guest ──> MEASURED ── finish_launch ──> READY
    load_memory                    inject_secret
    update_launch

and an SEV guest can go to another host:

    READY, PAUSED ── start_sending ──> SENDING ── finish_sending ──> DELETED
                                       send_pages ── cancel_sending ──> PAUSED
    CREATED ── start_receiving ──> RECEIVING ── finish_receiving ──> READY
                                   receive_pages

    READY ── run ──> RUNNING ── pause ──> PAUSED ── run ──> RUNNING
                     RUNNING ── shutdown, triple fault, a state that cannot be run ──> STOPPED

    any of these ── the launch failed for good ──> FAILED          (a failed finish_launch, the daemon's own failure)
    any of these ── the platform lost it ──> LOST                  (power loss, the daemon's end)
    any of all   ── delete_guest ──> DELETED

A start_launch that the firmware or the kernel refuses leaves the guest CREATED: it may be started again with another
policy. An update_launch that is refused leaves it LAUNCHING, with the pages that were accepted before.
"""

from __future__ import annotations

from enum import StrEnum

from sev.errors import WrongState
from sevd.guests.model import LEGACY, GuestState, GuestType

S = GuestState


class Step(StrEnum):
    """What a caller may do with a guest, spelt as the client's methods are."""

    LOAD = "load_memory"
    START = "start_launch"
    UPDATE = "update_launch"
    FINISH = "finish_launch"
    MEASURE = "measure_guest"
    INJECT = "inject_secret"
    PLAY = "guest_report"
    """Reports and keys of a launched guest; on simulated hosts only."""
    REPORT = "attestation_report"
    """Reports that the platform makes of SEV and SEV-ES guests."""
    DEBUG = "read_guest_memory"
    """Reading and writing memory by way of the firmware."""
    SEND = "start_sending"
    SEND_PAGES = "send_pages"
    CANCEL = "cancel_sending"
    SENT = "finish_sending"
    RECEIVE = "start_receiving"
    RECEIVE_PAGES = "receive_pages"
    RECEIVED = "finish_receiving"
    RUN = "run_guest"
    PAUSE = "pause_guest"
    DELETE = "delete_guest"


AFTER: dict[GuestState, dict[Step, GuestState]] = {
    S.CREATED: {Step.LOAD: S.CREATED, Step.START: S.LAUNCHING, Step.DELETE: S.DELETED},
    S.LAUNCHING: {
        Step.LOAD: S.LAUNCHING,
        Step.UPDATE: S.LAUNCHING,
        Step.FINISH: S.READY,
        Step.DELETE: S.DELETED,
    },
    S.READY: {Step.PLAY: S.READY, Step.RUN: S.RUNNING, Step.DELETE: S.DELETED},
    S.RUNNING: {Step.PLAY: S.RUNNING, Step.PAUSE: S.PAUSED, Step.DELETE: S.DELETED},
    S.PAUSED: {Step.PLAY: S.PAUSED, Step.RUN: S.RUNNING, Step.DELETE: S.DELETED},
    S.STOPPED: {Step.DELETE: S.DELETED},
    S.FAILED: {Step.DELETE: S.DELETED},
    S.LOST: {Step.DELETE: S.DELETED},
    S.DELETED: {},
}
"""The state after each step that is possible in a state."""


def _legacy() -> dict[GuestState, dict[Step, GuestState]]:
    """The same for SEV and SEV-ES guests."""
    out: dict[GuestState, dict[Step, GuestState]] = {}
    for state, steps in AFTER.items():
        out[state] = {step: then for step, then in steps.items() if step not in (Step.FINISH, Step.PLAY)}
    out[S.LAUNCHING] = {Step.LOAD: S.LAUNCHING, Step.UPDATE: S.LAUNCHING, Step.MEASURE: S.MEASURED}
    out[S.MEASURED] = {Step.INJECT: S.MEASURED, Step.FINISH: S.READY}
    for state in (S.MEASURED, S.READY, S.RUNNING, S.PAUSED, S.STOPPED):
        out[state][Step.REPORT] = state
    for state in (S.LAUNCHING, S.MEASURED, S.READY, S.RUNNING, S.PAUSED, S.STOPPED):
        out[state][Step.DEBUG] = state
        out[state][Step.DELETE] = S.DELETED
    for state in (S.READY, S.PAUSED):
        out[state][Step.SEND] = S.SENDING
    out[S.CREATED][Step.RECEIVE] = S.RECEIVING
    out[S.SENDING] = {
        Step.SEND_PAGES: S.SENDING,
        Step.CANCEL: S.PAUSED,
        Step.SENT: S.DELETED,
        Step.DELETE: S.DELETED,
    }
    out[S.RECEIVING] = {Step.RECEIVE_PAGES: S.RECEIVING, Step.RECEIVED: S.READY, Step.DELETE: S.DELETED}
    return out


LEGACY_AFTER = _legacy()
"""The state after each step of an SEV or SEV-ES guest."""

ENDED = frozenset({S.FAILED, S.LOST, S.DELETED})
"""States that only a deletion leaves, if anything does."""


def after(state: GuestState, step: Step, kind: GuestType = GuestType.SNP) -> GuestState:
    """The state after a step of a guest of this type.

    Raises:
        WrongState: The step is out of order; metadata `state` and `allowed` (steps, comma-separated).
    """
    legacy = kind in LEGACY
    steps = (LEGACY_AFTER if legacy else AFTER).get(state, {})
    if step in steps:
        return steps[step]
    allowed = ", ".join(steps) or "nothing"
    raise WrongState(
        f"{step} is not possible while the guest is {state.name}; possible now: {allowed}",
        remedy=_REMEDIES.get(state, _LEGACY_ORDER if legacy else _ORDER),
        command=step,
        metadata={"state": state.name, "allowed": ",".join(steps)},
    )


_ORDER = "Take the steps in order: start_launch, update_launch, finish_launch."
_LEGACY_ORDER = "Take the steps in order: start_launch, update_launch, measure_guest, finish_launch."
_REMEDIES = {
    S.READY: "The guest is launched and measured: that cannot be repeated. Create another one.",
    S.STOPPED: "The guest ended: delete it and create another one.",
    S.FAILED: "The launch failed for good: delete the guest and create another one.",
    S.LOST: "The platform lost the guest: delete it and create another one.",
}
