"""PromQL against the metric catalogue: which metrics and labels an expression uses, and which labels it results in."""

import promql_parser as promql

from agentcgroup.daemon.metrics.catalog import BY_NAME
from agentcgroup.daemon.metrics.metric import Label, Metric, MetricType

# Labels that Prometheus itself adds to everything it scrapes.
TARGET_LABELS = frozenset({"instance", "job"})

_EQUALITY = (promql.MatchOp.Equal, promql.MatchOp.NotEqual)
_SCALARS = (promql.NumberLiteral, promql.StringLiteral)


class Unfounded(Exception):
    """An expression that asks for something the daemon does not serve."""


def labels_of(expr: promql.Expr) -> frozenset[str]:
    """Labels of what `expr` results in. Raises Unfounded for a metric, label or value that is not in the catalogue."""
    match expr:
        case promql.VectorSelector():
            return _selected(expr)
        case promql.MatrixSelector():
            return _selected(expr.vector_selector)
        case promql.ParenExpr() | promql.SubqueryExpr() | promql.UnaryExpr():
            return labels_of(expr.expr)
        case promql.Call():
            labels = frozenset[str]().union(*(labels_of(argument) for argument in expr.args))
            return labels - {"le"} if expr.func.name == "histogram_quantile" else labels
        case promql.AggregateExpr():
            return _aggregated(expr)
        case promql.BinaryExpr():
            left, right = labels_of(expr.lhs), labels_of(expr.rhs)
            return right if isinstance(expr.lhs, _SCALARS) or _is_scalar(expr.lhs) else left
        case promql.NumberLiteral() | promql.StringLiteral():
            return frozenset()
        case _:
            raise Unfounded(f"no rule for {type(expr).__name__}: {expr}")


def _is_scalar(expr: promql.Expr) -> bool:
    return isinstance(expr, promql.Call) and expr.func.name in ("time", "scalar", "vector")


def _aggregated(expr: promql.AggregateExpr) -> frozenset[str]:
    inner = labels_of(expr.expr)
    if expr.modifier is None:
        return frozenset()
    named = frozenset(expr.modifier.labels)
    if not named <= inner:
        raise Unfounded(f"{expr} groups by {sorted(named - inner)}, which nothing inside it has")
    return named if expr.modifier.type == promql.AggModifierType.By else inner - named


def _selected(selector: promql.VectorSelector) -> frozenset[str]:
    metric = _metric(selector.name)
    labels = {label.name: label for label in metric.labels}
    for matcher in selector.matchers.matchers:
        if matcher.name in TARGET_LABELS:
            continue
        if matcher.name not in labels:
            raise Unfounded(f"{metric.name} has no label {matcher.name}")
        values = [matcher.value] if matcher.op in _EQUALITY else matcher.value.split("|")
        _check(metric, labels[matcher.name], values)
    buckets = {"le"} if f"{metric.name}_bucket" == selector.name else set()
    return frozenset(labels) | TARGET_LABELS | buckets


def _check(metric: Metric, label: Label, values: list[str]) -> None:
    for value in values:
        if label.values and value not in label.values and value != ".*":
            raise Unfounded(f"{metric.name}: {label.name} is never {value!r}")


def _metric(name: str | None) -> Metric:
    if name is None:
        raise Unfounded("a selector without a metric")
    for suffix in ("_bucket", "_sum", "_count"):
        base = BY_NAME.get(name.removesuffix(suffix)) if name.endswith(suffix) else None
        if base is not None and base.type is MetricType.HISTOGRAM:
            return base
    if name not in BY_NAME or BY_NAME[name].type is MetricType.HISTOGRAM:
        raise Unfounded(f"the daemon serves no {name}")
    return BY_NAME[name]
