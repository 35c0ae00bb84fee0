"""What a dashboard is made of, and the words its expressions share."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

# Selectors: of one or more hosts, and of sessions on them.
HOST: Final = 'instance=~"$instance"'
SESSION: Final = 'instance=~"$instance", session=~"$session"'


class Kind(StrEnum):
    STAT = "stat"
    TIMESERIES = "timeseries"
    TABLE = "table"
    HEATMAP = "heatmap"


@dataclass(frozen=True, slots=True)
class Query:
    """One expression and the name of its series."""

    expr: str
    legend: str = "__auto"


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel. `extra` is merged into `fieldConfig.defaults`; `renamed` names the columns of a table."""

    title: str
    description: str
    kind: Kind
    unit: str
    queries: tuple[Query, ...]
    width: int = 8
    height: int = 8
    stacked: bool = False
    # What a stat writes: "auto" is the value, "name" the name of the series.
    text: str = "auto"
    extra: Mapping[str, Any] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    units: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Row:
    title: str
    panels: tuple[Panel, ...]


def quantiles(metric: str, label: str, selector: str = HOST) -> tuple[Query, ...]:
    """The median and the 95th percentile of a histogram, for each value of `label`."""
    return tuple(
        Query(
            f"histogram_quantile({quantile}, "
            f"sum by (le, {label}) (rate({metric}_bucket{{{selector}}}[$__rate_interval])))",
            f"{{{{{label}}}}} p{quantile[2:].ljust(2, '0')}",
        )
        for quantile in ("0.5", "0.95")
    )
