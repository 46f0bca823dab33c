"""What is known of one call while it runs, and the id under which it is found again.

The id of a call is the field `request_id` of its request where that is given; else the `x-request-id` of its metadata
where that is of the right form; else one that is made here. It is in every log record that belongs to the call, in its
audit record, in the error (ErrorInfo `requestId`), and comes back as metadata `sevd-request-id`. Only the field makes a
retry safe: the metadata is a name and nothing more, and may be the same for any number of calls.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, TypeAlias

from sev.records import field, mutable_record
from sevd.calling import CURRENT, REQUEST_ID_KEY, fresh_request_id, is_request_id

if TYPE_CHECKING:
    import grpc

    from sev.errors import SevError
    from sevd.tracing import Step

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

REQUEST_ID_TRAILER = "sevd-request-id"
"""Metadata key under which the id of a call comes back: trailing, or initial where the answer is a stream."""

TRACEPARENT_KEY = "traceparent"
"""Metadata key of the caller's trace."""

TRACEPARENT_CHARACTERS = 256
"""Longest value of it that is looked at; today's have 55."""


@mutable_record
class Trace:
    """What is known of one call while it runs, for its log lines and its audit record.

    Attributes:
        method: Its name with the service.
        started: time.monotonic() at its beginning.
        owner: Who calls; empty while that is not known.
        target: What it is about: a guest's id, mostly.
        request_id: Its id.
        repeat_id: The field request_id: a repeated call under it acts once. Empty if it is not given.
        validate_only: It was asked to change nothing.
        repeated: It was answered from the journal.
        error: What went wrong, if something did.
        code: The canonical code it ends with, by name.
        stream: It is answered as long as its caller listens.
        traceparent: The caller's trace (W3C Trace Context), if it sent one.
        steps: The device work that it did; kept where spans are written alone.
    """

    method: str
    started: float = field(default_factory=time.monotonic)
    owner: str = ""
    target: str = ""
    request_id: str = ""
    repeat_id: str = ""
    validate_only: bool = False
    repeated: bool = False
    error: SevError | None = None
    code: str = "OK"
    stream: bool = False
    traceparent: str = ""
    steps: list[Step] = field(default_factory=list)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What tells the caller the call's id; nothing if the field is text that metadata cannot carry."""
        text = self.request_id
        return ((REQUEST_ID_TRAILER, text),) if text.strip() == text else ()


def begin(method: str, context: Context, *, stream: bool = False) -> Trace:
    """A call begins, in a task of its own."""
    given = traceparent = ""
    for key, value in context.invocation_metadata() or ():
        if key == REQUEST_ID_KEY and is_request_id(value):
            given = given or str(value)
        elif key == TRACEPARENT_KEY and len(value) <= TRACEPARENT_CHARACTERS:
            traceparent = str(value)
    trace = Trace(method, request_id=given or fresh_request_id(), stream=stream, traceparent=traceparent)
    CURRENT.set(trace)
    return trace
