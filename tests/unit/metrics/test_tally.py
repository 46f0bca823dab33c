"""What is counted while calls and commands run."""

from __future__ import annotations

import errno
import threading

from hypothesis import given, settings
from hypothesis import strategies as st

from sev import status
from sevd.metrics.model import Kind, Metric
from sevd.metrics.tally import CALL_BOUNDS, SERIES, Tally


def found(tally: Tally, name: str) -> Metric:
    (metric,) = [one for one in tally.metrics() if one.name == name]
    return metric


def values(tally: Tally, name: str) -> dict[tuple[str, ...], float]:
    return {tuple(one.labels.values()): one.value for one in found(tally, name).samples}


def test_calls_count_by_method_and_code() -> None:
    tally = Tally()
    for code in ("OK", "OK", "NOT_FOUND"):
        tally.call("HostService/GetHost", code, 0.002)
    tally.quick("HostService/GetHost")[0] += 3
    assert values(tally, "sevd_calls_total") == {
        ("HostService/GetHost", "OK"): 5,
        ("HostService/GetHost", "NOT_FOUND"): 1,
    }


def test_quick_calls_alone_are_shown_and_none_are_not() -> None:
    tally = Tally()
    cell = tally.quick("HostService/GetHost")
    assert values(tally, "sevd_calls_total") == {}
    cell[0] += 1
    assert tally.quick("HostService/GetHost") is cell
    assert values(tally, "sevd_calls_total") == {("HostService/GetHost", "OK"): 1}


def test_the_length_of_streams_is_not_measured() -> None:
    tally = Tally()
    tally.call("HostService/WatchEvents", "CANCELLED", None)
    assert found(tally, "sevd_call_seconds").samples == ()
    assert values(tally, "sevd_calls_total") == {("HostService/WatchEvents", "CANCELLED"): 1}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1000), min_size=1, max_size=40))
def test_a_histogram_has_every_observation_once(seconds: list[float]) -> None:
    tally = Tally()
    for each in seconds:
        tally.call("m", "OK", each)
    (sample,) = found(tally, "sevd_call_seconds").samples
    assert [most for most, _ in sample.buckets] == [*CALL_BOUNDS, float("inf")]
    assert [total for _, total in sample.buckets] == [sum(one <= most for one in seconds) for most, _ in sample.buckets]
    assert sample.observations == len(seconds)
    assert abs(sample.value - sum(seconds)) < 1e-6


def test_commands_are_told_apart_by_status_and_errno() -> None:
    tally = Tally()
    tally.command("SNP_COMMIT", 0, 0, 0.01)
    tally.command("SNP_COMMIT", errno.EIO, status.INVALID_PARAM, 0.01)
    tally.command("SNP_COMMIT", errno.EBUSY, 0, 0.01)
    tally.command("SNP_COMMIT", errno.ENODEV, 0xFFFFFFFF, 0.01)
    tally.command("SNP_COMMIT", 524, 0, 0.01)
    assert sorted(key[1] for key in values(tally, "sevd_firmware_command_seconds")) == [
        "EBUSY",
        "ENODEV",
        "ERRNO_524",
        "INVALID_PARAM",
        "SUCCESS",
    ]


def test_steps_have_results_and_waits() -> None:
    tally = Tally()
    tally.step("start", "done", 0.5, 0.001)
    tally.step("start", "FIRMWARE_STATUS", 0.5, 0.001)
    assert values(tally, "sevd_device_step_seconds") == {("start", "done"): 0.001, ("start", "FIRMWARE_STATUS"): 0.001}
    assert found(tally, "sevd_device_wait_seconds").samples[0].value == 1.0


def test_refused_connections_count_by_socket_and_reason() -> None:
    tally = Tally()
    tally.connection_refused("admin", "NOT_PERMITTED")
    tally.connection_refused("admin", "NOT_PERMITTED")
    assert values(tally, "sevd_connections_refused_total") == {("admin", "NOT_PERMITTED"): 2}


def test_labels_without_end_do_not_grow_without_end() -> None:
    tally = Tally()
    for number in range(SERIES + 10):
        tally.connection_refused("mtls", f"REASON_{number}")
        tally.command(f"COMMAND_{number}", 0, 0, 0.0)
    for name in ("sevd_connections_refused_total", "sevd_firmware_command_seconds"):
        assert len(found(tally, name).samples) == SERIES + 1
    assert values(tally, "sevd_connections_refused_total")["other", "other"] == 10


def test_threads_lose_nothing() -> None:
    tally = Tally()

    def count() -> None:
        for _ in range(2000):
            tally.step("update", "done", 0.0, 0.0)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found(tally, "sevd_device_step_seconds").samples[0].observations == 8000


def test_names_are_as_prometheus_wants_them() -> None:
    for metric in Tally().metrics():
        assert metric.name.startswith("sevd_")
        assert metric.name.endswith("_total") == (metric.kind is Kind.COUNTER)
        assert metric.help.endswith(".")
