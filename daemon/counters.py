"""What the daemon has counted since it started: plain integers that the controller and the edges raise.

One object for the daemon's life, touched on the event loop only; every method is O(1). The metrics collector
copies it at scrape time (see agentcgroup.daemon.metrics). The history and the feed count for themselves
(HistoryStore.stats, Feed.dropped). A key that is missing from a table was counted zero times.
"""

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from agentcgroup.daemon.errors import Kind
from agentcgroup.daemon.model import (
    CpuClass,
    Decision,
    KillReason,
    Priority,
    QueueOutcome,
    Reason,
    Report,
    Verdict,
)
from agentcgroup.proto.words import Action, Limit

# Upper bounds in seconds, from an edit that takes a moment to a test suite that takes hours.
DURATION_BOUNDS_S: Final = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3600.0, 1e4)
# Upper bounds in bytes: 1 MiB to 16 GiB.
PEAK_BOUNDS_BYTES: Final = tuple(
    float(mib << 20) for mib in (1, 4, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
)
# Upper bounds in seconds, dense around the 0.5 ms that a placement is meant to take.
PLACEMENT_BOUNDS_S: Final = (
    *(0.0001, 0.0002, 0.0003, 0.0005, 0.0008, 0.0012, 0.002, 0.004),
    *(0.008, 0.016, 0.032, 0.064, 0.128, 0.5, 2.0),
)


class Door(StrEnum):
    """By which door a process came into its call."""

    LAUNCHER = "launcher"
    PREPARED = "prepared"  # the launcher's, into a call that was made before
    GRPC = "grpc"
    TRANSPARENT = "transparent"


class Histogram:
    """Observations counted into fixed buckets; the last of `counts` is for what lies above all `bounds`."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count `value` in the first bucket whose upper bound is not below it (Prometheus: `le`)."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def copy(self) -> "Histogram":
        twin = Histogram(self.bounds)
        twin.counts = self.counts.copy()
        twin.total = self.total
        return twin


# A call's CPU class as declared; None when the caller declared none.
DeclaredClass = CpuClass | None


def _durations() -> dict[DeclaredClass, Histogram]:
    return {cpu_class: Histogram(DURATION_BOUNDS_S) for cpu_class in (*CpuClass, None)}


def _peaks() -> dict[DeclaredClass, Histogram]:
    return {cpu_class: Histogram(PEAK_BOUNDS_BYTES) for cpu_class in (*CpuClass, None)}


def _waits() -> dict[QueueOutcome, Histogram]:
    return {outcome: Histogram(DURATION_BOUNDS_S) for outcome in QueueOutcome}


def _placements() -> dict[Door, Histogram]:
    return {door: Histogram(PLACEMENT_BOUNDS_S) for door in Door}


@dataclass(slots=True)
class Counters:
    answers: Counter[tuple[Decision, Reason | None]] = field(default_factory=Counter)
    calls_ended: Counter[tuple[Verdict, Priority, DeclaredClass]] = field(default_factory=Counter)
    kills: Counter[KillReason] = field(default_factory=Counter)
    request_errors: Counter[Kind] = field(default_factory=Counter)
    sessions_opened: int = 0
    sessions_closed: int = 0
    # Taken over from an earlier daemon.
    sessions_adopted: int = 0
    calls_adopted: int = 0
    leftover_processes: int = 0
    # Processes at a transparent door that had ended before they could be placed.
    transparent_missed: int = 0
    # Those that no call could be made for.
    transparent_left: int = 0
    kernel_events_lost: int = 0
    # What was done to calls so that others have memory, and how often a session's calls came to their mark.
    protections: Counter[Action] = field(default_factory=Counter)
    marks_crossed: int = 0
    warnings: Counter[Limit] = field(default_factory=Counter)
    idle_reclaimed_bytes: int = 0
    internal_errors: int = 0
    call_duration_s: dict[DeclaredClass, Histogram] = field(default_factory=_durations)
    call_peak_bytes: dict[DeclaredClass, Histogram] = field(default_factory=_peaks)
    placement_s: dict[Door, Histogram] = field(default_factory=_placements)
    queue_wait_s: dict[QueueOutcome, Histogram] = field(default_factory=_waits)

    def answer(self, decision: Decision, reason: Reason | None = None) -> None:
        """An intent was answered. `reason` is None when granted as asked."""
        self.answers[decision, reason] += 1

    def placed(self, door: Door, seconds: float) -> None:
        """A process came into its call by `door`; `seconds` from request read to process in its cgroup."""
        self.placement_s[door].observe(seconds)

    def queue_left(self, outcome: QueueOutcome, waited_s: float) -> None:
        """A call left the queue for room."""
        self.queue_wait_s[outcome].observe(waited_s)

    def killed(self, reason: KillReason) -> None:
        """The daemon killed a call. Kills by the kernel are verdicts, not these."""
        self.kills[reason] += 1

    def protected(self, action: Action) -> None:
        """A call was slowed, frozen, released or killed so that others have memory."""
        self.protections[action] += 1

    def warned(self, limit: Limit) -> None:
        """Somebody was told that a limit is near, or has begun to refuse."""
        self.warnings[limit] += 1

    def call_ended(self, report: Report, priority: Priority, cpu_class: DeclaredClass) -> None:
        """A call ended with `report`; `priority` is its session's, `cpu_class` what its intent declared.

        A call that never began has no duration; one whose peak this kernel does not say has no peak.
        """
        self.calls_ended[report.verdict, priority, cpu_class] += 1
        self.leftover_processes += report.leftover_processes
        if report.started_at_ns is not None:
            self.call_duration_s[cpu_class].observe(report.duration_ms / 1000)
        if report.usage.memory_peak_bytes is not None:
            self.call_peak_bytes[cpu_class].observe(report.usage.memory_peak_bytes)

    def session_opened(self) -> None:
        self.sessions_opened += 1

    def session_closed(self) -> None:
        self.sessions_closed += 1

    def lose_kernel_events(self, events: int = 1) -> None:
        """The kernel had no room for this many events (inotify queue, ring buffer)."""
        self.kernel_events_lost += events

    def request_error(self, kind: Kind) -> None:
        """A request ended with RequestError of `kind`, on whichever socket."""
        self.request_errors[kind] += 1

    def internal_error(self) -> None:
        """Something broke that no caller can mend: an exception caught at an edge or in a task."""
        self.internal_errors += 1

    def copy(self) -> "Counters":
        """A copy that later counting does not touch."""
        return Counters(
            answers=self.answers.copy(),
            calls_ended=self.calls_ended.copy(),
            kills=self.kills.copy(),
            request_errors=self.request_errors.copy(),
            sessions_opened=self.sessions_opened,
            sessions_closed=self.sessions_closed,
            sessions_adopted=self.sessions_adopted,
            calls_adopted=self.calls_adopted,
            leftover_processes=self.leftover_processes,
            transparent_missed=self.transparent_missed,
            transparent_left=self.transparent_left,
            kernel_events_lost=self.kernel_events_lost,
            protections=self.protections.copy(),
            marks_crossed=self.marks_crossed,
            warnings=self.warnings.copy(),
            idle_reclaimed_bytes=self.idle_reclaimed_bytes,
            internal_errors=self.internal_errors,
            call_duration_s={key: histogram.copy() for key, histogram in self.call_duration_s.items()},
            call_peak_bytes={key: histogram.copy() for key, histogram in self.call_peak_bytes.items()},
            placement_s={key: histogram.copy() for key, histogram in self.placement_s.items()},
            queue_wait_s={key: histogram.copy() for key, histogram in self.queue_wait_s.items()},
        )
