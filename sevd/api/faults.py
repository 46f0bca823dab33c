"""One table from error classes to gRPC status, and the google.rpc details that travel with it.

A failed call carries, in the trailer `grpc-status-details-bin`, a serialised google.rpc.Status whose details hold

- always an ErrorInfo: domain "sevd", reason (`SevError.reason`), and metadata: `kind` (the closed list of the command's
  errors), `remedy`, `command`, `field`, `errno` (decimal), `firmwareStatus` (decimal), `firmwareStatusName`,
  `requestId`, and what the error itself added; a name without a value is left out;
- a PreconditionFailure for a step out of order, a refusal of the firmware or the kernel, and a missing device;
- a BadRequest for a field that is at fault;
- a RetryInfo for a limit of this caller, which passes by itself: when, if that is known (SevError.retry_after).
"""

from __future__ import annotations

import grpc

from sev import errors
from sev.errors import SevError
from sev.records import record
from sevd.access.accounts import RETRY_SECONDS

DOMAIN = "sevd"
"""ErrorInfo.domain: with the reason, the stable identifier of an error."""

DETAILS_TRAILER = "grpc-status-details-bin"
"""Trailing metadata key of the serialised google.rpc.Status."""

MESSAGE_CHARACTERS = 1024
"""Longest status message; a client's default limit for all metadata of a call is 8 KiB."""

VALUE_CHARACTERS = 512
"""Longest metadata value."""

METADATA_ENTRIES = 24
"""Most metadata entries."""

_CODES: dict[type[SevError], grpc.StatusCode] = {
    SevError: grpc.StatusCode.INTERNAL,
    errors.InternalError: grpc.StatusCode.INTERNAL,
    errors.UsageError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.VerificationError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.AppraisalError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.CollateralError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.RefusedError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.NotOffered: grpc.StatusCode.UNIMPLEMENTED,
    errors.NotPermitted: grpc.StatusCode.PERMISSION_DENIED,
    errors.Unreachable: grpc.StatusCode.UNAVAILABLE,
    errors.MalformedInput: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.NotNow: grpc.StatusCode.FAILED_PRECONDITION,
    errors.WrongState: grpc.StatusCode.FAILED_PRECONDITION,
    errors.LimitReached: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.OutcomeUnknown: grpc.StatusCode.ABORTED,
}


@record
class Failure:
    """A failed call as it goes over the wire.

    Attributes:
        code: The canonical code.
        message: One sentence, at most MESSAGE_CHARACTERS characters.
        details: A serialised google.rpc.Status.
        reason: ErrorInfo.reason.
    """

    code: grpc.StatusCode
    message: str
    details: bytes
    reason: str

    @property
    def trailer(self) -> tuple[tuple[str, bytes], ...]:
        """The trailing metadata of the failed call."""
        return ((DETAILS_TRAILER, self.details),)


def code_of(error: SevError) -> grpc.StatusCode:
    """The canonical code of an error: its class's, or its nearest ancestor's."""
    for cls in type(error).__mro__:
        code = _CODES.get(cls)
        if code is not None:
            return code
    return grpc.StatusCode.INTERNAL


def info_of(error: SevError) -> dict[str, str]:
    """ErrorInfo.metadata of an error; bounded in entries and in characters."""
    facts = {"kind": error.kind, "remedy": error.remedy, "command": error.command, "field": error.field}
    if error.errno is not None:
        facts["errno"] = str(error.errno)
    if error.firmware_status is not None:
        from sev import status

        facts["firmwareStatus"] = str(error.firmware_status)
        facts["firmwareStatusName"] = status.name(error.firmware_status)
    facts["requestId"] = error.request_id
    for key, value in error.metadata.items():
        if len(facts) >= METADATA_ENTRIES:
            break
        facts.setdefault(key[:64], str(value))
    return {key: _cut(value, VALUE_CHARACTERS) for key, value in facts.items() if value}


def failure(error: SevError) -> Failure:
    """The wire form of an error."""
    # Loaded when the first call fails: a daemon that has not failed yet need not hold them.
    from google.rpc import error_details_pb2, status_pb2

    code, message = code_of(error), _cut(error.message, MESSAGE_CHARACTERS)
    status = status_pb2.Status(code=code.value[0], message=message)
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=info_of(error))
    status.details.add().Pack(info)
    if isinstance(error, (errors.WrongState, errors.RefusedError)):
        failed = error_details_pb2.PreconditionFailure()
        subject = error.command or error.field or "host"
        failed.violations.add(type=error.reason, subject=_cut(subject, 128), description=_cut(error.message, 512))
        status.details.add().Pack(failed)
    if error.field and isinstance(error, (errors.UsageError, errors.MalformedInput)):
        bad = error_details_pb2.BadRequest()
        bad.field_violations.add(field=_cut(error.field, 128), description=_cut(error.message, 512))
        status.details.add().Pack(bad)
    if isinstance(error, errors.LimitReached) and error.errno is None and error.retry_after != errors.NEVER:
        retry = error_details_pb2.RetryInfo()
        wait = RETRY_SECONDS if error.retry_after is None else error.retry_after
        retry.retry_delay.FromMicroseconds(round(wait * 1e6))
        status.details.add().Pack(retry)
    return Failure(code, message, status.SerializeToString(), error.reason)


def _cut(text: str, limit: int) -> str:
    """The text, shortened to `limit` characters, without control characters that a trailer or a log may not carry."""
    if len(text) > limit:
        text = text[: limit - 1] + "…"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)
