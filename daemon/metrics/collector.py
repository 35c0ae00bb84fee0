"""A snapshot as families and as a page. Imported at the first scrape, see the endpoint: it brings prometheus-client."""

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

import psutil
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from agentcgroup.daemon.counters import Counters, Histogram
from agentcgroup.daemon.history import DropCause, HistoryStats
from agentcgroup.daemon.metrics import catalog
from agentcgroup.daemon.metrics.metric import Metric as Row, MetricType
from agentcgroup.daemon.metrics.snapshot import SessionSample, Snapshot
from agentcgroup.daemon.model import (
    CallState,
    Decision,
    KillReason,
    Priority,
    Reason,
    SchedulerState,
    Tier,
    Verdict,
)
from agentcgroup.proto.words import Action, Limit

# Rendering is Python, so it holds the interpreter. Sleeping between two families lets a launch in there,
# instead of after the 5 ms for which a thread that wants the interpreter must otherwise ask; a sleep of
# 0 takes it back too soon.
GIVE_WAY_S: Final = 0.0001

# A series: the values of the metric's labels in their order, and its value; None is a figure nobody knows.
Series = tuple[tuple[str, ...], float | None]


class SnapshotCollector(Collector):
    """Families of one snapshot, for prometheus-client to render; may run in any thread."""

    def __init__(self, snapshot: Snapshot, process: psutil.Process) -> None:
        self._snapshot: Final = snapshot
        self._process: Final = process

    def collect(self) -> Iterator[Metric]:
        """Every family of the catalogue that has a series, in the order of the catalogue."""
        snapshot = self._snapshot
        for families in (
            _host(snapshot),
            _sessions(snapshot.sessions),
            _calls(snapshot.counters),
            _daemon(snapshot, self._process),
            _history(snapshot.history),
        ):
            for family in families:
                if family.samples:
                    yield family
                time.sleep(GIVE_WAY_S)


def page(snapshot: Snapshot, process: psutil.Process, accept: str) -> tuple[str, bytes]:
    """Content type and text for a client that accepts `accept`, an HTTP header."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(SnapshotCollector(snapshot, process))
    encoder, content_type = choose_encoder(accept)
    return content_type, encoder(registry)


# ---- building families --------------------------------------------------------------------------------


def _family(metric: Row, series: Iterable[Series]) -> Metric:
    # OpenMetrics wants the unit to be the end of the name, which it is here for every metric that has one.
    match metric.type:
        case MetricType.COUNTER:
            family: Metric = CounterMetricFamily(metric.name, metric.help, labels=metric.label_names)
        case _:
            family = GaugeMetricFamily(metric.name, metric.help, labels=metric.label_names)
    family.unit = metric.unit
    for labels, value in series:
        if value is not None:
            family.add_metric(labels, value)  # type: ignore[attr-defined]
    return family


def _one(metric: Row, value: float | None) -> Metric:
    return _family(metric, [((), value)])


def _histograms(metric: Row, histograms: Mapping[tuple[str, ...], Histogram]) -> Metric:
    family = HistogramMetricFamily(metric.name, metric.help, labels=metric.label_names)
    family.unit = metric.unit
    for labels, histogram in histograms.items():
        buckets, seen = [], 0
        for bound, count in zip((*histogram.bounds, float("inf")), histogram.counts, strict=True):
            seen += count
            buckets.append(("+Inf" if bound == float("inf") else repr(bound), seen))
        family.add_metric(labels, buckets, histogram.total)
    return family


def _seconds(microseconds: int | None) -> float | None:
    return None if microseconds is None else microseconds / 1e6


def _cores(milli: int | None) -> float | None:
    return None if milli is None else milli / 1000


def _declared(cpu_class: str | None) -> str:
    return catalog.UNDECLARED if cpu_class is None else cpu_class


# ---- the groups of the catalogue ----------------------------------------------------------------------


def _host(snapshot: Snapshot) -> Iterator[Metric]:
    host, limits = snapshot.host, snapshot.limits
    yield _family(catalog.BUILD_INFO, [((host.version, host.kernel), 1)])
    yield _one(catalog.START_TIME, host.started_at_ns / 1e9)
    yield _one(catalog.DRY_RUN, int(host.dry_run))
    yield _family(catalog.HOST_TIER, [((tier,), int(tier is host.tier)) for tier in Tier])
    yield _family(
        catalog.CAPABILITY_AVAILABLE, [((row.name,), int(row.available)) for row in host.capabilities]
    )
    yield _one(catalog.HOST_MEMORY_CAPACITY, host.memory_capacity_bytes)
    yield _one(catalog.HOST_MEMORY_RESERVED, host.memory_reserved_bytes)
    yield _one(catalog.HOST_MEMORY_CURRENT, host.memory_current_bytes)
    yield _one(catalog.HOST_CPU_CAPACITY, _cores(host.cpu_capacity_milli))
    yield _one(catalog.SESSIONS, host.sessions)
    yield _one(catalog.SESSIONS_LIMIT, limits.sessions_max)
    states = (CallState(value) for value in catalog.CALL_STATE.values)
    yield _family(catalog.CALLS, [((state,), snapshot.calls_by_state.get(state, 0)) for state in states])
    yield _one(catalog.CALLS_LIMIT, limits.calls_max)
    yield _one(catalog.CALLS_HELD, sum(row.calls_held for row in snapshot.sessions))
    guard = snapshot.host.memory_guard
    yield _one(catalog.GUARD_HOLDS, guard.holds if guard else None)
    yield _one(catalog.GUARD_HELD, _seconds(guard.held_us) if guard else None)


def _sessions(sessions: tuple[SessionSample, ...]) -> Iterator[Metric]:
    def each(metric: Row, values: Iterable[float | None]) -> Metric:
        return _family(metric, [((row.name,), value) for row, value in zip(sessions, values, strict=True)])

    yield _family(catalog.SESSION_INFO, [((row.name, row.priority, row.state), 1) for row in sessions])
    yield each(catalog.SESSION_MEMORY_LIMIT, (row.memory_limit_bytes for row in sessions))
    yield each(catalog.SESSION_AGENT_MEMORY, (row.agent_memory_bytes for row in sessions))
    yield each(catalog.SESSION_MEMORY_RESERVED, (row.memory_reserved_bytes for row in sessions))
    yield each(catalog.SESSION_MEMORY_CURRENT, (row.usage.memory_current_bytes for row in sessions))
    yield each(catalog.SESSION_MEMORY_PEAK, (row.usage.memory_peak_bytes for row in sessions))
    yield _family(catalog.SESSION_MEMORY_EVENTS, _memory_events(sessions))
    yield _family(catalog.SESSION_STALL, _stalls(sessions))
    yield _family(catalog.SESSION_CPU, _cpu_seconds(sessions))
    yield each(catalog.SESSION_CPU_THROTTLED, (_seconds(row.usage.cpu_throttled_us) for row in sessions))
    yield each(
        catalog.SESSION_MEMORY_THROTTLED, (_seconds(row.usage.memory_throttled_us) for row in sessions)
    )
    yield each(catalog.SESSION_FORKS, (row.usage.forks for row in sessions))
    yield each(catalog.SESSION_CPU_LIMIT, (_cores(row.cpu_limit_milli) for row in sessions))
    yield each(catalog.SESSION_PIDS, (row.usage.pids_current for row in sessions))
    yield each(catalog.SESSION_PIDS_LIMIT, (row.pids_limit for row in sessions))
    yield each(catalog.SESSION_FORKS_REFUSED, (row.usage.pids_max_events for row in sessions))
    yield each(catalog.SESSION_CALLS, (row.calls for row in sessions))
    yield each(catalog.SESSION_CALLS_LIMIT, (row.calls_limit for row in sessions))
    yield each(catalog.SESSION_CALLS_ENDED, (row.calls_ended for row in sessions))


def _memory_events(sessions: tuple[SessionSample, ...]) -> Iterator[Series]:
    for row in sessions:
        yield (row.name, "high"), row.usage.memory_high_events
        yield (row.name, "max"), row.usage.memory_max_events
        yield (row.name, "oom_kill"), row.usage.oom_kill_events


def _stalls(sessions: tuple[SessionSample, ...]) -> Iterator[Series]:
    for row in sessions:
        yield (row.name, "memory"), _seconds(row.usage.memory_stall_us)
        yield (row.name, "cpu"), _seconds(row.usage.cpu_stall_us)


def _cpu_seconds(sessions: tuple[SessionSample, ...]) -> Iterator[Series]:
    for row in sessions:
        yield (row.name, "user"), _seconds(row.usage.cpu_user_us)
        yield (row.name, "system"), _seconds(row.usage.cpu_system_us)


def _calls(counters: Counters) -> Iterator[Metric]:
    yield _family(catalog.ANSWERS, _answers(counters))
    yield _family(
        catalog.CALLS_ENDED,
        [
            ((verdict, priority, _declared(cpu_class)), counters.calls_ended[verdict, priority, cpu_class])
            for verdict in Verdict
            for priority in Priority
            for cpu_class in counters.call_duration_s
        ],
    )
    yield _family(catalog.KILLS, [((reason,), counters.kills[reason]) for reason in KillReason])
    actions = (Action(value) for value in catalog.PROTECTION.values)
    yield _family(catalog.PROTECTIONS, [((action,), counters.protections[action]) for action in actions])
    yield _family(catalog.LIMIT_WARNINGS, [((limit,), counters.warnings[limit]) for limit in Limit])
    yield _one(catalog.MARKS_CROSSED, counters.marks_crossed)
    yield _one(catalog.IDLE_RECLAIMED, counters.idle_reclaimed_bytes)
    yield _one(catalog.LEFTOVER_PROCESSES, counters.leftover_processes)
    yield _one(catalog.TRANSPARENT_MISSED, counters.transparent_missed)
    yield _one(catalog.TRANSPARENT_LEFT, counters.transparent_left)
    yield _histograms(
        catalog.CALL_DURATION, {(_declared(key),): value for key, value in counters.call_duration_s.items()}
    )
    yield _histograms(
        catalog.CALL_MEMORY_PEAK,
        {(_declared(key),): value for key, value in counters.call_peak_bytes.items()},
    )
    yield _histograms(catalog.PLACEMENT, {(door,): value for door, value in counters.placement_s.items()})
    yield _histograms(catalog.QUEUE_WAIT, {(key,): value for key, value in counters.queue_wait_s.items()})
    yield _one(catalog.SESSIONS_OPENED, counters.sessions_opened)
    yield _one(catalog.SESSIONS_CLOSED, counters.sessions_closed)
    yield _one(catalog.SESSIONS_ADOPTED, counters.sessions_adopted)
    yield _one(catalog.CALLS_ADOPTED, counters.calls_adopted)


def _answers(counters: Counters) -> Iterator[Series]:
    for decision in Decision:
        for reason in (None, *Reason):
            count = counters.answers[decision, reason]
            # A grant as asked has no reason, everything else has one: other series would stay 0 forever.
            if count or (decision is Decision.GRANTED) is (reason is None):
                yield (decision, catalog.NO_REASON if reason is None else reason), count


def _daemon(snapshot: Snapshot, process: psutil.Process) -> Iterator[Metric]:
    usage, counters = snapshot.host.daemon_usage, snapshot.counters
    yield _family(
        catalog.DAEMON_CPU,
        [(("user",), _seconds(usage.cpu_user_us)), (("system",), _seconds(usage.cpu_system_us))],
    )
    yield _one(catalog.DAEMON_RESIDENT_MEMORY, snapshot.host.daemon_rss_bytes)
    yield _one(catalog.DAEMON_OPEN_FDS, process.num_fds())
    yield _one(catalog.DAEMON_THREADS, process.num_threads())
    kinds = catalog.ERROR_KIND.values
    errors = {str(kind): count for kind, count in counters.request_errors.items()}
    yield _family(catalog.REQUEST_ERRORS, [((kind,), errors.get(kind, 0)) for kind in kinds])
    yield _one(catalog.INTERNAL_ERRORS, counters.internal_errors)
    yield _one(catalog.FEEDBACK_DROPPED, snapshot.feedback_dropped)
    ours = snapshot.host.scheduler
    yield _family(catalog.SCHEDULER, [((state,), int(state is ours.state)) for state in SchedulerState])
    yield _one(catalog.SCHEDULER_EJECTIONS, ours.ejections)
    lost = (*snapshot.host.kernel_events_lost, (catalog.WATCH, counters.kernel_events_lost))
    yield _family(catalog.KERNEL_EVENTS_LOST, [((kind,), count) for kind, count in lost])


def _history(history: HistoryStats) -> Iterator[Metric]:
    if not history.enabled:
        return
    yield _one(catalog.HISTORY_WORKING, int(history.working))
    yield _one(catalog.HISTORY_ENTRIES, history.entries)
    yield _one(catalog.HISTORY_SIZE, history.size_bytes)
    yield _one(catalog.HISTORY_WAITING, history.waiting)
    yield _one(catalog.HISTORY_WRITTEN, history.written)
    yield _family(
        catalog.HISTORY_DROPPED, [((cause,), history.dropped.get(cause, 0)) for cause in DropCause]
    )
    yield _one(catalog.HISTORY_EXPIRED, history.expired)
    yield _one(catalog.HISTORY_EVENTS_WRITTEN, history.events_written)
    dropped = [((cause,), history.events_dropped.get(cause, 0)) for cause in DropCause]
    yield _family(catalog.HISTORY_EVENTS_DROPPED, dropped)
