"""The flow of a hosted launch, without a daemon: order of calls, cleaning up, what is refused before anything is made."""

from __future__ import annotations

from typing import Any

import pytest

from sev import errors, hosted
from sev.measurement.plan import LaunchPlan, Region, snp_plan
from sev.measurement.sample import sample_firmware
from sev.v1 import guest_pb2

ANSWERS: dict[str, Any] = {
    "GuestService/CreateGuest": guest_pb2.CreateGuestResponse(),
    "GuestService/LoadGuestMemory": guest_pb2.LoadGuestMemoryResponse(),
    "GuestService/StartGuestLaunch": guest_pb2.StartGuestLaunchResponse(),
    "GuestService/UpdateGuestLaunch": guest_pb2.UpdateGuestLaunchResponse(),
    "GuestService/FinishGuestLaunch": guest_pb2.FinishGuestLaunchResponse(
        guest=guest_pb2.Guest(launch_digest=bytes(48), state=guest_pb2.GUEST_STATE_READY)
    ),
    "GuestService/DeleteGuest": guest_pb2.DeleteGuestResponse(),
}

HAPPY = ["CreateGuest", "LoadGuestMemory", "StartGuestLaunch", "UpdateGuestLaunch", "FinishGuestLaunch"]


@pytest.fixture(scope="module")
def firmware() -> bytes:
    return sample_firmware()


def play(operation: Any, fail: str = "", error: BaseException | None = None, also: str = "") -> tuple[list[Any], Any]:
    """Runs an operation with ready answers; the call named `fail` fails with `error`. Answers the calls, the result."""
    calls: list[Any] = []
    step, given = operation.send, None
    while True:
        try:
            call = step(given)
        except StopIteration as end:
            return calls, end.value
        except BaseException as raised:
            return calls, raised
        calls.append(call)
        if callable(call.request):
            list(call.request())
        name = call.method.partition("/")[2]
        if name in (fail, also) and error is not None:
            step, given = operation.throw, error
        else:
            step, given = operation.send, ANSWERS[call.method]


def names(calls: list[Any]) -> list[str]:
    return [call.method.partition("/")[2] for call in calls]


def test_the_steps_in_order(firmware: bytes) -> None:
    seen: list[tuple[str, int, int]] = []
    calls, launched = play(
        hosted.launch_snp(firmware, 2, progress=lambda *step: seen.append(step), host_data=bytes(32))
    )
    assert names(calls) == HAPPY
    create, _, start, update, finish = (call.request for call in calls)
    plan = snp_plan(firmware, 2, vcpu_type="EPYC-v4")
    assert create.vcpu_count == 2
    assert create.cpuid_signature == 0x00800F12
    assert create.ap_reset_address == plan.ap_reset_address != 0
    assert create.firmware_bytes == len(firmware)
    assert create.memory_bytes == hosted.DEFAULT_MEMORY
    assert start.policy == 0x30000
    assert [(r.gpa, r.size_bytes, r.page_type) for r in update.regions] == [
        (r.gpa, r.size, r.page_type) for r in plan.regions
    ]
    assert finish.host_data == bytes(32)
    assert len({call.request_id for call in calls if call.request_id}) == 4
    assert launched.expected_digest == plan.digest()
    assert not launched.as_expected
    steps = [step for step, _, _ in seen]
    assert sorted(set(steps), key=steps.index) == ["create", "load", "measure", "finish"]
    assert all(0 <= done <= total for _, done, total in seen)


def test_one_vcpu_needs_no_reset_address(firmware: bytes) -> None:
    calls, _ = play(hosted.launch_snp(firmware, 1))
    assert calls[0].request.ap_reset_address == 0


@pytest.mark.parametrize("step", HAPPY)
@pytest.mark.parametrize("error", [errors.FirmwareError(7), KeyboardInterrupt(), errors.Unreachable("gone")])
def test_a_launch_that_fails_deletes_its_guest(firmware: bytes, step: str, error: BaseException) -> None:
    calls, raised = play(hosted.launch_snp(firmware, 1), fail=step, error=error)
    assert raised is error
    assert names(calls) == [*HAPPY[: HAPPY.index(step) + 1], "DeleteGuest"]
    assert calls[-1].request.guest_id == calls[0].request.guest_id
    assert calls[-1].request.confirm


@pytest.mark.parametrize(
    "kind", [errors.LimitReached, errors.NotPermitted, errors.NotOffered, errors.DeviceMissing, errors.UsageError]
)
def test_a_creation_that_was_refused_has_nothing_to_delete(firmware: bytes, kind: type[errors.SevError]) -> None:
    calls, raised = play(hosted.launch_snp(firmware, 1), fail="CreateGuest", error=kind("no"))
    assert isinstance(raised, kind)
    assert names(calls) == ["CreateGuest"]


def test_a_guest_that_cannot_be_deleted_is_named(firmware: bytes) -> None:
    failure = errors.FirmwareError(7)
    before = failure.remedy
    calls, raised = play(hosted.launch_snp(firmware, 1), fail="StartGuestLaunch", error=failure, also="DeleteGuest")
    assert raised is failure
    assert failure.remedy.startswith(before)
    assert calls[0].request.guest_id in failure.remedy


def test_a_guest_that_never_came_to_be_is_not_named(firmware: bytes) -> None:
    failure = errors.NotFound("none")
    _, raised = play(hosted.launch_snp(firmware, 1), fail="CreateGuest", error=failure, also="DeleteGuest")
    assert raised is failure
    assert failure.remedy == ""


def test_progress_that_fails_ends_the_launch(firmware: bytes) -> None:
    def broken(step: str, done: int, total: int) -> None:
        if step == "load":
            raise ValueError("mine")

    calls, raised = play(hosted.launch_snp(firmware, 1, progress=broken))
    assert isinstance(raised, ValueError)
    assert names(calls)[-1] == "DeleteGuest"


def test_closing_an_unfinished_launch_makes_no_call(firmware: bytes) -> None:
    operation = hosted.launch_snp(firmware, 1)
    next(operation)
    operation.close()


def test_updates_are_cut_but_stay_in_order() -> None:
    base = (1 << 32) - 4096
    big = 2 * hosted.UPDATE_BYTES + 4096
    plan = LaunchPlan(
        [Region(base, 4096, 1, bytes(4096), "firmware"), Region(0x1000, big, 3, None, "memory")],
        [bytes(4096)],
        ap_reset_address=0,
        firmware_gpa=base,
        has_metadata=True,
    )
    calls, _ = play(hosted.launch_plan(plan, cpuid_signature=1))
    batches = [call.request.regions for call in calls if call.method.endswith("UpdateGuestLaunch")]
    assert all(sum(r.size_bytes for r in batch) <= hosted.UPDATE_BYTES for batch in batches)
    pages = [(r.gpa + at, r.page_type) for batch in batches for r in batch for at in range(0, r.size_bytes, 4096)]
    assert pages == [(base, 1)] + [(0x1000 + at, 3) for at in range(0, big, 4096)]


def test_memory_is_as_large_as_the_metadata_needs() -> None:
    base, high = (1 << 32) - 4096, 0x1000_0000
    regions = [Region(base, 4096, 1, bytes(4096), "firmware"), Region(high, 4096, 5, None, "secrets")]
    plan = LaunchPlan(regions, [bytes(4096)], ap_reset_address=0, firmware_gpa=base, has_metadata=True)
    calls, _ = play(hosted.launch_plan(plan, cpuid_signature=1))
    assert calls[0].request.memory_bytes == high + 4096
    with pytest.raises(errors.UsageError, match="needs"):
        hosted.launch_plan(plan, cpuid_signature=1, memory_bytes=1 << 20)


@pytest.mark.parametrize("size", [0, 1, 4095, 4097])
def test_memory_is_whole_pages(firmware: bytes, size: int) -> None:
    with pytest.raises(errors.UsageError) as caught:
        hosted.launch_snp(firmware, 1, memory_bytes=size)
    assert caught.value.field == "memory_bytes"


def test_an_image_without_metadata_is_refused() -> None:
    with pytest.raises(errors.MalformedInput, match="no SEV metadata"):
        hosted.launch_snp(bytes(65536), 1)


@pytest.mark.parametrize(
    ("options", "cls", "field"),
    [
        ({"id_block": bytes(96)}, errors.UsageError, "id_auth"),
        ({"id_auth": bytes(4096)}, errors.UsageError, "id_block"),
        ({"id_block": bytes(95), "id_auth": bytes(4096)}, errors.MalformedInput, "id_block"),
        ({"id_block": bytes(96), "id_auth": bytes(4095)}, errors.MalformedInput, "id_auth"),
        ({"host_data": bytes(31)}, errors.UsageError, "host_data"),
        ({"guest_features": 0}, errors.UsageError, "guest_features"),
        ({"vcpu_type": "EPYC-v4", "vcpu_signature": 1}, errors.UsageError, "vcpu_signature"),
        ({"vcpu_type": "Pentium"}, errors.UsageError, "vcpu_type"),
    ],
)
def test_options_that_do_not_fit(
    firmware: bytes, options: dict[str, Any], cls: type[errors.SevError], field: str
) -> None:
    with pytest.raises(cls) as caught:
        hosted.launch_snp(firmware, 1, **options)
    assert type(caught.value) is cls
    assert caught.value.field == field


def test_author_key_is_seen_in_the_page() -> None:
    assert not hosted.check_id_block(b"", b"")
    assert not hosted.check_id_block(bytes(96), bytes(4096))
    assert not hosted.check_id_block(bytes(96), b"\1\0\0\0" * 2 + bytes(4088))
    assert hosted.check_id_block(bytes(96), bytes(0x880) + b"\1" + bytes(0x77F))


def test_guest_ids_are_of_the_form_and_differ() -> None:
    import re

    ids = {hosted.new_guest_id() for _ in range(20)}
    assert len(ids) == 20
    assert all(re.fullmatch(r"[a-z0-9-]{8,36}", one) for one in ids)
