"""The committed dashboard is the built one, keeps house rules, and asks only for what the daemon serves."""

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import promql_parser
import pytest

from agentcgroup.daemon.metrics.catalog import METRICS
from dashboards.build import COLUMNS, dashboard, queries, substituted
from tests.unit.dashboards.promql import Unfounded, labels_of

FOLDER = Path(__file__).resolve().parents[3] / "dashboards"
BOARD: dict[str, Any] = json.loads((FOLDER / "agentcgroup.json").read_text(encoding="utf-8"))
PANELS: list[dict[str, Any]] = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
ROWS: list[dict[str, Any]] = [panel for panel in BOARD["panels"] if panel["type"] == "row"]

each_panel = pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
each_query = pytest.mark.parametrize(("title", "expr"), list(queries(BOARD)))


def parsed(expr: str) -> promql_parser.Expr:
    return promql_parser.parse(substituted(expr, interval="1m", range="1h"))


def test_the_committed_dashboard_is_the_built_one() -> None:
    built = json.loads(json.dumps(dashboard()))
    assert built == BOARD, "run: python -m dashboards.build > dashboards/agentcgroup.json"


@each_query
def test_an_expression_asks_only_for_what_the_daemon_serves(title: str, expr: str) -> None:
    labels_of(parsed(expr))


@pytest.mark.parametrize(
    "expr",
    [
        "agentcgroup_nothing",
        "agentcgroup_call_duration_seconds",
        "agentcgroup_sessions_bucket",
        'agentcgroup_sessions{session="a"}',
        'agentcgroup_answers_total{decision="eaten"}',
        'agentcgroup_answers_total{decision=~"granted|eaten"}',
        "sum by (verdict) (agentcgroup_sessions)",
        '{job="agentcgroup"}',
    ],
)
def test_the_check_itself_finds_what_is_unfounded(expr: str) -> None:
    with pytest.raises(Unfounded):
        labels_of(parsed(expr))


@each_panel
def test_a_legend_names_only_labels_that_its_expression_results_in(panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        named = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
        assert named <= labels_of(parsed(target["expr"])), target


@each_panel
def test_every_panel_says_what_it_shows(panel: dict[str, Any]) -> None:
    assert panel["title"] and panel["fieldConfig"]["defaults"]["unit"]
    assert panel["description"].endswith(".")
    assert panel["datasource"]["uid"] == "${ds}"
    assert panel["targets"]
    assert all(target["datasource"]["uid"] == "${ds}" for target in panel["targets"])


@each_panel
def test_queries_of_a_panel_have_names_of_their_own(panel: dict[str, Any]) -> None:
    names = [target["refId"] for target in panel["targets"]]
    assert len(names) == len(set(names))


@each_query
def test_rates_follow_the_scrape_interval(title: str, expr: str) -> None:
    for function, window in re.findall(r"\b(rate|irate|increase|delta)\([^\[]*\[([^\]]+)\]", expr):
        assert window == "$__rate_interval" or (function, window) == ("increase", "$__range"), expr


def test_panels_and_rows_have_ids_of_their_own() -> None:
    ids = [panel["id"] for panel in BOARD["panels"]]
    assert len(ids) == len(set(ids))
    titles = [(panel["title"], panel["description"]) for panel in PANELS]
    assert len(titles) == len(set(titles))


def test_no_panel_covers_another_or_leaves_the_grid() -> None:
    for panel in BOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] >= 0 and place["x"] + place["w"] <= COLUMNS and place["h"] > 0, panel["title"]
    for one, other in combinations(BOARD["panels"], 2):
        a, b = one["gridPos"], other["gridPos"]
        apart = (
            a["x"] + a["w"] <= b["x"]
            or b["x"] + b["w"] <= a["x"]
            or a["y"] + a["h"] <= b["y"]
            or b["y"] + b["h"] <= a["y"]
        )
        assert apart, f"{one['title']} and {other['title']} overlap"


def test_the_rows_are_the_questions_an_operator_has() -> None:
    assert [row["title"] for row in ROWS] == [
        "Host",
        "Sessions",
        "Calls",
        "The daemon itself",
        "What is not enforced",
    ]


def test_every_variable_is_defined_and_used() -> None:
    defined = {variable["name"] for variable in BOARD["templating"]["list"]}
    text = json.dumps([BOARD["panels"], BOARD["annotations"], BOARD["templating"]])
    used = set(re.findall(r"\$\{?([a-z]\w*)", text)) - {"__rate_interval"}
    assert used == defined == {"ds", "instance", "session"}


def test_variables_take_their_values_from_metrics_that_exist() -> None:
    for variable in BOARD["templating"]["list"]:
        if variable["type"] != "query":
            continue
        match = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
        assert match is not None
        assert match[2] in labels_of(parsed(match[1]))


def test_every_metric_of_a_session_and_every_count_is_on_the_dashboard() -> None:
    text = " ".join(expr for _, expr in queries(BOARD))
    for metric in METRICS:
        if metric.name.endswith(("_limit", "_limit_cores")) or metric.name in LEFT_OUT:
            continue
        assert metric.name in text, f"{metric.name} is served and shown nowhere"


# Limits stand beside what they limit in the tables; these are for alerts and scripts.
LEFT_OUT = {
    "agentcgroup_build_info",
    "agentcgroup_host_cpu_capacity_cores",
    "agentcgroup_session_agent_memory_bytes",
    "agentcgroup_sessions_opened_total",
    "agentcgroup_sessions_closed_total",
    "agentcgroup_sessions_adopted_total",
    "agentcgroup_calls_adopted_total",
    "agentcgroup_history_written_total",
    "agentcgroup_history_expired_total",
    "agentcgroup_history_events_written_total",
}


def test_provisioning_and_compose_name_the_same_places() -> None:
    compose = (FOLDER / "docker-compose.yaml").read_text(encoding="utf-8")
    provider = (FOLDER / "provisioning" / "dashboards" / "agentcgroup.yaml").read_text(encoding="utf-8")
    source = (FOLDER / "provisioning" / "datasources" / "prometheus.yaml").read_text(encoding="utf-8")
    (path,) = re.findall(r"path: (\S+)", provider)
    assert f"./agentcgroup.json:{path}/agentcgroup.json:ro" in compose
    (url,) = re.findall(r"url: http://(\S+)", source)
    assert f"--web.listen-address={url}" in compose
    for file in re.findall(r"^ +- (\./[^:]+):", compose, re.MULTILINE):
        assert (FOLDER / file).exists(), file
    (interval,) = re.findall(r"timeInterval: (\S+)", source)
    assert f"scrape_interval: {interval}" in (FOLDER / "prometheus.yaml").read_text(encoding="utf-8")
