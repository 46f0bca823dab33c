"""The flow of a hosted SEV or SEV-ES launch, without a daemon: order of calls, cleaning up, what is refused before."""

from __future__ import annotations

from typing import Any

import pytest

from sev import errors, hosted, hosted_sev
from sev.measurement.legacy import sev_es_plan, sev_plan
from sev.measurement.sample import HASHES_ADDRESS, RESET_ADDRESS, sample_firmware
from sev.session import LaunchStart
from sev.v1 import guest_pb2
from tests.unit.client.test_hosted import ANSWERS as OTHERS
from tests.unit.client.test_hosted import names

MEASURED = guest_pb2.Guest(
    launch_digest=bytes(32),
    measurement=b"m" * 48,
    state=guest_pb2.GUEST_STATE_MEASURED,
    type=guest_pb2.GUEST_TYPE_SEV_ES,
)
READY = guest_pb2.Guest(launch_digest=bytes(32), measurement=b"m" * 48, state=guest_pb2.GUEST_STATE_READY)
ANSWERS: dict[str, Any] = {
    **OTHERS,
    "GuestService/MeasureGuest": guest_pb2.MeasureGuestResponse(guest=MEASURED),
    "GuestService/FinishGuestLaunch": guest_pb2.FinishGuestLaunchResponse(guest=READY),
}
HELD = ["CreateGuest", "LoadGuestMemory", "StartGuestLaunch", "UpdateGuestLaunch", "MeasureGuest"]
FIRMWARE = sample_firmware(64 << 10)
SESSION = LaunchStart(0x5, b"c" * 2084, b"s" * 128)


def play(operation: Any, fail: str = "", error: BaseException | None = None) -> tuple[list[Any], Any]:
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
        if call.method.partition("/")[2] == fail and error is not None:
            step, given = operation.throw, error
        else:
            step, given = operation.send, ANSWERS[call.method]


def test_the_steps_in_order() -> None:
    seen: list[str] = []
    options: Any = {"vcpu_type": "EPYC-v4", "kernel": b"k", "append": "x"}
    calls, launched = play(
        hosted_sev.launch_sev_es(FIRMWARE, 2, session=SESSION, progress=lambda step, *_: seen.append(step), **options)
    )
    assert names(calls) == [*HELD[:3], "UpdateGuestLaunch", *HELD[3:], "FinishGuestLaunch"]
    create, _, start, first, second, *_ = (call.request for call in calls)
    assert create.type == guest_pb2.GUEST_TYPE_SEV_ES
    assert (create.firmware_bytes, create.ap_reset_address, create.vmsa_features) == (64 << 10, RESET_ADDRESS, 0)
    assert (start.policy, start.owner_certificate, start.session) == (5, SESSION.certificate, SESSION.session)
    assert [(one.size_bytes, one.page_type) for one in first.regions] == [(64 << 10, 1)]
    assert [(one.gpa, one.size_bytes) for one in second.regions] == [(HASHES_ADDRESS, 176)]
    assert launched.expected_digest == sev_es_plan(FIRMWARE, 2, **options).digest()
    assert launched.document()["secret_gpa"] == "0x80f000"
    assert list(dict.fromkeys(seen)) == ["create", "load", "measure", "finish"]


def test_a_guest_that_is_held_is_measured_and_not_finished() -> None:
    calls, launched = play(hosted_sev.launch_sev(FIRMWARE, hold=True))
    assert names(calls) == HELD
    assert (launched.guest.state, launched.guest.type) == ("measured", "sev-es")
    assert calls[2].request.policy == hosted_sev.SEV_POLICY
    assert not calls[2].request.session
    assert launched.expected_digest == sev_plan(FIRMWARE).digest()


@pytest.mark.parametrize("step", [*HELD, "FinishGuestLaunch"])
@pytest.mark.parametrize("error", [errors.WrongState("no"), KeyboardInterrupt()], ids=["refused", "interrupted"])
def test_a_launch_that_fails_deletes_its_guest(step: str, error: BaseException) -> None:
    calls, raised = play(hosted_sev.launch_sev(FIRMWARE), step, error)
    assert raised is error
    assert names(calls)[-2:] == [step, "DeleteGuest"]
    assert calls[-1].request.guest_id == calls[0].request.guest_id
    assert calls[0].request.guest_id.startswith("sev-")


def test_a_large_image_is_measured_in_pieces() -> None:
    image = sample_firmware(hosted.UPDATE_BYTES + 4096)
    calls, _ = play(hosted_sev.launch_sev(image))
    regions = [one for call in calls for one in getattr(call.request, "regions", ())]
    assert [one.size_bytes for one in regions] == [hosted.UPDATE_BYTES, 4096]
    assert regions[1].gpa == regions[0].gpa + hosted.UPDATE_BYTES


@pytest.mark.parametrize(
    ("make", "options", "field"),
    [
        pytest.param("sev", {"memory_bytes": 4096}, "memory_bytes", id="memory below the secrets' area"),
        pytest.param("sev", {"memory_bytes": 4097}, "memory_bytes", id="no whole pages"),
        pytest.param("sev", {"memory_bytes": -4096}, "memory_bytes", id="negative"),
        pytest.param("sev", {"policy": 1, "session": SESSION}, "policy", id="another policy than the session's"),
        pytest.param("sev", {"append": "x"}, "kernel", id="a command line without a kernel"),
        pytest.param("sev", {"vcpu_type": "EPYC-v4", "vcpu_signature": 1}, "vcpu_signature", id="type and signature"),
        pytest.param("sev_es", {"vcpu_type": "Pentium"}, "vcpu_type", id="unknown model"),
        pytest.param("sev_es", {"guest_features": 1 << 64}, "guest_features", id="features that do not fit"),
    ],
)
def test_what_no_launch_can_be_asked(make: str, options: dict[str, Any], field: str) -> None:
    launch: Any = hosted_sev.launch_sev if make == "sev" else hosted_sev.launch_sev_es
    with pytest.raises(errors.UsageError) as refused:
        launch(FIRMWARE, 1, **options)
    assert refused.value.field in (field, "")


def test_more_vcpus_than_the_image_has_a_place_for() -> None:
    for launch in (hosted_sev.launch_sev, hosted_sev.launch_sev_es):
        with pytest.raises(errors.MalformedInput, match="reset block"):
            launch(bytes(64 << 10), 2)
        assert names(play(launch(bytes(64 << 10), 1))[0])[0] == "CreateGuest"


def test_the_policy_of_the_type_or_the_session() -> None:
    for launch, options, policy in (
        (hosted_sev.launch_sev, {}, 1),
        (hosted_sev.launch_sev_es, {}, 5),
        (hosted_sev.launch_sev_es, {"policy": 4}, 4),
        (hosted_sev.launch_sev_es, {"session": SESSION}, 5),
        (hosted_sev.launch_sev_es, {"session": SESSION, "policy": 5}, 5),
    ):
        calls, _ = play(launch(FIRMWARE, 1, **options))
        assert calls[2].request.policy == policy
