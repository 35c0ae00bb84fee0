"""The Grafana dashboard as JSON: `python -m dashboards.build > dashboards/agentcgroup.json`, in the tree's root.

The JSON is what users load and is committed; a test compares the two, and every expression with the
metric catalogue. Standard library only. `queries` and `substituted` are how tests get at the
expressions.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any, Final

from dashboards.calls import CALLS_ROW
from dashboards.daemon import DAEMON_ROW, ENFORCEMENT_ROW
from dashboards.panel import HOST, Kind, Panel, Query
from dashboards.usage import HOST_ROW, SESSIONS_ROW

SCHEMA_VERSION: Final = 41
COLUMNS: Final = 24

DATASOURCE: Final = {"type": "prometheus", "uid": "${ds}"}

ROWS: Final = (HOST_ROW, SESSIONS_ROW, CALLS_ROW, DAEMON_ROW, ENFORCEMENT_ROW)


# ---- from panels to Grafana's JSON --------------------------------------------------------------------


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana loads it."""
    return {
        "annotations": {"list": [_starts()]},
        "description": "Tool calls of coding agents: what they may use, what they use, how they end.",
        "editable": True,
        "fiscalYearStartMonth": 0,
        "graphTooltip": 1,
        "links": [],
        "panels": list(_panels()),
        "refresh": "30s",
        "schemaVersion": SCHEMA_VERSION,
        "tags": ["agentcgroup"],
        "templating": {"list": _variables()},
        "time": {"from": "now-1h", "to": "now"},
        "timepicker": {},
        "timezone": "browser",
        "title": "AgentCgroup",
        "uid": "agentcgroup",
        "weekStart": "",
    }


def _starts() -> dict[str, Any]:
    return {
        "datasource": DATASOURCE,
        "enable": True,
        "iconColor": "blue",
        "name": "Start of agentcgroupd",
        "target": {"expr": f"agentcgroup_start_time_seconds{{{HOST}}} * 1000", "refId": "Anno"},
        "titleFormat": "agentcgroupd started on {{instance}}",
        "useValueForTime": True,
    }


def _variables() -> list[dict[str, Any]]:
    source = {"name": "ds", "label": "Data source", "type": "datasource", "query": "prometheus", "hide": 0}
    return [
        source,
        _variable("instance", "Host", "label_values(agentcgroup_build_info, instance)"),
        _variable("session", "Session", f"label_values(agentcgroup_session_info{{{HOST}}}, session)"),
    ]


def _variable(name: str, label: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": DATASOURCE,
        "definition": query,
        "query": {"qryType": 1, "query": query, "refId": f"variable-{name}"},
        "includeAll": True,
        # Everything, also what appears while the dashboard is open.
        "allValue": ".*",
        "multi": True,
        "current": {"text": "All", "value": "$__all"},
        # When the time range changes, since sessions come and go.
        "refresh": 2,
        "sort": 1,
        "hide": 0,
        "regex": "",
    }


def _panels() -> Iterator[dict[str, Any]]:
    number, top = 0, 0
    for row in ROWS:
        number += 1
        place = {"h": 1, "w": COLUMNS, "x": 0, "y": top}
        yield {
            "id": number,
            "type": "row",
            "title": row.title,
            "collapsed": False,
            "gridPos": place,
            "panels": [],
        }
        top, left, height = top + 1, 0, 0
        for panel in row.panels:
            if left + panel.width > COLUMNS:
                top, left, height = top + height, 0, 0
            number += 1
            yield _panel(panel, number, {"h": panel.height, "w": panel.width, "x": left, "y": top})
            left, height = left + panel.width, max(height, panel.height)
        top += height


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit, **panel.extra}
    if panel.kind is Kind.TIMESERIES:
        stacking = {"group": "A", "mode": "normal" if panel.stacked else "none"}
        defaults["custom"] = {
            "fillOpacity": 30 if panel.stacked else 5,
            "lineWidth": 1,
            "showPoints": "auto",
            "stacking": stacking,
        }
        defaults.setdefault("min", 0)
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": DATASOURCE,
        "gridPos": place,
        "fieldConfig": {
            "defaults": defaults,
            "overrides": [
                {
                    "matcher": {"id": "byName", "options": column},
                    "properties": [{"id": "unit", "value": unit}],
                }
                for column, unit in panel.units.items()
            ],
        },
        "options": _options(panel),
        "targets": [_target(panel, index, query) for index, query in enumerate(panel.queries)],
        "transformations": _transformations(panel),
    }


def _options(panel: Panel) -> dict[str, Any]:
    match panel.kind:
        case Kind.STAT:
            return {
                "colorMode": "value",
                "graphMode": "area",
                "justifyMode": "auto",
                "orientation": "auto",
                "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
                "percentChangeColorMode": "standard",
                "showPercentChange": False,
                "textMode": panel.text,
                "wideLayout": True,
            }
        case Kind.TIMESERIES:
            return {
                "legend": {
                    "calcs": ["lastNotNull", "max"],
                    "displayMode": "table",
                    "placement": "bottom",
                    "showLegend": True,
                },
                "tooltip": {"mode": "multi", "sort": "desc"},
            }
        case Kind.HEATMAP:
            return {
                "calculate": False,
                "cellGap": 1,
                "color": {
                    "exponent": 0.5,
                    "fill": "dark-orange",
                    "mode": "scheme",
                    "reverse": False,
                    "scheme": "Oranges",
                    "steps": 64,
                },
                "exemplars": {"color": "rgba(255,0,255,0.7)"},
                "filterValues": {"le": 1e-9},
                "legend": {"show": True},
                "rowsFrame": {"layout": "auto"},
                "showValue": "never",
                "tooltip": {"mode": "single", "yHistogram": False},
                "yAxis": {"axisPlacement": "left", "unit": "bytes"},
            }
        case Kind.TABLE:
            return {"cellHeight": "sm", "frameIndex": 0, "showHeader": True}


def _target(panel: Panel, index: int, query: Query) -> dict[str, Any]:
    table = panel.kind is Kind.TABLE
    return {
        "datasource": DATASOURCE,
        "editorMode": "code",
        "expr": query.expr,
        "format": "table" if table else "heatmap" if panel.kind is Kind.HEATMAP else "time_series",
        "instant": table,
        "range": not table,
        "legendFormat": query.legend,
        "refId": chr(ord("A") + index),
    }


def _transformations(panel: Panel) -> list[dict[str, Any]]:
    if panel.kind is not Kind.TABLE:
        return []
    hidden = {"Time": True, "Value #A": True} if len(panel.queries) > 1 else {"Time": True}
    return [
        {"id": "merge", "options": {}},
        {"id": "organize", "options": {"excludeByName": hidden, "renameByName": dict(panel.renamed)}},
    ]


# ---- for tests ----------------------------------------------------------------------------------------


def queries(board: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Every expression of a dashboard with the title of what shows it."""
    for panel in board["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]
    for annotation in board["annotations"]["list"]:
        yield annotation["name"], annotation["target"]["expr"]


def substituted(expr: str, *, interval: str, range: str, **variables: str) -> str:
    """`expr` with Grafana's variables replaced, `.*` for those not given."""
    values = {"__rate_interval": interval, "__range": range, "instance": ".*", "session": ".*", **variables}
    for name in sorted(values, key=len, reverse=True):
        expr = expr.replace(f"${name}", values[name])
    return expr


if __name__ == "__main__":
    json.dump(dashboard(), sys.stdout, indent=2)
    sys.stdout.write("\n")
