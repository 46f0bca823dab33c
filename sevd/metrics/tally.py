"""What is counted while calls and device commands run: a few additions each, from any thread.

The values are read when somebody asks (`metrics`), which is seldom.
"""

from __future__ import annotations

import errno
import threading
from bisect import bisect_left
from typing import TYPE_CHECKING

from sev.abi.sev_device import NO_FW_CALL
from sevd.metrics.model import Bucket, Kind, Metric, Sample

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

CALL_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
"""Seconds; bounds of what calls take."""

DEVICE_BOUNDS = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0, 100.0)
"""Seconds; bounds of what commands and steps take. The kernel gives a command up after 100."""

SERIES = 2048
"""Most label values of one metric; what comes beyond counts under "other"."""

_OTHER = "other"


class Tally:
    """Counters and histograms of one daemon."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._quick: dict[str, list[int]] = {}
        self._calls: dict[tuple[str, ...], int] = {}
        self._refused: dict[tuple[str, ...], int] = {}
        self._call_seconds = _Histograms(CALL_BOUNDS)
        self._commands = _Histograms(DEVICE_BOUNDS)
        self._steps = _Histograms(DEVICE_BOUNDS)
        self._waits = _Histograms(DEVICE_BOUNDS)

    def call(self, method: str, code: str, seconds: float | None) -> None:
        """A call ended.

        Args:
            method: "Service/Method"; only names that the daemon serves.
            code: Canonical code by name, such as "OK".
            seconds: How long it took; None for a stream, whose length says nothing.
        """
        with self._lock:
            _count(self._calls, (method, code))
            if seconds is not None:
                self._call_seconds.add((method,), seconds)

    def quick(self, method: str) -> list[int]:
        """A cell to count successful calls in that are over before their length could be measured. On one thread."""
        return self._quick.setdefault(method, [0])

    def connection_refused(self, socket: str, reason: str) -> None:
        """A connection was refused."""
        with self._lock:
            _count(self._refused, (socket, reason))

    def command(self, command: str, number: int, status: int, seconds: float) -> None:
        """A command of /dev/sev ended: its name, the errno (0: success) and the firmware's status (0: none told)."""
        word = "SUCCESS"
        if status and status != NO_FW_CALL:
            from sev import status as statuses

            word = statuses.name(status)
        elif number:
            word = errno.errorcode.get(number, f"ERRNO_{number}")
        with self._lock:
            self._commands.add((command, word), seconds)

    def step(self, step: str, result: str, waited: float, took: float) -> None:
        """A piece of device work ended.

        Args:
            step: What it was.
            result: "done", or the reason for which it failed.
            waited: Seconds in the queue.
            took: Seconds from there on.
        """
        with self._lock:
            self._steps.add((step, result), took)
            self._waits.add((), waited)

    def metrics(self) -> list[Metric]:
        """Everything that was counted."""
        with self._lock:
            return [
                Metric(
                    "sevd_calls_total",
                    "Calls that ended, by method and canonical code.",
                    Kind.COUNTER,
                    _counted(self._ended_calls(), ("method", "code")),
                ),
                Metric(
                    "sevd_call_seconds",
                    "How long calls took that are answered once.",
                    Kind.HISTOGRAM,
                    self._call_seconds.samples(("method",)),
                ),
                Metric(
                    "sevd_connections_refused_total",
                    "Connections that were refused, by socket and reason.",
                    Kind.COUNTER,
                    _counted(self._refused, ("socket", "reason")),
                ),
                Metric(
                    "sevd_firmware_command_seconds",
                    "How long platform commands took, by status of the firmware, or errno of the kernel.",
                    Kind.HISTOGRAM,
                    self._commands.samples(("command", "status")),
                ),
                Metric(
                    "sevd_device_step_seconds",
                    "How long pieces of device work took, launch steps included, by result.",
                    Kind.HISTOGRAM,
                    self._steps.samples(("step", "result")),
                ),
                Metric(
                    "sevd_device_wait_seconds",
                    "How long pieces of device work waited for those before them.",
                    Kind.HISTOGRAM,
                    self._waits.samples(()),
                ),
            ]

    def _ended_calls(self) -> dict[tuple[str, ...], int]:
        out = dict(self._calls)
        for method, (count,) in self._quick.items():
            if count:
                out[method, "OK"] = out.get((method, "OK"), 0) + count
        return out


class _Histograms:
    """One histogram for each set of label values. The caller holds the lock."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._series: dict[tuple[str, ...], list[float]] = {}  # counts by bucket, then the sum

    def add(self, key: tuple[str, ...], value: float) -> None:
        series = self._series.get(key)
        if series is None:
            if len(self._series) >= SERIES:
                key = (_OTHER,) * len(key)
            series = self._series.setdefault(key, [0.0] * (len(self._bounds) + 2))
        series[bisect_left(self._bounds, value)] += 1
        series[-1] += value

    def samples(self, names: tuple[str, ...]) -> tuple[Sample, ...]:
        return tuple(
            Sample(dict(zip(names, key, strict=True)), series[-1], tuple(self._buckets(series[:-1])))
            for key, series in sorted(self._series.items())
        )

    def _buckets(self, counts: Iterable[float]) -> Iterator[Bucket]:
        total = 0
        for most, count in zip((*self._bounds, float("inf")), counts, strict=True):
            total += int(count)
            yield Bucket(most, total)


def _count(counters: dict[tuple[str, ...], int], key: tuple[str, ...]) -> None:
    if key not in counters and len(counters) >= SERIES:
        key = (_OTHER,) * len(key)
    counters[key] = counters.get(key, 0) + 1


def _counted(counters: dict[tuple[str, ...], int], names: tuple[str, ...]) -> tuple[Sample, ...]:
    return tuple(Sample(dict(zip(names, key, strict=True)), value) for key, value in sorted(counters.items()))
