"""What a call like this one needed before: quantiles over completed runs, where killed runs count as "at least".

A run that was killed at 300 MiB would have needed more; taken as a peak of 300 MiB it would teach the next run to be
killed there as well. Such observations are *censored*, and quantiles over them are the Kaplan-Meier product-limit
estimate (Kaplan and Meier, J. Am. Stat. Assoc. 53, 1958), here with weights: at each peak that was really observed, the
share that needs more shrinks by (weight that peaked there) / (weight not yet below). Where the estimate ends in killed
runs, the quantile lies above all that was seen, and the figure is the largest of these, raised.

Old runs weigh less: half as much for every half-life of age. As that changes all weights by one factor when time passes,
an estimate holds until the next run, and needs no clock.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from agentcgroup.daemon.model import CallLimits, HistoryEntry, Intent, Labels, Suggestion, Verdict
from agentcgroup.daemon.policy.commands import command_class
from agentcgroup.proto.quantity import format_duration, format_size

PROJECT_LABEL: Final = "project"

_COMPLETED: Final = frozenset({Verdict.OK, Verdict.EXIT_CODE})
# Above what killed runs reached when no completed one reached as far: enough to learn something from the next try.
_RAISE: Final = 1.5
_MEBIBYTE: Final = 1 << 20
_DAY_MS: Final = 86_400_000


@dataclass(frozen=True, slots=True)
class Observed:
    """A figure of one run; `is_at_least`: the run was ended before it could show more."""

    value: int
    is_at_least: bool
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Run:
    """What one ended call taught. None: this kernel does not say."""

    ended_at_ns: int
    completed: bool
    duration_ms: int
    memory_bytes: int | None
    cpu_usage_us: int | None


@dataclass(frozen=True, slots=True)
class Rules:
    """How figures become suggestions. `quantile` of runs would have fitted, before `headroom` (1.2 is a fifth more)."""

    quantile: float
    headroom: float
    floor_bytes: int
    least_runs: int
    half_life_ms: int


def project_of(intent: Labels, session: Labels) -> str:
    """The label `project` of the call, else of its session, else "": calls of no project learn from each other."""
    for labels in (intent, session):
        for key, value in labels:
            if key == PROJECT_LABEL:
                return value
    return ""


def key_of(entry: HistoryEntry) -> tuple[str, str]:
    """Project and command class."""
    return entry.project, command_class(entry.intent.command)


def run_of(entry: HistoryEntry) -> Run | None:
    """What `entry` teaches; None for a call that never ran."""
    report = entry.report
    if report.verdict is Verdict.NOT_BEGUN or report.started_at_ns is None:
        return None
    memory_bytes = report.usage.memory_peak_bytes
    limits = entry.limits
    # A tool may go on without the process that the kernel took from it, and even say that all is well.
    robbed = bool(report.usage.oom_kill_events)
    if memory_bytes is not None and limits is not None:
        # The limit it was killed at was reached, also when the kernel's peak is a page or two short of it.
        if report.verdict is Verdict.MEMORY_LIMIT_CALL and limits.memory_max_bytes is not None:
            memory_bytes = max(memory_bytes, limits.memory_max_bytes)
        if report.verdict is Verdict.THROTTLE_LIMIT and limits.memory_high_bytes is not None:
            memory_bytes = max(memory_bytes, limits.memory_high_bytes)
    return Run(
        ended_at_ns=report.ended_at_ns,
        completed=report.verdict in _COMPLETED and not robbed,
        duration_ms=report.duration_ms,
        memory_bytes=memory_bytes,
        cpu_usage_us=report.usage.cpu_usage_us,
    )


def quantile(observed: Iterable[Observed], share: float) -> tuple[int, bool] | None:
    """The least value that at least `share` of the weight needs no more than; None without observations.

    The flag is True when it lies above everything seen: then the value is the largest that was reached.
    """
    # Of equal values the observed ones come first: a run killed at t was still "at risk" of peaking at t.
    ordered = sorted(observed, key=lambda each: (each.value, each.is_at_least))
    at_risk = sum(each.weight for each in ordered)
    if not ordered or at_risk <= 0:
        return None
    needs_more = 1.0
    for each in ordered:
        if not each.is_at_least:
            needs_more *= 1 - min(1.0, each.weight / at_risk)
            if needs_more <= 1 - share + 1e-9:
                return each.value, False
        at_risk = max(0.0, at_risk - each.weight)
        if at_risk <= 0:
            break
    return ordered[-1].value, True


def suggestion_of(project: str, name: str, runs: Sequence[Run], rules: Rules) -> Suggestion:
    """What `runs`, all of one project and class, oldest first, say about the next one."""
    completed = sum(run.completed for run in runs)
    killed = len(runs) - completed
    base = Suggestion(project=project, command_class=name, runs=completed, killed_runs=killed, reason="")
    if not name:
        return replace(base, reason="A call without a command line has no class to learn from.")
    if len(runs) < rules.least_runs:
        known = f"{len(runs) or 'no'} run{'s are' if len(runs) > 1 else ' is'} known"
        return replace(
            base, reason=f"A figure takes {rules.least_runs} runs of {name}; {known}{_where(project)}."
        )
    weights = _weights(runs, rules.half_life_ms)
    memory = [
        Observed(run.memory_bytes, not run.completed, weight)
        for run, weight in zip(runs, weights, strict=True)
        if run.memory_bytes is not None
    ]
    durations = [
        Observed(run.duration_ms, not run.completed, weight)
        for run, weight in zip(runs, weights, strict=True)
    ]
    cores = [
        Observed(run.cpu_usage_us // max(1, run.duration_ms), False, weight)
        for run, weight in zip(runs, weights, strict=True)
        if run.cpu_usage_us is not None and run.completed
    ]
    need, median, duration, cpu = (
        quantile(memory, rules.quantile), quantile(memory, 0.5), quantile(durations, 0.5), quantile(cores, rules.quantile)
    )  # fmt: skip
    memory_bytes = None if need is None else _figure(need, rules)
    return replace(
        base,
        memory_bytes=memory_bytes,
        memory_seen_bytes=None if need is None else need[0],
        memory_median_bytes=None if median is None or median[1] else median[0],
        memory_is_at_least=need is not None and need[1],
        # A figure above all that was seen says only that runs are cut short; a duration is no protection, so none is told.
        expected_duration_ms=None if duration is None or duration[1] else duration[0],
        cpu_milli=None if cpu is None else max(10, cpu[0]),
        reason=_reason(project, name, completed, killed, need, memory_bytes, rules),
    )


def is_applied(learned: Suggestion | None, intent: Intent, limits: CallLimits) -> bool:
    """Whether the reservation in `limits` is the learned figure."""
    return (
        learned is not None and intent.memory_bytes is None and limits.memory_bytes == learned.memory_bytes
    )


def notices(learned: Suggestion | None, limits: CallLimits) -> tuple[str, ...]:
    """A warning when earlier runs needed more than this one may reach; quiet otherwise."""
    if learned is None or learned.memory_seen_bytes is None or learned.memory_bytes is None:
        return ()
    held_at = limits.memory_high_bytes or limits.memory_max_bytes
    if held_at is None or held_at >= learned.memory_seen_bytes:
        return ()
    return (
        f"This call may not reach what it is likely to need: {learned.reason} It is held at {format_size(held_at)}; "
        f"declare --memory {learned.memory_bytes >> 20}M, or make it smaller.",
    )


def _weights(runs: Sequence[Run], half_life_ms: int) -> list[float]:
    newest_ns = max(run.ended_at_ns for run in runs)
    # A run of ages ago weighs next to nothing, but never nothing: 2**-60 is no zero.
    ages = [min(60.0, (newest_ns - run.ended_at_ns) / 1e6 / half_life_ms) for run in runs]
    return [0.5**age for age in ages]


def _figure(need: tuple[int, bool], rules: Rules) -> int:
    value, is_at_least = need
    raised = value * (_RAISE if is_at_least else rules.headroom)
    return max(rules.floor_bytes, -(-int(raised) // _MEBIBYTE) * _MEBIBYTE)


def _where(project: str) -> str:
    return f" in project {project}" if project else " outside any project"


def _reason(
    project: str,
    name: str,
    completed: int,
    killed: int,
    need: tuple[int, bool] | None,
    memory_bytes: int | None,
    rules: Rules,
) -> str:
    ran = f"{name} ran {completed + killed} times{_where(project)}"
    if killed:
        ran += f", {killed} of them killed or ended before they were done"
    if need is None or memory_bytes is None:
        return f"{ran}; this kernel does not tell how much memory it took."
    value, is_at_least = need
    if is_at_least:
        return (
            f"{ran}; it was stopped at up to {format_size(value)} and never showed how much it needs: "
            f"{format_size(memory_bytes)} is half as much again."
        )
    told = f"{ran}; {rules.quantile:.0%} of the runs needed at most {format_size(value)}"
    if memory_bytes == rules.floor_bytes:
        return f"{told}; the figure is the floor of {format_size(memory_bytes)}."
    room = f"{format_size(memory_bytes)} leaves {rules.headroom - 1:.0%} of room"
    return f"{told}; {room}. Runs of {_half_life(rules)} ago count half."


def _half_life(rules: Rules) -> str:
    days = rules.half_life_ms / _DAY_MS
    return f"{days:g} days" if days >= 1 else format_duration(rules.half_life_ms)
