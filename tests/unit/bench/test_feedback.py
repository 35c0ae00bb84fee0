"""Which figures of the feedback benchmark are promises, and when one is kept."""

from typing import Any

from bench.feedback import BARE, report, targets

FIGURES: dict[str, Any] = {
    "n": 1000, "p50_ms": 1.0, "p90_ms": 2.0, "p99_ms": 3.0, "mean_ms": 1.0, "least_ms": 0.5, "most_ms": 50.0,
}  # fmt: skip


def warning(left_ms: int, before_end_ms: float | None) -> dict[str, Any]:
    after_ms = None if before_end_ms is None else 1.0
    return {
        "limit": "session",
        "maximum_mib": 48,
        "left_ms": left_ms,
        "warned_after_ms": after_ms,
        "before_end_ms": before_end_ms,
    }


def test_messages_are_promised_where_nothing_is_emulated() -> None:
    slow = FIGURES | {"p99_ms": 20.0}
    messages = {"ended": FIGURES, "entered": slow, BARE: slow}
    found = targets({"where": "native", "messages": messages})
    assert [(each.got, each.met) for each in found] == [(3.0, True), (20.0, False)]
    assert targets({"where": "guest", "messages": messages}) == []


def test_a_warning_is_owed_where_growth_left_time_for_it() -> None:
    in_time = [warning(1000, 900.0), warning(200, 0.5), warning(5, None)]
    (met,) = targets({"where": "guest", "messages": {}, "warnings": in_time})
    assert (met.got, met.met) == (2, True)
    for late in (warning(200, None), warning(500, -1.0)):
        (missed,) = targets({"where": "guest", "messages": {}, "warnings": [*in_time, late]})
        assert (missed.got, missed.met) == (2, False)


def test_the_report_shows_every_figure_and_what_was_not_warned() -> None:
    result = {
        "where": "guest", "kernel": "7.3", "cpus": 1, "load_average": {"before": (0.5, 0, 0)}, "targets": [],
        "messages": {"ended": FIGURES}, "warnings": [warning(200, 0.5), warning(5, None)],
        "soft_limit_to_warning": {"session": FIGURES},
    }  # fmt: skip
    text = "\n".join(report(result))
    assert "ended" in text and "soft limit reached, session" in text and "not warned" in text
