"""GET /metrics: what Prometheus gets, and what others get."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families as parse

from sev.errors import UsageError
from sevd.metrics import serving
from sevd.metrics.model import Bucket, Kind, Metric, Sample, gauge
from tests.support.remote_daemon import free_port

parse_open: Any = open_metrics

METRICS = [
    gauge("sevd_simulated", "1 if it is.", 1),
    Metric("sevd_calls_total", "Calls.", Kind.COUNTER, (Sample({"method": 'a"b\\c\nd', "code": "OK"}, 7),)),
    Metric(
        "sevd_call_seconds",
        "How long.",
        Kind.HISTOGRAM,
        (Sample({"method": "m"}, 1.5, (Bucket(0.5, 1), Bucket(float("inf"), 2))),),
    ),
]


async def collect() -> list[Metric]:
    return METRICS


async def broken() -> list[Metric]:
    raise RuntimeError("a bug")


async def asked(request: bytes, *, collect: Any = collect, end: bool = True) -> bytes:
    """What a server on a loopback port answers to these bytes."""
    listener = serving.listen("127.0.0.1:" + str(free_port()))
    port = listener.getsockname()[1]
    server = serving.MetricsServer(listener, collect)
    await server.start()
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request)
        if end:
            writer.write_eof()
        answer = await reader.read()
        writer.close()
        return answer
    finally:
        await server.close()


def body_of(answer: bytes) -> str:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    return body.decode()


def test_prometheus_reads_it_back() -> None:
    answer = asyncio.run(asked(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"))
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"Content-Type: text/plain; version=0.0.4" in answer
    found = {one.name: one for one in parse(body_of(answer))}
    (call,) = found["sevd_calls"].samples
    assert (call.name, call.labels, call.value) == ("sevd_calls_total", {"method": 'a"b\\c\nd', "code": "OK"}, 7)
    assert found["sevd_simulated"].samples[0].value == 1
    buckets = {
        one.labels["le"]: one.value for one in found["sevd_call_seconds"].samples if one.name.endswith("_bucket")
    }
    assert buckets == {"0.5": 1, "+Inf": 2}


def test_open_metrics_for_those_who_ask() -> None:
    request = b"GET /metrics HTTP/1.1\r\nAccept: application/openmetrics-text;version=1.0.0\r\n\r\n"
    answer = asyncio.run(asked(request))
    assert b"application/openmetrics-text" in answer.partition(b"\r\n\r\n")[0]
    assert [one.name for one in parse_open(body_of(answer))] == ["sevd_simulated", "sevd_calls", "sevd_call_seconds"]


def test_head_has_no_body() -> None:
    answer = asyncio.run(asked(b"HEAD /metrics HTTP/1.1\r\n\r\n"))
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", b"404"),
        (b"POST /metrics HTTP/1.1\r\n\r\n", b"405"),
        (b"GET /metrics\r\n\r\n", b"400"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x02\x00\r\n\r\n", b"400"),
        (b"GET /metrics HTTP/1.1\r\nX: " + b"a" * serving.REQUEST_BYTES + b"\r\n\r\n", b"431"),
    ],
)
def test_what_is_no_request_for_metrics_is_refused(request_: bytes, status: bytes) -> None:
    assert asyncio.run(asked(request_)).split(b" ", 2)[1] == status


def test_a_caller_who_says_half_a_request_gets_nothing() -> None:
    assert asyncio.run(asked(b"GET /metrics HTT")) == b""


def test_a_silent_caller_is_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "REQUEST_SECONDS", 0.05)
    assert asyncio.run(asked(b"GET /metrics HTT", end=False)) == b""


def test_a_bug_is_logged_and_ends_one_connection(caplog: pytest.LogCaptureFixture) -> None:
    assert asyncio.run(asked(b"GET /metrics HTTP/1.1\r\n\r\n", collect=broken)) == b""
    assert "metrics could not be served" in caplog.text


def test_silent_callers_do_not_keep_others_out_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "REQUEST_SECONDS", 0.2)

    async def crowd() -> bytes:
        listener = serving.listen(f"127.0.0.1:{free_port()}")
        port = listener.getsockname()[1]
        server = serving.MetricsServer(listener, collect)
        await server.start()
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(serving.REQUESTS * 2)]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /metrics HTTP/1.1\r\n\r\n")
        answer = await asyncio.wait_for(reader.read(), 10)
        for _, each in [*silent, (reader, writer)]:
            each.close()
        await server.close()
        return answer

    assert b"200 OK" in asyncio.run(crowd())


def test_a_unix_socket_serves_too(tmp_path: Path) -> None:
    async def ask() -> bytes:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(tmp_path / "m"))
        listener.listen()
        server = serving.MetricsServer(listener, collect)
        await server.start()
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "m"))
        writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
        answer = await reader.read()
        writer.close()
        await server.close()
        return answer

    assert b"200 OK" in asyncio.run(ask())


@pytest.mark.parametrize(
    "address", ["", "9463", "127.0.0.1", "127.0.0.1:", "127.0.0.1:0", "127.0.0.1:65536", "127.0.0.1:-1", "host:1", ":1"]
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(UsageError) as caught:
        serving.listen(address)
    assert caught.value.field == "metrics.listen"


@pytest.mark.parametrize("address", ["0.0.0.0:9463", "[::]:9463", "192.0.2.1:9463"])
def test_others_than_this_machine_are_not_served(address: str) -> None:
    with pytest.raises(UsageError, match="loopback"):
        serving.listen(address)


def test_a_socket_that_was_passed_must_be_a_loopback_one() -> None:
    with socket.create_server(("0.0.0.0", 0)) as listener, pytest.raises(UsageError, match="loopback"):
        serving.check_loopback(listener)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving.check_loopback(listener)


def test_a_port_that_is_taken_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UsageError, match="in use"):
        serving.listen(f"127.0.0.1:{taken.getsockname()[1]}")


def test_a_missing_library_is_said_with_what_to_install(without: Callable[[str], None]) -> None:
    without("prometheus_client")
    with pytest.raises(UsageError) as caught:
        serving.check_library()
    assert "sevd[metrics]" in caught.value.remedy
