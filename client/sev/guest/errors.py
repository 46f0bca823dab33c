"""What goes wrong between a guest and its firmware, beside the firmware's own refusals (sev.errors.FirmwareError)."""

from __future__ import annotations

from sev.errors import MalformedInput, NotNow, RefusedError

RELOAD = (
    "Reload the driver with another key, one above the key in use: modprobe -r sev-guest, then modprobe sev-guest "
    "vmpck_id=N with N up to 3 (reports then show VMPL N or more); or restart the guest."
)
"""The only ways on once a VMPCK was wiped."""

WIPES = "The kernel has wiped the key of this channel after the failure, as it does after almost any."


class ChannelDisabled(RefusedError):
    """The kernel takes no guest requests any more: the VMPCK was wiped, its sequence numbers are used up, or this is
    not the device.

    The kernel wipes the key whenever a request that was sent did not come back as it should: what a sequence number
    was used for is then not known, and AES-GCM must never use one twice.
    """

    reason = "VMPCK_DISABLED"
    default_remedy = RELOAD


class Throttled(NotNow):
    """The host answers no guest request for now: it limits how many a guest may make."""

    reason = "GUEST_THROTTLED"
    default_remedy = "Try again later and less often; a report for each connection is more than hosts give."


class HostRefused(RefusedError):
    """The hypervisor, not the firmware, refused a guest request; `metadata` has `vmm_error`."""

    reason = "GUEST_HOST_ERROR"
    default_remedy = f"Ask whoever runs the host. {WIPES} {RELOAD}"


class AnswerMismatch(MalformedInput):
    """The answer does not belong to the question: another length, report data or VMPL than was asked for.

    A paravisor that answers with reports made at the start of the guest does this; so would somebody who replays one.
    """

    reason = "ANSWER_MISMATCH"
    default_remedy = "Do not use this report: it is no answer to your question."
