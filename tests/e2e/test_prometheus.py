"""A real Prometheus scrapes a real daemon while calls run, and every query of the dashboard gets an answer."""

import json
import math
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from dashboards.build import queries, substituted
from tests.e2e.prometheus_server import Prometheus, running_prometheus
from tests.running import RunningDaemon, running_daemon, wait_until

ROOT = Path(__file__).resolve().parents[2]
BOARD = json.loads((ROOT / "dashboards" / "agentcgroup.json").read_text(encoding="utf-8"))

pytestmark = [
    pytest.mark.e2e,
    # The first test waits for the scrapes that all of them ask about.
    pytest.mark.timeout(600),
    pytest.mark.skipif(os.geteuid() != 0, reason="making cgroups needs root"),
    pytest.mark.skipif(
        shutil.which("prometheus") is None, reason="prometheus is not installed: apt install prometheus"
    ),
]

SCRAPES = 8
ENDED = "sum(agentcgroup_calls_ended_total)"

# Panels that may be empty on a host, and the capability whose absence is the reason (agentcg check).
NEEDS = {
    "Memory of limit": "memory",
    "Memory": "memory",
    "Limits reached": "memory",
    "Processes": "pids",
    "CPU": "cpu",
    "Held back by a CPU cap": "cpu",
    "Waiting for memory or CPU": "psi",
    "Peak memory": "memory_peak",
    "Peak memory, all calls": "memory",
    "Memory of the host": "memory",
    "Sessions now": "memory_peak",
}
# Panels that are empty when all is well.
EMPTY_IS_GOOD = {
    "Missing capabilities": "this host can do everything",
    "Time in the queue": "nobody had to wait",
    "Held back for others": "nobody took what others were promised",
    "Held for other sessions": "the guard is off unless switched on",
}


@dataclass(frozen=True, slots=True)
class Scene:
    """A daemon that has done every kind of thing, and what Prometheus saw of it from `start_s` to `end_s`."""

    daemon: RunningDaemon
    prometheus: Prometheus
    page_url: str
    rounds: int
    # Calls that the kernel stopped at their memory.max: none where there is no memory controller.
    stopped: int
    start_s: float
    end_s: float


def play_round(daemon: RunningDaemon) -> None:
    """Calls that end well, badly, at their deadline, leave a process behind, or are refused."""
    calls = [
        (0, daemon.launch("alpha", "true", options=("--class", "interactive"))),
        (3, daemon.launch("alpha", "sh", "-c", "exit 3", options=("--class", "batch"))),
        (0, daemon.launch("beta", "sh", "-c", "sleep 300 >&- 2>&- & exit 0")),
        (-9, daemon.launch("beta", "sleep", "300", options=("--timeout", "1s"))),
        (120, daemon.launch("beta", "true", options=("--memory", "64G"))),
    ]
    for status, call in calls:
        _, errors = call.communicate(timeout=120)
        assert call.returncode == status, (call.args, call.returncode, errors)


def play_overrun(daemon: RunningDaemon) -> None:
    """A call that takes 256 MiB and had declared 64 MiB at most."""
    hungry = (sys.executable, "-c", "bytearray(256 << 20)")
    call = daemon.launch("alpha", *hungry, options=("--memory", "64M", "--memory-max", "64M"))
    _, errors = call.communicate(timeout=120)
    assert call.returncode == -9, (call.returncode, errors)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with running_daemon(tmp_path_factory.mktemp("metrics")) as daemon:
        url = daemon.metrics_url
        target = url.removeprefix("http://").removesuffix("/metrics")
        with running_prometheus(tmp_path_factory.mktemp("prometheus"), target) as prometheus:
            with daemon.operator() as operator:
                operator.create_session("alpha", memory="1G", cpu="1", priority="high")
                operator.create_session("beta", memory="1G", cpu="1", priority="low")
            start_s, rounds = time.time(), 0
            while (prometheus.one("sum_over_time(up[10m])") or 0) < SCRAPES:
                play_round(daemon)
                rounds += 1
                assert time.time() < start_s + 300, f"{SCRAPES} scrapes took too long"
            stopped = 0 if is_missing(prometheus, "memory") else 1
            if stopped:
                play_overrun(daemon)
            # The last calls are scraped twice, so that they are in the rates too.
            wait_until(
                lambda: (prometheus.one(f"min_over_time({ENDED}[4s:2s])") or 0) == 4 * rounds + stopped,
                60,
                f"{4 * rounds + stopped} calls being scraped",
            )
            yield Scene(daemon, prometheus, url, rounds, stopped, start_s, time.time())


def is_missing(prometheus: Prometheus, capability: str) -> bool:
    return prometheus.one(f'agentcgroup_capability_available{{capability="{capability}"}}') == 0


@pytest.mark.parametrize(("title", "expr"), list(queries(BOARD)))
def test_a_query_of_the_dashboard_has_an_answer(scene: Scene, title: str, expr: str) -> None:
    plain = substituted(expr, interval="10s", range="10m")
    series = scene.prometheus.range(plain, scene.start_s, scene.end_s)
    if not series:
        reason = EMPTY_IS_GOOD.get(title) or NEEDS.get(title)
        assert reason is not None, f"{title}: no data for {plain}"
        assert title in EMPTY_IS_GOOD or is_missing(scene.prometheus, NEEDS[title]), (
            f"{title}: no data for {plain}"
        )
        return
    for values in series:
        assert not any(map(math.isinf, values)), f"{title}: infinite values for {plain}"
    finite = [value for values in series for value in values if math.isfinite(value)]
    if "histogram_quantile" in expr and is_missing(scene.prometheus, NEEDS.get(title, "")):
        return
    if not finite and title in EMPTY_IS_GOOD:
        # A quantile of nothing is no number.
        return
    assert finite, f"{title}: only NaN for {plain}"
    assert min(finite) >= 0, f"{title}: {min(finite)} for {plain}"


def test_every_scrape_reached_the_daemon_and_was_whole(scene: Scene) -> None:
    # One may have come too late, on a machine that paused; a page that is not whole never comes.
    wait_until(lambda: scene.prometheus.one("up") == 1, 60, "a scrape that reaches the daemon")
    assert (scene.prometheus.one("sum_over_time(up[10m])") or 0) >= SCRAPES
    assert (scene.prometheus.one("scrape_samples_scraped") or 0) > 300
    assert scene.prometheus.one("scrape_samples_scraped - scrape_samples_post_metric_relabeling") == 0
    log = scene.prometheus.log.read_text()
    assert "duplicate" not in log and "out of order" not in log, log


def test_what_was_done_is_what_was_counted(scene: Scene) -> None:
    prometheus, rounds = scene.prometheus, scene.rounds
    ended = 4 * rounds + scene.stopped
    verdicts = prometheus.now("sum by (verdict) (agentcgroup_calls_ended_total) > 0")
    assert verdicts.pop((("verdict", "memory_limit_call"),), 0) == scene.stopped
    assert verdicts == {
        (("verdict", "ok"),): 2 * rounds,
        (("verdict", "exit_code"),): rounds,
        (("verdict", "deadline"),): rounds,
    }
    classes = prometheus.now("sum by (cpu_class) (agentcgroup_calls_ended_total) > 0")
    assert classes == {
        (("cpu_class", "interactive"),): rounds,
        (("cpu_class", "batch"),): rounds,
        (("cpu_class", "undeclared"),): 2 * rounds + scene.stopped,
    }
    assert prometheus.one('sum(agentcgroup_answers_total{decision="refused"})') == rounds
    assert prometheus.one('agentcgroup_answers_total{decision="granted"} > 0') == ended
    assert prometheus.one('agentcgroup_kills_total{reason="deadline"}') == rounds
    assert prometheus.one("agentcgroup_leftover_processes_total") == rounds
    assert prometheus.one('agentcgroup_placement_seconds_count{door="launcher"}') == ended
    assert prometheus.one("sum(agentcgroup_call_duration_seconds_count)") == ended
    assert (
        prometheus.one('agentcgroup_session_calls_ended_total{session="alpha"}')
        == 2 * rounds + scene.stopped
    )
    assert prometheus.one("agentcgroup_internal_errors_total") == 0
    wait_until(lambda: prometheus.one("agentcgroup_history_entries") == ended, 60, "the history")


def test_the_variables_of_the_dashboard_offer_what_lives(scene: Scene) -> None:
    assert scene.prometheus.label_values("agentcgroup_session_info", "session") == {"alpha", "beta"}
    assert len(scene.prometheus.label_values("agentcgroup_build_info", "instance")) == 1


def test_the_page_is_as_prometheus_wants_it(scene: Scene) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed: apt install promtool, or prometheus where it holds both")
    with urllib.request.urlopen(scene.page_url, timeout=30) as answer:
        page = answer.read()
    for command, text in (
        (["check", "metrics"], page),
        (["check", "config", str(ROOT / "dashboards" / "prometheus.yaml")], b""),
    ):
        done = subprocess.run([promtool, *command], input=text, capture_output=True, timeout=60)
        assert done.returncode == 0, (done.stdout + done.stderr).decode()


def test_a_removed_session_ends_its_series(scene: Scene) -> None:
    with scene.daemon.operator() as operator:
        operator.create_session("gamma", memory="512M")
        series = 'agentcgroup_session_memory_limit_bytes{session="gamma"}'
        wait_until(lambda: scene.prometheus.one(series) == 512 << 20, 60, "the series of gamma")
        operator.remove_session("gamma")
    wait_until(lambda: scene.prometheus.one(series) is None, 60, "the end of the series of gamma")
