"""Percentiles and comparisons of the launch benchmark."""

import pytest

from bench.figures import Added, added, figures, percentile, times_cheaper
from bench.report import targets


def test_a_percentile_lies_between_the_values_it_falls_between() -> None:
    assert percentile([10], 0.99) == 10
    assert percentile([0, 10], 0.5) == 5
    assert percentile(list(range(101)), 0.99) == 99
    with pytest.raises(ValueError, match="nothing"):
        percentile([], 0.5)


def test_figures_are_milliseconds_and_do_not_depend_on_the_order() -> None:
    sample = [3_000_000, 1_000_000, 2_000_000]
    found = figures(sample)
    assert (found.n, found.p50_ms, found.mean_ms, found.least_ms, found.most_ms) == (3, 2.0, 2.0, 1.0, 3.0)
    assert figures(sorted(sample)) == found


def test_what_is_added_is_the_difference_of_the_same_percentile() -> None:
    bare, way = figures([1_000_000] * 100), figures([1_500_000] * 99 + [9_000_000])
    assert added(way, bare) == Added(p50_ms=0.5, p90_ms=0.5, p99_ms=0.575, ratio_p50=1.5)


def test_times_cheaper_is_unknown_when_a_way_is_missing_or_adds_nothing() -> None:
    costs = {"agentcg": Added(2.0, 3.0, 4.0, 1.2), "systemd-run": Added(100.0, 1.0, 1.0, 9.0)}
    assert times_cheaper(costs, "agentcg", "systemd-run") == 50.0
    assert times_cheaper({"agentcg": costs["agentcg"]}, "agentcg", "systemd-run") is None
    assert times_cheaper(costs | {"agentcg": Added(-0.1, 0, 0, 1.0)}, "agentcg", "systemd-run") is None


def result(times: float | None, added_p50_ms: float = 0.5) -> dict[str, object]:
    latency = {
        "systemd_run_adds_times_agentcg": times,
        "added_to_bare": {"agentcg": {"p50_ms": added_p50_ms, "p99_ms": 2.5}},
    }
    return {
        "spaced": latency,
        "back_to_back": latency,
        "at_rest": {"rss_mb": 50.0, "cpu_percent": 0.6},
        "in_flight": {"cgroups": 999},
        "rate": {"failures": 0, "achieved_per_s": 199.5},
    }


def test_natively_the_promises_are_absolute_times() -> None:
    met = {target.name: target.met for target in targets(result(None))}
    assert met == {
        "spaced: agentcg adds at p50, ms": True,
        "spaced: agentcg adds at p99, ms": False,
        "back_to_back: agentcg adds at p50, ms": True,
        "back_to_back: agentcg adds at p99, ms": False,
        "RSS at rest, MB": True,
        "CPU at rest, percent": False,
        "calls in flight": False,
        "launches a second, sustained": True,
    }


def test_where_systemd_runs_the_promise_is_the_comparison() -> None:
    met = {target.name: target.met for target in targets(result(19.0))}
    assert met["spaced: systemd-run adds, times what agentcg adds"] is False
    assert not any(name.endswith("p50, ms") for name in met)


def test_one_failed_launch_breaks_the_sustained_rate() -> None:
    failing = result(None) | {"rate": {"failures": 1, "achieved_per_s": 200.0}}
    assert not next(target for target in targets(failing) if target.name.startswith("launches")).met
