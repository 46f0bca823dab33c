"""Spans: one for each call, one below for each piece of device work, in the caller's own trace."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import ConsoleSpanExporter
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from sev.errors import NotFound, UsageError
from sevd import tracing
from sevd.api.trace import Trace

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def spans(*traces: tuple[Trace, str, float]) -> list[ReadableSpan]:
    exporter = InMemorySpanExporter()
    writer = tracing.Spans(exporter)
    for trace, code, seconds in traces:
        writer.call(trace, code, seconds)
    writer.close()
    return list(exporter.get_finished_spans())


def test_a_call_is_a_span_with_its_times() -> None:
    before = time.time_ns()
    (span,) = spans((Trace("HostService/GetHost", request_id="r1"), "OK", 0.25))
    assert span.name == "HostService/GetHost"
    assert span.kind.name == "SERVER"
    assert span.attributes is not None
    assert dict(span.attributes) == {
        "rpc.system": "grpc",
        "rpc.service": "sev.v1.HostService",
        "rpc.method": "GetHost",
        "rpc.grpc.status_code": 0,
        "sevd.request_id": "r1",
    }
    assert span.start_time is not None
    assert span.end_time is not None
    assert span.end_time - span.start_time == 250_000_000
    assert before <= span.end_time <= time.time_ns()
    assert span.parent is None
    assert span.resource.attributes["service.name"] == "sevd"


def test_the_callers_trace_goes_on() -> None:
    (span,) = spans((Trace("HostService/GetHost", traceparent=PARENT), "OK", 0.1))
    assert span.parent is not None
    assert span.context is not None
    assert f"{span.context.trace_id:032x}" == PARENT.split("-")[1]
    assert f"{span.parent.span_id:016x}" == PARENT.split("-")[2]


@pytest.mark.parametrize("junk", ["", "00-", "x" * 55, "00-" + "0" * 32 + "-b7ad6b7169203331-01", "\N{SNOWMAN}"])
def test_what_is_no_trace_begins_one(junk: str) -> None:
    (span,) = spans((Trace("HostService/GetHost", traceparent=junk), "OK", 0.1))
    assert span.parent is None


def test_device_work_is_below_its_call() -> None:
    trace = Trace("GuestService/StartGuestLaunch")
    trace.steps.append(tracing.Step("start", time.monotonic() - 0.2, 0.1, 0.05, "done"))
    trace.steps.append(tracing.Step("update", time.monotonic() - 0.1, 0.05, 0.0, "FIRMWARE_STATUS"))
    found = {span.name: span for span in spans((trace, "OK", 0.3))}
    call, start, update = (found[name] for name in ("GuestService/StartGuestLaunch", "device start", "device update"))
    assert call.context is not None
    for below in (start, update):
        assert below.parent is not None
        assert below.parent.span_id == call.context.span_id
        assert (call.start_time or 0) <= (below.start_time or 0) <= (below.end_time or 0) <= (call.end_time or 0)
    assert (start.end_time or 0) - (start.start_time or 0) == 100_000_000
    assert start.attributes is not None
    assert start.attributes["sevd.waited_seconds"] == 0.05
    assert not update.status.is_ok


def test_a_failure_says_its_reason_and_nothing_of_the_request() -> None:
    trace = Trace("GuestService/GetGuest", target="a-secret-name", owner="uid:1000")
    trace.error = NotFound("there is no a-secret-name")
    (span,) = spans((trace, "NOT_FOUND", 0.1))
    assert not span.status.is_ok
    assert span.attributes is not None
    assert (span.attributes["error.type"], span.attributes["rpc.grpc.status_code"]) == ("NOT_FOUND", 5)
    assert "secret-name" not in span.to_json()
    assert "1000" not in span.to_json()


def test_the_exporter_is_opentelemetrys_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    assert isinstance(tracing._exporter(), ConsoleSpanExporter)


@pytest.mark.parametrize("name", ["nobody-has-this", ""])
def test_an_exporter_that_is_missing_is_said(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", name)
    monkeypatch.setattr("importlib.metadata.entry_points", lambda **_: ())
    with pytest.raises(UsageError) as caught:
        tracing.Spans()
    assert (name or "otlp") in caught.value.message
    assert "install" in caught.value.remedy


def test_a_missing_library_is_said(without: Callable[[str], None]) -> None:
    without("opentelemetry")
    with pytest.raises(UsageError) as caught:
        tracing.Spans()
    assert "sevd[tracing]" in caught.value.remedy
