"""A scrape shows what is known, leaves out what is not, and begins every counter at 0."""

import asyncio
import math
from collections.abc import Iterator

import psutil
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from agentcgroup.daemon.config import Config, HostConfig
from agentcgroup.daemon.controller import Controller
from agentcgroup.daemon.counters import Door
from agentcgroup.daemon.errors import Kind
from agentcgroup.daemon.history import HistoryStats
from agentcgroup.daemon.metrics import catalog
from agentcgroup.daemon.metrics.collector import SnapshotCollector
from agentcgroup.daemon.metrics.metric import MetricType
from agentcgroup.daemon.metrics.snapshot import HistorySource, take
from agentcgroup.daemon.model import (
    BudgetRequest,
    CpuClass,
    Decision,
    ExitStatus,
    Intent,
    KillReason,
    Priority,
    Reason,
    Report,
    Session,
    Usage,
    Verdict,
)
from tests.unit.daemon.metrics.hosts import FixedHistory, FullHost, SilentHost, make_controller


async def scrape(controller: Controller, history: HistorySource | None = None) -> str:
    snapshot = await take(controller, history or FixedHistory(), HostConfig())
    registry = CollectorRegistry(auto_describe=False)
    registry.register(SnapshotCollector(snapshot, psutil.Process()))
    return generate_latest(registry).decode()


def samples(text: str) -> Iterator[Sample]:
    for family in text_string_to_metric_families(text):
        yield from family.samples


def value(text: str, name: str, **labels: str) -> float | None:
    for sample in samples(text):
        if sample.name == name and sample.labels == labels:
            return sample.value
    return None


def metric_of(sample: Sample) -> str:
    for suffix in ("", "_bucket", "_sum", "_count"):
        name = sample.name.removesuffix(suffix) if suffix else sample.name
        if name in catalog.BY_NAME and (not suffix or catalog.BY_NAME[name].type is MetricType.HISTOGRAM):
            return name
    raise AssertionError(f"{sample.name} is not in the catalogue")


@pytest.fixture
async def busy() -> Controller:
    """Two sessions and calls in two states, everything counted once."""
    controller = make_controller(FullHost())
    budget = BudgetRequest(
        memory_max_bytes=2 << 30, agent_memory_bytes=1 << 28, cpu_milli=1500, pids_max=100
    )
    await controller.open_session("alpha", budget, priority=Priority.HIGH)
    await controller.open_session(
        "beta", BudgetRequest(memory_max_bytes=2 << 30, agent_memory_bytes=1 << 28)
    )
    answer = controller.declare("alpha", Intent(memory_bytes=1 << 28))
    assert answer.decision is Decision.GRANTED, answer
    return controller


async def test_every_metric_of_the_catalogue_is_shown_and_nothing_else(busy: Controller) -> None:
    text = await scrape(busy)
    assert {metric_of(sample) for sample in samples(text)} == set(catalog.BY_NAME)


async def test_every_label_has_a_value_that_the_catalogue_allows(busy: Controller) -> None:
    for sample in samples(await scrape(busy)):
        metric = catalog.BY_NAME[metric_of(sample)]
        labels = {name: text for name, text in sample.labels.items() if name != "le"}
        assert sorted(labels) == sorted(metric.label_names), sample
        for label in metric.labels:
            assert not label.values or labels[label.name] in label.values, sample


async def test_types_units_and_help_are_those_of_the_catalogue(busy: Controller) -> None:
    snapshot = await take(busy, FixedHistory(), HostConfig())
    for family in SnapshotCollector(snapshot, psutil.Process()).collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        metric = catalog.BY_NAME[name]
        assert (family.type, family.unit, family.documentation) == (metric.type, metric.unit, metric.help)


async def test_figures_are_the_controllers_in_base_units(busy: Controller) -> None:
    text = await scrape(busy)
    assert value(text, "agentcgroup_sessions") == 2
    assert value(text, "agentcgroup_calls", state="declared") == 1
    assert value(text, "agentcgroup_calls", state="running") == 0
    assert value(text, "agentcgroup_session_memory_limit_bytes", session="alpha") == 2 << 30
    assert value(text, "agentcgroup_session_memory_reserved_bytes", session="alpha") == 1 << 28
    assert value(text, "agentcgroup_session_cpu_limit_cores", session="alpha") == 1.5
    assert value(text, "agentcgroup_session_cpu_limit_cores", session="beta") is None
    assert value(text, "agentcgroup_session_info", session="alpha", priority="high", state="open") == 1
    assert value(text, "agentcgroup_session_memory_current_bytes", session="beta") == 1000
    assert value(text, "agentcgroup_session_cpu_seconds_total", session="beta", mode="user") == 0.005
    assert value(text, "agentcgroup_host_cpu_capacity_cores") == 2
    assert value(text, "agentcgroup_daemon_cpu_seconds_total", mode="user") == 2
    assert value(text, "agentcgroup_daemon_open_fds") or 0 > 0


async def test_what_the_kernel_does_not_say_is_absent_and_not_zero() -> None:
    controller = make_controller(SilentHost())
    await controller.open_session("alpha", BudgetRequest())
    text = await scrape(controller, FixedHistory(HistoryStats(enabled=True)))
    shown = {metric_of(sample) for sample in samples(text)}
    unknown = {
        catalog.HOST_MEMORY_CURRENT,
        catalog.SESSION_MEMORY_CURRENT,
        catalog.SESSION_MEMORY_PEAK,
        catalog.SESSION_MEMORY_EVENTS,
        catalog.SESSION_STALL,
        catalog.SESSION_CPU,
        catalog.SESSION_CPU_THROTTLED,
        catalog.SESSION_PIDS,
        catalog.SESSION_FORKS_REFUSED,
        catalog.DAEMON_CPU,
        catalog.HISTORY_ENTRIES,
        catalog.HISTORY_SIZE,
    }
    assert shown.isdisjoint(metric.name for metric in unknown)
    for metric in unknown:
        assert metric.missing, f"{metric.name} can be absent and its row does not say when"


async def test_every_series_of_a_counter_is_there_from_the_start() -> None:
    text = await scrape(make_controller(SilentHost()))
    assert value(text, "agentcgroup_answers_total", decision="refused", reason="host_memory") == 0
    assert value(text, "agentcgroup_answers_total", decision="granted", reason="none") == 0
    assert value(text, "agentcgroup_answers_total", decision="granted", reason="host_memory") is None
    ended = [sample for sample in samples(text) if sample.name == "agentcgroup_calls_ended_total"]
    assert len(ended) == len(Verdict) * len(Priority) * (len(CpuClass) + 1)
    for kind in Kind:
        assert value(text, "agentcgroup_request_errors_total", kind=kind) == 0
    assert value(text, "agentcgroup_placement_seconds_count", door="launcher") == 0


async def test_what_was_counted_is_shown_under_its_labels() -> None:
    controller = make_controller(SilentHost())
    counters = controller.counters
    counters.answer(Decision.REFUSED, Reason.HOST_MEMORY)
    counters.killed(KillReason.DEADLINE)
    counters.request_error(Kind.NOT_FOUND)
    counters.placed(Door.LAUNCHER, 0.00045)
    counters.transparent_left = 5
    report = Report(
        "c",
        "s",
        Verdict.DEADLINE,
        ExitStatus(signal=9),
        Usage(memory_peak_bytes=3 << 20),
        1,
        2,
        2500,
        4,
        "",
        "",
    )
    counters.call_ended(report, Priority.LOW, None)
    text = await scrape(controller)
    assert value(text, "agentcgroup_answers_total", decision="refused", reason="host_memory") == 1
    assert value(text, "agentcgroup_kills_total", reason="deadline") == 1
    assert value(text, "agentcgroup_request_errors_total", kind="not_found") == 1
    ended = {"verdict": "deadline", "priority": "low", "cpu_class": "undeclared"}
    assert value(text, "agentcgroup_calls_ended_total", **ended) == 1
    assert value(text, "agentcgroup_leftover_processes_total") == 4
    assert value(text, "agentcgroup_transparent_left_total") == 5
    assert value(text, "agentcgroup_placement_seconds_bucket", door="launcher", le="0.0003") == 0
    assert value(text, "agentcgroup_placement_seconds_bucket", door="launcher", le="0.0005") == 1
    assert value(text, "agentcgroup_placement_seconds_sum", door="launcher") == 0.00045
    assert value(text, "agentcgroup_call_duration_seconds_sum", cpu_class="undeclared") == 2.5
    peak = "agentcgroup_call_memory_peak_bytes_bucket"
    assert value(text, peak, cpu_class="undeclared", le=str(float(1 << 20))) == 0
    assert value(text, peak, cpu_class="undeclared", le=str(float(4 << 20))) == 1


async def test_buckets_are_cumulative_and_end_with_the_count(busy: Controller) -> None:
    for seconds in (0.0001, 0.003, 5.0, 5.0):
        busy.counters.placed(Door.GRPC, seconds)
    text = await scrape(busy)
    buckets = [
        (float(sample.labels["le"]), sample.value)
        for sample in samples(text)
        if sample.name == "agentcgroup_placement_seconds_bucket" and sample.labels["door"] == "grpc"
    ]
    assert buckets == sorted(buckets)
    assert [count for _, count in buckets] == sorted(count for _, count in buckets)
    assert buckets[-1] == (math.inf, value(text, "agentcgroup_placement_seconds_count", door="grpc"))
    assert buckets[-1][1] == 4


async def test_a_history_that_is_off_has_no_metrics_and_one_in_trouble_says_0(busy: Controller) -> None:
    off = await scrape(busy, FixedHistory(HistoryStats(enabled=False)))
    assert "agentcgroup_history" not in off
    trouble = await scrape(busy, FixedHistory(HistoryStats(enabled=True, trouble="full", waiting=7)))
    assert value(trouble, "agentcgroup_history_working") == 0
    assert value(trouble, "agentcgroup_history_waiting_entries") == 7


async def test_a_snapshot_gives_way_after_each_session() -> None:
    controller = make_controller(FullHost(1 << 40), Config())
    for number in range(20):
        await controller.open_session(f"s{number}", BudgetRequest(memory_max_bytes=1 << 30))
    turns = 0

    async def launches() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    other = asyncio.create_task(launches())
    await take(controller, FixedHistory(), HostConfig())
    other.cancel()
    assert turns >= 20


async def test_a_session_that_ends_while_it_is_being_read_does_no_harm() -> None:
    controller = make_controller(FullHost(1 << 40))
    for name in ("a", "b", "c"):
        await controller.open_session(name, BudgetRequest(memory_max_bytes=1 << 30))
    removal: list[asyncio.Task[None]] = []
    read: list[str] = []
    plain = controller.session_usage

    def reading(session: Session) -> Usage:
        if not removal:
            removal.append(asyncio.create_task(controller.remove_session("c", "test")))
        read.append(session.name)
        return plain(session)

    controller.session_usage = reading  # type: ignore[method-assign]
    text = await scrape(controller)
    await asyncio.gather(*removal)
    assert read[:2] == ["a", "b"]
    assert value(text, "agentcgroup_session_info", session="b", priority="normal", state="open") == 1
