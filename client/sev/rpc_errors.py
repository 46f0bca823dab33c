"""The errors of the daemon, made into the classes of `sev.errors` again.

The daemon answers a canonical gRPC code, a sentence, and google.rpc details: an ErrorInfo of domain "sevd" whose
reason is that of the class and whose metadata holds kind, firmwareStatus, firmwareStatusName, errno, command, field,
remedy and requestId, beside facts of the one error (state, allowed, …); a RetryInfo says when to ask again. Where the
details are missing (a server that is not sevd, a failure of gRPC itself) the code alone decides. What cannot be decoded
is ignored, never raised.
"""

from __future__ import annotations

from sev import errors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sev.calls import Failure

DOMAIN = "sevd"
"""Domain of our ErrorInfo."""

DETAILS_KEY = "grpc-status-details-bin"
"""Trailing metadata key of the serialised google.rpc.Status."""

_BY_CODE: dict[str, type[errors.SevError]] = {
    "INVALID_ARGUMENT": errors.UsageError,
    "OUT_OF_RANGE": errors.UsageError,
    "ALREADY_EXISTS": errors.NotNow,
    "NOT_FOUND": errors.NotFound,
    "PERMISSION_DENIED": errors.NotPermitted,
    "UNAUTHENTICATED": errors.NotPermitted,
    "FAILED_PRECONDITION": errors.NotNow,
    "ABORTED": errors.NotNow,
    "CANCELLED": errors.NotNow,
    "DEADLINE_EXCEEDED": errors.NotNow,
    "RESOURCE_EXHAUSTED": errors.LimitReached,
    "UNIMPLEMENTED": errors.NotOffered,
    "UNAVAILABLE": errors.Unreachable,
}
"""What a code means where no details came with it; any other code is a failure of the daemon."""

_OWN_KEYS = ("kind", "firmwareStatus", "firmwareStatusName", "errno", "command", "field", "remedy", "requestId")


def from_failure(failure: Failure, request_id: str = "") -> errors.SevError:
    """The error that a failed call means.

    Args:
        failure: Code, sentence and trailing metadata of the call.
        request_id: The id that the request carried, if it did.
    """
    info, wait = _details(failure)
    message = failure.details or f"the daemon answered {failure.code} without a word"
    if info is None:
        cls = _BY_CODE.get(failure.code, errors.InternalError)
        return cls(message, request_id=request_id, retry_after=wait)
    reason, metadata = info
    more = {key: value for key, value in metadata.items() if key not in _OWN_KEYS}
    error = _blank(_class_of(reason, metadata.get("kind", ""), failure.code))
    errors.SevError.__init__(
        error,
        message,
        remedy=metadata.get("remedy", ""),
        field=metadata.get("field", ""),
        command=metadata.get("command", ""),
        firmware_status=_number(metadata.get("firmwareStatus")),
        errno=_number(metadata.get("errno")),
        request_id=metadata.get("requestId", "") or request_id,
        metadata=more,
        retry_after=wait,
    )
    return error


def _blank(cls: type[errors.SevError]) -> errors.SevError:
    """An instance without its own constructor, which may want other arguments than the daemon's answer has."""
    return cls.__new__(cls)


def _class_of(reason: str, kind: str, code: str) -> type[errors.SevError]:
    """The class of a reason; for a word that this version does not know, the class of its kind, then of its code."""
    if kind in (errors.VerificationError.kind, errors.CollateralError.kind):
        from contextlib import suppress

        with suppress(ImportError):
            import sev.attestation.errors  # noqa: F401 - its classes enter the tree
    cls = errors.from_reason(reason)
    if cls is not errors.InternalError or reason == errors.InternalError.reason:
        return cls
    for cls in errors.SevError.__subclasses__():
        if cls.kind == kind:
            return cls
    return _BY_CODE.get(code, errors.InternalError)


def _number(text: str | None) -> int | None:
    """A number of the metadata, decimal or with 0x; None if it is absent or none."""
    try:
        return int(text, 0) if text else None
    except ValueError:
        return None


def _details(failure: Failure) -> tuple[tuple[str, dict[str, str]] | None, float | None]:
    """Reason and metadata of our ErrorInfo, and the seconds of a RetryInfo, as far as the failure carries them."""
    info: tuple[str, dict[str, str]] | None = None
    wait: float | None = None
    blob = next((value for key, value in failure.metadata if key == DETAILS_KEY), None)
    if not isinstance(blob, bytes):
        return info, wait
    from google.protobuf.message import DecodeError
    from google.rpc import error_details_pb2, status_pb2

    try:
        for detail in status_pb2.Status.FromString(blob).details:
            ours, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
            if detail.Is(ours.DESCRIPTOR) and detail.Unpack(ours) and ours.domain == DOMAIN:
                info = info or (ours.reason, dict(ours.metadata))
            elif detail.Is(retry.DESCRIPTOR) and detail.Unpack(retry):
                seconds = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
                wait = seconds if 0 <= seconds < errors.MAX_WAIT_SECONDS else None
    except DecodeError:
        pass
    return info, wait
