"""What comes over the wire becomes the class it was: every class, every fact, and nothing raised by nonsense."""

from __future__ import annotations

import pytest
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from sev import errors
from sev.calls import Failure
from sev.rpc_errors import DETAILS_KEY, from_failure


def _failure(reason: str, metadata: dict[str, str], code: str = "FAILED_PRECONDITION", domain: str = "sevd") -> Failure:
    status = status_pb2.Status(code=9, message="told")
    status.details.add().Pack(error_details_pb2.RetryInfo())
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=reason, domain=domain, metadata=metadata))
    return Failure(code, "told", ((DETAILS_KEY, status.SerializeToString()), ("other", "text")))


def _classes() -> list[type[errors.SevError]]:
    found: list[type[errors.SevError]] = []
    pending = list(errors.SevError.__subclasses__())
    while pending:
        cls = pending.pop()
        if cls.__module__ == "sev.errors":
            found.append(cls)
            pending.extend(cls.__subclasses__())
    return sorted(found, key=lambda cls: cls.__name__)


@pytest.mark.parametrize("cls", _classes())
def test_every_class_comes_back(cls: type[errors.SevError]) -> None:
    error = from_failure(_failure(cls.reason, {"kind": cls.kind}))
    assert type(error) is cls
    assert error.message == "told"


def test_every_fact_comes_back() -> None:
    facts = {
        "kind": "refused",
        "firmwareStatus": "7",
        "firmwareStatusName": "POLICY_FAILURE",
        "errno": "5",
        "command": "SNP_LAUNCH_START",
        "field": "policy",
        "remedy": "change it",
        "requestId": "r-1",
        "state": "launching",
    }
    error = from_failure(_failure("FIRMWARE_STATUS", facts), "ours")
    assert isinstance(error, errors.FirmwareError)
    assert (error.firmware_status, error.errno, error.command) == (7, 5, "SNP_LAUNCH_START")
    assert (error.field, error.remedy, error.request_id) == ("policy", "change it", "r-1")
    assert error.metadata == {"state": "launching"}
    assert error.document()["firmware_status"] == {"code": 7, "name": "POLICY_FAILURE"}


def test_request_id_of_the_caller_where_none_came() -> None:
    assert from_failure(_failure("NOT_NOW", {}), "mine").request_id == "mine"
    assert from_failure(Failure("ABORTED", "x"), "mine").request_id == "mine"


@pytest.mark.parametrize("kind", ["usage", "refused", "not_permitted", "malformed", "not_found", "not_now"])
def test_unknown_reason_falls_back_to_its_kind(kind: str) -> None:
    assert from_failure(_failure("REASON_OF_2031", {"kind": kind})).kind == kind


def test_unknown_reason_without_kind_falls_back_to_the_code() -> None:
    assert isinstance(from_failure(_failure("REASON_OF_2031", {}, code="NOT_FOUND")), errors.NotFound)


def test_errors_of_verification_come_back() -> None:
    from sev.attestation import errors as verification

    found = [getattr(verification, name) for name in verification.__all__]
    own = [cls for cls in found if "reason" in vars(cls)]
    assert len(own) > 20
    for cls in own:
        assert type(from_failure(_failure(cls.reason, {"kind": cls.kind}))) is cls


@pytest.mark.parametrize(
    ("code", "cls"),
    [
        ("INVALID_ARGUMENT", errors.UsageError),
        ("NOT_FOUND", errors.NotFound),
        ("PERMISSION_DENIED", errors.NotPermitted),
        ("UNAUTHENTICATED", errors.NotPermitted),
        ("RESOURCE_EXHAUSTED", errors.LimitReached),
        ("UNIMPLEMENTED", errors.NotOffered),
        ("UNAVAILABLE", errors.Unreachable),
        ("ABORTED", errors.NotNow),
        ("INTERNAL", errors.InternalError),
        ("DATA_LOSS", errors.InternalError),
    ],
)
def test_codes_alone(code: str, cls: type[errors.SevError]) -> None:
    assert type(from_failure(Failure(code, ""))) is cls


def test_details_of_another_domain_do_not_count() -> None:
    error = from_failure(_failure("FIRMWARE_STATUS", {"firmwareStatus": "7"}, code="NOT_FOUND", domain="example.org"))
    assert type(error) is errors.NotFound
    assert error.firmware_status is None


@pytest.mark.parametrize("number", ["", "x", "0x", "1e3", "7z"])
def test_numbers_that_are_none(number: str) -> None:
    assert from_failure(_failure("FIRMWARE_STATUS", {"firmwareStatus": number})).firmware_status is None


@given(st.binary(max_size=200))
def test_nonsense_details_are_ignored(blob: bytes) -> None:
    assert isinstance(from_failure(Failure("NOT_FOUND", "x", ((DETAILS_KEY, blob),))), errors.SevError)
