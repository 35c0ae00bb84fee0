"""What a row of the catalogue is made of."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

PREFIX: Final = "agentcgroup_"


class MetricType(StrEnum):
    GAUGE = "gauge"
    COUNTER = "counter"
    HISTOGRAM = "histogram"


class Group(StrEnum):
    """A chapter of the reference page."""

    HOST = "Host"
    SESSIONS = "Sessions"
    CALLS = "Calls"
    DAEMON = "The daemon itself"
    HISTORY = "History"


@dataclass(frozen=True, slots=True)
class Label:
    """A label and the values it can have.

    `values` is empty when `source` says where they come from instead.
    """

    name: str
    values: tuple[str, ...] = ()
    source: str = ""


@dataclass(frozen=True, slots=True)
class Metric:
    """One row of the catalogue.

    `missing` says when the metric, or a series of it, is absent; "" is never.
    """

    group: Group
    name: str
    type: MetricType
    unit: str
    help: str
    labels: tuple[Label, ...] = ()
    missing: str = ""

    @property
    def label_names(self) -> tuple[str, ...]:
        return tuple(label.name for label in self.labels)


def gauge(
    group: Group, name: str, unit: str, help: str, labels: tuple[Label, ...] = (), missing: str = ""
) -> Metric:
    """A value that rises and falls."""
    return Metric(group, PREFIX + name, MetricType.GAUGE, unit, help, labels, missing)


def counter(
    group: Group, name: str, unit: str, help: str, labels: tuple[Label, ...] = (), missing: str = ""
) -> Metric:
    """A count since the daemon (or the session) began; `name` without `_total`."""
    return Metric(group, f"{PREFIX}{name}_total", MetricType.COUNTER, unit, help, labels, missing)


def histogram(group: Group, name: str, unit: str, help: str, labels: tuple[Label, ...]) -> Metric:
    """Observations in buckets."""
    return Metric(group, PREFIX + name, MetricType.HISTOGRAM, unit, help, labels)
