"""What a daemon counts and measures, as plain values."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sev.wire import rfc3339, time, word

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from sev.v1 import host_pb2


class MetricSample(NamedTuple):
    """One value.

    Attributes:
        labels: What it is about.
        value: The value of a gauge or counter; of a histogram the sum of all observations.
        buckets: Of a histogram: (upper bound, observations up to it), ascending; the last bound is infinite.
    """

    labels: Mapping[str, str]
    value: float
    buckets: tuple[tuple[float, int], ...] = ()

    @property
    def observations(self) -> int:
        """How many observations a histogram has."""
        return self.buckets[-1][1] if self.buckets else 0


class Metric(NamedTuple):
    """A metric.

    Attributes:
        name: As Prometheus has it.
        help: One sentence.
        kind: "gauge", "counter" or "histogram".
        samples: Its values.
    """

    name: str
    help: str
    kind: str
    samples: tuple[MetricSample, ...]

    def document(self) -> dict[str, object]:
        """The JSON form."""
        samples = []
        for sample in self.samples:
            entry: dict[str, object] = {"labels": dict(sample.labels), "value": sample.value}
            if sample.buckets:
                entry["count"] = sample.observations
                # JSON has no infinity: what is in no bucket is above the last one.
                entry["buckets"] = [{"most": most, "total": total} for most, total in sample.buckets[:-1]]
            samples.append(entry)
        return {"name": self.name, "help": self.help, "kind": self.kind, "samples": samples}


class Metrics(NamedTuple):
    """All metrics at one moment.

    Attributes:
        time: When they were made (aware, UTC, the daemon's clock); None if it is outside of what dates can say.
        metrics: By name.
    """

    time: datetime | None
    metrics: Mapping[str, Metric]

    @classmethod
    def from_message(cls, message: host_pb2.GetMetricsResponse) -> Metrics:
        """The metrics of an answer."""
        from sev.v1 import host_pb2

        found = {
            one.name: Metric(
                one.name,
                one.help,
                word(host_pb2.MetricKind, "METRIC_KIND_", one.kind),
                tuple(
                    MetricSample(dict(sample.labels), sample.value, tuple((b.most, b.total) for b in sample.buckets))
                    for sample in one.samples
                ),
            )
            for one in message.metrics
        }
        return cls(time(message.sample_time), found)

    def value(self, name: str, **labels: str) -> float | None:
        """The sum over the samples of a metric that have these labels; None if there is none."""
        metric = self.metrics.get(name)
        found = [one.value for one in metric.samples if labels.items() <= one.labels.items()] if metric else []
        return sum(found) if found else None

    def samples(self, name: str) -> tuple[MetricSample, ...]:
        """The samples of a metric; none if it is not there."""
        metric = self.metrics.get(name)
        return metric.samples if metric else ()

    def document(self) -> dict[str, object]:
        """The JSON form."""
        return {"time": rfc3339(self.time), "metrics": [self.metrics[name].document() for name in sorted(self.metrics)]}
