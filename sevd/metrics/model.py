"""A metric with its samples, as values: what the RPC and the text for Prometheus are made of."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple


class Kind(IntEnum):
    """How a metric behaves. The numbers are those of `sev.v1.MetricKind`."""

    GAUGE = 1
    """Goes up and down."""
    COUNTER = 2
    """Counts up from the daemon's start."""
    HISTOGRAM = 3
    """How often something took how long, counted up from the daemon's start."""


class Bucket(NamedTuple):
    """How many observations were at most so large.

    Attributes:
        most: Upper bound, inclusive; infinity in the last one.
        total: Observations up to it, those of the buckets before included.
    """

    most: float
    total: int


class Sample(NamedTuple):
    """One value of a metric.

    Attributes:
        labels: What it is about.
        value: The value of a gauge or counter; of a histogram the sum of all observations.
        buckets: Of a histogram, ascending.
    """

    labels: dict[str, str]
    value: float
    buckets: tuple[Bucket, ...] = ()

    @property
    def observations(self) -> int:
        """How many a histogram has."""
        return self.buckets[-1].total if self.buckets else 0


class Metric(NamedTuple):
    """A metric.

    Attributes:
        name: As Prometheus has it, such as "sevd_calls_total"; units are base units and stand in the name.
        help: One sentence.
        kind: How it behaves.
        samples: Its values.
    """

    name: str
    help: str
    kind: Kind
    samples: tuple[Sample, ...]


def gauge(name: str, text: str, value: float) -> Metric:
    """A gauge without labels."""
    return Metric(name, text, Kind.GAUGE, (Sample({}, value),))
