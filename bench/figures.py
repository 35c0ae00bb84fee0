"""Figures of a sample: percentiles, and how one way of starting compares with another."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

NS_PER_MS = 1_000_000


@dataclass(frozen=True, slots=True)
class Figures:
    """Durations of one way of starting, in milliseconds."""

    n: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    mean_ms: float
    least_ms: float
    most_ms: float


@dataclass(frozen=True, slots=True)
class Added:
    """What a way of starting adds to the bare one: differences of the same percentile, and the ratio of
    medians.
    """

    p50_ms: float
    p90_ms: float
    p99_ms: float
    ratio_p50: float


def percentile(ordered: list[int], share: float) -> float:
    """The value below which `share` (0 to 1) of an ordered, non-empty sample lies; between two, in
    proportion.
    """
    if not ordered:
        raise ValueError("a percentile of nothing")
    place = (len(ordered) - 1) * share
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def figures(durations_ns: Iterable[int]) -> Figures:
    """Figures of a non-empty sample in nanoseconds."""
    ordered = sorted(durations_ns)
    p50, p90, p99 = (percentile(ordered, share) / NS_PER_MS for share in (0.5, 0.9, 0.99))
    return Figures(
        n=len(ordered),
        p50_ms=round(p50, 4),
        p90_ms=round(p90, 4),
        p99_ms=round(p99, 4),
        mean_ms=round(sum(ordered) / len(ordered) / NS_PER_MS, 4),
        least_ms=round(ordered[0] / NS_PER_MS, 4),
        most_ms=round(ordered[-1] / NS_PER_MS, 4),
    )


def added(way: Figures, bare: Figures) -> Added:
    """What `way` costs more than `bare`."""
    return Added(
        p50_ms=round(way.p50_ms - bare.p50_ms, 4),
        p90_ms=round(way.p90_ms - bare.p90_ms, 4),
        p99_ms=round(way.p99_ms - bare.p99_ms, 4),
        ratio_p50=round(way.p50_ms / bare.p50_ms, 3),
    )


def times_cheaper(costs: Mapping[str, Added], cheap: str, dear: str) -> float | None:
    """How many times what `dear` adds is what `cheap` adds, at the median; None when one is missing or adds
    nothing.
    """
    if cheap not in costs or dear not in costs or costs[cheap].p50_ms <= 0:
        return None
    return round(costs[dear].p50_ms / costs[cheap].p50_ms, 1)
