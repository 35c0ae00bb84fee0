"""The reference page of all metrics, printed from the catalogue."""

from collections.abc import Iterator
from typing import Final

from agentcgroup.daemon.metrics.catalog import METRICS
from agentcgroup.daemon.metrics.metric import Group, Label, Metric

_INTRODUCTION: Final = """\
# Metrics

<!-- Printed by `python -m agentcgroup.daemon.metrics`; a test compares it with daemon/metrics/catalog.py. -->

agentcgroupd serves these at `http://127.0.0.1:9464/metrics` (`metrics.address` and `metrics.port` in its
configuration), in the text format of Prometheus and as OpenMetrics. Everything is read when it is asked for;
nothing is gathered in between.

- A figure that the kernel does not give is absent. It is never 0.
- Label values are closed lists, so every series of a counter is there from the start, at 0. The one open label
  is `session`; its series end with the session.
- No label names a call or a process: `agentcg history` has every ended call, `agentcg call` every live one.
- Units are seconds, bytes and cores (CPUs).
"""


def page() -> str:
    """docs/metrics.md."""
    return "\n".join([_INTRODUCTION, *(line for group in Group for line in _chapter(group))])


def _chapter(group: Group) -> Iterator[str]:
    yield f"## {group}"
    yield ""
    yield "| metric | type | labels | meaning |"
    yield "|---|---|---|---|"
    labels: dict[str, Label] = {}
    for metric in METRICS:
        if metric.group is group:
            yield _row(metric)
            labels |= {_key(label): label for label in metric.labels}
    yield ""
    for key, label in labels.items():
        values = ", ".join(f"`{value}`" for value in label.values) if label.values else label.source
        yield f"- {key}: {values}"
    if labels:
        yield ""


def _row(metric: Metric) -> str:
    labels = ", ".join(f"`{name}`" for name in metric.label_names)
    missing = f" Absent when {metric.missing}." if metric.missing else ""
    return f"| `{metric.name}` | {metric.type} | {labels} | {metric.help}{missing} |"


def _key(label: Label) -> str:
    # `reason` and `state` mean different things in different metrics.
    users = [metric.name for metric in METRICS if label in metric.labels]
    others = {other for metric in METRICS for other in metric.labels if other.name == label.name}
    return f"`{label.name}`" if len(others) == 1 else f"`{label.name}` of `{'`, `'.join(users)}`"
