"""Every error class has a status, and the details say what the error says."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

import sev.attestation.errors  # noqa: F401 - its classes enter the tree
from sev import errors, status
from sev.errors import SevError
from sevd.api import faults

CODES = {
    "NotPermitted": "PERMISSION_DENIED",
    "NotFound": "NOT_FOUND",
    "WrongState": "FAILED_PRECONDITION",
    "LimitReached": "RESOURCE_EXHAUSTED",
    "UsageError": "INVALID_ARGUMENT",
    "ConfirmationMissing": "INVALID_ARGUMENT",
    "MalformedInput": "INVALID_ARGUMENT",
    "FirmwareError": "FAILED_PRECONDITION",
    "KernelError": "FAILED_PRECONDITION",
    "DeviceMissing": "FAILED_PRECONDITION",
    "NotOffered": "UNIMPLEMENTED",
    "OutcomeUnknown": "ABORTED",
    "InternalError": "INTERNAL",
    "Unreachable": "UNAVAILABLE",
}


def tree(cls: type[SevError]) -> Iterator[type[SevError]]:
    yield cls
    for child in cls.__subclasses__():
        yield from tree(child)


def make(cls: type[SevError]) -> SevError:
    """An instance without its constructor's own wishes."""
    error = cls.__new__(cls)
    SevError.__init__(error, "what happened", remedy="what to do", field="the_field", command="THE_COMMAND", errno=5)
    return error


def detail(failure: faults.Failure, kind: type[Message]) -> Message | None:
    wire = status_pb2.Status.FromString(failure.details)
    for packed in wire.details:
        out = kind()
        if packed.Is(out.DESCRIPTOR):
            assert packed.Unpack(out)
            return out
    return None


@pytest.mark.parametrize("cls", list(tree(SevError)), ids=lambda cls: cls.__name__)
def test_every_class_has_a_status_and_an_error_info(cls: type[SevError]) -> None:
    if not cls.__module__.startswith(("sev.", "sevd.")):
        pytest.skip("a class of another test")
    failure = faults.failure(make(cls))
    wire = status_pb2.Status.FromString(failure.details)
    assert (wire.code, wire.message) == (failure.code.value[0], "what happened")
    info = detail(failure, error_details_pb2.ErrorInfo)
    assert isinstance(info, error_details_pb2.ErrorInfo)
    assert (info.domain, info.reason) == ("sevd", cls.reason)
    assert {**info.metadata} == {
        "kind": cls.kind,
        "remedy": "what to do",
        "command": "THE_COMMAND",
        "field": "the_field",
        "errno": "5",
    }
    if not issubclass(cls, errors.InternalError) and cls is not SevError:
        assert failure.code is not grpc.StatusCode.INTERNAL
    expected = CODES.get(cls.__name__)
    if expected:
        assert failure.code.name == expected


def test_the_table_names_every_class_of_the_library() -> None:
    own = {cls.__name__ for cls in tree(SevError) if cls.__module__ == "sev.errors"}
    assert set(CODES) <= own


def test_a_firmware_status_travels_as_number_and_name() -> None:
    error = errors.FirmwareError(status.POLICY_FAILURE, command="SNP_LAUNCH_START", errno=5)
    info = detail(faults.failure(error), error_details_pb2.ErrorInfo)
    assert isinstance(info, error_details_pb2.ErrorInfo)
    assert info.metadata["firmwareStatus"] == str(status.POLICY_FAILURE)
    assert info.metadata["firmwareStatusName"] == "POLICY_FAILURE"
    assert info.metadata["errno"] == "5"


def test_details_that_fit_are_there() -> None:
    wrong = faults.failure(errors.WrongState("m", metadata={"state": "READY", "allowed": "delete_guest"}))
    assert detail(wrong, error_details_pb2.PreconditionFailure) is not None
    info = detail(wrong, error_details_pb2.ErrorInfo)
    assert isinstance(info, error_details_pb2.ErrorInfo)
    assert info.metadata["state"] == "READY"
    bad = detail(faults.failure(errors.UsageError("m", field="gpa")), error_details_pb2.BadRequest)
    assert isinstance(bad, error_details_pb2.BadRequest)
    assert bad.field_violations[0].field == "gpa"
    assert detail(faults.failure(errors.LimitReached("m")), error_details_pb2.RetryInfo) is not None
    assert detail(faults.failure(errors.LimitReached("m", errno=16)), error_details_pb2.RetryInfo) is None


@given(st.text(max_size=4000), st.dictionaries(st.text(max_size=100), st.text(max_size=2000), max_size=60))
def test_any_text_stays_within_bounds(text: str, metadata: dict[str, str]) -> None:
    failure = faults.failure(errors.NotNow(text, remedy=text, field=text, metadata=metadata))
    assert len(failure.message) <= faults.MESSAGE_CHARACTERS
    info = detail(failure, error_details_pb2.ErrorInfo)
    assert isinstance(info, error_details_pb2.ErrorInfo)
    assert len(info.metadata) <= faults.METADATA_ENTRIES
    assert all(len(value) <= faults.VALUE_CHARACTERS for value in info.metadata.values())
