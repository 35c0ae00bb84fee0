"""What a decision was made from, as the decision log keeps it: names with units, numbers, None for what is unknown."""

from typing import Final

from agentcgroup.daemon.model import CallLimits, Intent, KillReason, OomCounters, Report, Suggestion
from agentcgroup.daemon.policy.admission import HostView, ParentView, SessionView
from agentcgroup.proto.quantity import format_duration

Grounds = dict[str, int | str | None]
NO_GROUNDS: Final[Grounds] = {}


def of_ruling(
    intent: Intent,
    limits: CallLimits | None,
    session: SessionView,
    host: HostView,
    parent: ParentView | None,
) -> Grounds:
    """What was asked, what there was, what was given."""
    return {
        "asked_memory_bytes": intent.memory_bytes,
        "asked_memory_max_bytes": intent.memory_max_bytes,
        "asked_cpu_milli": intent.cpu_milli,
        "asked_pids_max": intent.pids_max,
        "session_memory_bytes": session.budget.calls_memory_bytes,
        "session_reserved_bytes": session.memory_reserved_bytes,
        "host_memory_bytes": host.memory_capacity_bytes,
        "host_reserved_bytes": host.memory_reserved_bytes,
        "parent_call_id": parent.id if parent else None,
        "parent_reserved_bytes": parent.memory_reserved_bytes if parent else None,
        **(of_limits(limits) if limits else {}),
    }


def of_learned(learned: Suggestion | None) -> Grounds:
    """What earlier runs of the same kind say."""
    if learned is None:
        return {}
    return {
        "learned_memory_bytes": learned.memory_bytes,
        "learned_runs": learned.runs,
        "learned_killed_runs": learned.killed_runs,
    }


def of_limits(limits: CallLimits) -> Grounds:
    return {
        "memory_bytes": limits.memory_bytes,
        "memory_high_bytes": limits.memory_high_bytes,
        "memory_max_bytes": limits.memory_max_bytes,
        "cpu_milli": limits.cpu_milli,
        "pids_max": limits.pids_max,
        "deadline_ms": limits.deadline_ms,
        "throttle_limit_ms": limits.throttle_limit_ms,
    }


def of_end(report: Report, oom: OomCounters, kill_reason: KillReason | None) -> Grounds:
    """The exit status and the counters that the verdict was judged from, and what the call used."""
    usage = report.usage
    return {
        "verdict": report.verdict,
        "exit_code": report.exit_status.exit_code,
        "signal": report.exit_status.signal,
        "kill_reason": kill_reason,
        "call_oom_kill": oom.call_oom_kill,
        "call_oom_local": oom.call_oom_local,
        "own_oom_kill": oom.own_oom_kill,
        "outer_oom_local": oom.outer_oom_local,
        "session_oom_local": oom.session_oom_local,
        "pids_max_events": usage.pids_max_events,
        "duration_ms": report.duration_ms,
        "memory_peak_bytes": usage.memory_peak_bytes,
        "memory_high_events": usage.memory_high_events,
        "memory_throttled_us": usage.memory_throttled_us,
        "memory_growth_peak_bytes_per_s": usage.memory_growth_peak_bytes_per_s,
        "memory_over_soft_us": usage.memory_over_soft_us,
        "memory_held_us": usage.memory_held_us,
        "cpu_usage_us": usage.cpu_usage_us,
        "leftover_processes": report.leftover_processes,
    }


def kill_words(reason: KillReason, note: str, limits: CallLimits) -> str:
    """Why the daemon kills a call, as a sentence."""
    because = {
        KillReason.DEADLINE: f"its deadline of {format_duration(limits.deadline_ms or 0)} passed",
        KillReason.THROTTLE_LIMIT: f"it was over its soft limit for {format_duration(limits.throttle_limit_ms or 0)}",
        KillReason.OPERATOR: "an operator said so",
        KillReason.SESSION_END: "its session ends",
        KillReason.PARENT_END: "the call around it ended",
        KillReason.FINISHED: "its caller finished it",
        KillReason.PROTECTION: "others need the memory",
    }[reason]
    return f"Killed: {because}{': ' + note if note else ''}."
