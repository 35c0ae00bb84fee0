"""The catalogue keeps its own rules, and the committed page is the catalogue's."""

import re
from pathlib import Path

import pytest

from agentcgroup.daemon.metrics.catalog import METRICS
from agentcgroup.daemon.metrics.metric import PREFIX, Metric, MetricType
from agentcgroup.daemon.metrics.reference import page

ROOT = Path(__file__).resolve().parents[4]
UNITS = {"", "bytes", "seconds", "cores"}
each = pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)


def test_the_committed_page_is_what_the_catalogue_prints() -> None:
    committed = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert committed == page(), "run: python -m agentcgroup.daemon.metrics > docs/metrics.md"


def test_no_two_metrics_share_a_name() -> None:
    names = [metric.name for metric in METRICS]
    assert len(names) == len(set(names)) > 40


@each
def test_a_name_says_owner_unit_and_kind(metric: Metric) -> None:
    assert re.fullmatch(rf"{PREFIX}[a-z]+(_[a-z]+)*", metric.name)
    assert metric.unit in UNITS
    bare = metric.name.removesuffix("_total")
    assert (bare != metric.name) == (metric.type is MetricType.COUNTER)
    assert not metric.unit or bare.endswith(f"_{metric.unit}")
    assert not bare.endswith(("_count", "_sum", "_bucket", "_created"))


@each
def test_help_is_whole_sentences(metric: Metric) -> None:
    assert metric.help.endswith(".")
    assert metric.help[0].isupper() or metric.help.startswith(("memory.max", "1 "))
    assert "|" not in metric.help and "\n" not in metric.help


@each
def test_labels_are_closed_and_name_neither_call_nor_process(metric: Metric) -> None:
    for label in metric.labels:
        assert bool(label.values) != bool(label.source), label
        assert label.name not in ("call", "call_id", "pid", "le", "job", "instance")
        assert len(label.values) == len(set(label.values)) < 40


def test_a_host_full_of_sessions_stays_within_what_prometheus_scrapes_in_a_moment() -> None:
    per_session = sum(
        max(1, *(len(label.values) for label in metric.labels))
        for metric in METRICS
        if "session" in metric.label_names and metric.name != f"{PREFIX}session_info"
    )
    assert per_session <= 30
