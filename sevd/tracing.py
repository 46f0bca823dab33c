"""Traces for OpenTelemetry: one span for each call, and below it one for each piece of device work that it did.

Loaded only where `tracing.enabled` is set, and made of what is measured anyway: spans are written when a call has
ended, with the times that it had. A caller that sends `traceparent` (W3C Trace Context) finds the call in its own
trace. Where spans go is OpenTelemetry's own configuration: OTEL_TRACES_EXPORTER and what belongs to the exporter.
Attributes are those of the RPC conventions, and tell neither who called nor what was in a request.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, NamedTuple

from sev.errors import UsageError

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace.export import SpanExporter

    from sevd.api.trace import Trace

EXPORTERS = "opentelemetry_traces_exporter"
"""Entry points by which packages offer exporters."""


class Step(NamedTuple):
    """A piece of device work of a call.

    Attributes:
        name: What it was.
        began: time.monotonic() when it was issued.
        took: Seconds.
        waited: Seconds in the queue before.
        result: "done", or the reason for which it failed.
    """

    name: str
    began: float
    took: float
    waited: float
    result: str


class Spans:
    """Writes spans.

    Args:
        exporter: Where to; None: the one that OTEL_TRACES_EXPORTER names ("otlp" where it is not set).

    Raises:
        UsageError: OpenTelemetry's SDK, or the exporter, is not installed.
    """

    def __init__(self, exporter: SpanExporter | None = None) -> None:
        try:
            from opentelemetry.propagate import get_global_textmap
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError:
            raise _lacking("OpenTelemetry's SDK is not installed", "pip install 'sevd[tracing]'") from None
        from sev import __version__

        resource = Resource.create({"service.name": "sevd", "service.version": __version__})
        self._provider = TracerProvider(resource=resource)
        self._provider.add_span_processor(BatchSpanProcessor(exporter or _exporter()))
        self._tracer = self._provider.get_tracer("sevd", __version__)
        self._propagator = get_global_textmap()

    def call(self, trace: Trace, code: str, seconds: float) -> None:
        """A call has ended just now.

        Args:
            trace: What is known of it.
            code: Its canonical code by name.
            seconds: How long it took.
        """
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

        now_ns, now = time.time_ns(), time.monotonic()
        parent = self._parent(trace.traceparent)
        service, _, method = trace.method.rpartition("/")
        attributes: dict[str, str | int | bool] = {
            "rpc.system": "grpc",
            "rpc.service": service if "." in service else f"sev.v1.{service}",
            "rpc.method": method,
            "rpc.grpc.status_code": _number(code),
            "sevd.request_id": trace.request_id,
        }
        if trace.error is not None:
            attributes["error.type"] = trace.error.reason
        began_ns = now_ns - int(seconds * 1e9)
        span = self._tracer.start_span(
            trace.method, context=parent, kind=SpanKind.SERVER, attributes=attributes, start_time=began_ns
        )
        if code not in ("OK", "CANCELLED"):
            span.set_status(Status(StatusCode.ERROR, code))
        inside = set_span_in_context(span)
        for step in trace.steps:
            start = now_ns - int((now - step.began) * 1e9)
            below = self._tracer.start_span(
                f"device {step.name}",
                context=inside,
                attributes={"sevd.result": step.result, "sevd.waited_seconds": step.waited},
                start_time=start,
            )
            if step.result != "done":
                below.set_status(Status(StatusCode.ERROR, step.result))
            below.end(start + int(step.took * 1e9))
        span.end(now_ns)

    def close(self) -> None:
        """Writes what is left."""
        self._provider.shutdown()

    def _parent(self, traceparent: str) -> Context | None:
        return self._propagator.extract({"traceparent": traceparent}) if traceparent else None


def _exporter() -> SpanExporter:
    from importlib.metadata import entry_points

    name = os.environ.get("OTEL_TRACES_EXPORTER") or "otlp"
    wanted = "otlp_proto_grpc" if name == "otlp" else name
    for entry in entry_points(group=EXPORTERS, name=wanted):
        made: SpanExporter = entry.load()()
        return made
    raise _lacking(
        f"no exporter {name!r} is installed (OTEL_TRACES_EXPORTER)",
        "pip install opentelemetry-exporter-otlp-proto-grpc" if name == "otlp" else "install the exporter's package",
    )


def _number(code: str) -> int:
    import grpc

    number: int = grpc.StatusCode[code].value[0]
    return number


def _lacking(what: str, remedy: str) -> UsageError:
    return UsageError(
        f"tracing.enabled: {what}", field="tracing.enabled", remedy=f"{remedy}, or set tracing.enabled to false."
    )
