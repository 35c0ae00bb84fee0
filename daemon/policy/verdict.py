"""Verdicts: how a call ended, from kernel counters and the exit status, never from an exit code alone.

Exit status 137 proves nothing: a shell reports it for any SIGKILL of a child, and a program may simply return it. What
proves an OOM kill is `oom_kill` in the call's memory.events; whose limit it was is told by the level whose own `oom`
rose (memory.events.local, cgroup-v2.rst).
"""

from agentcgroup.daemon.model import ExitStatus, KillReason, OomCounters, Usage, Verdict

_KILLS = {
    KillReason.DEADLINE: Verdict.DEADLINE,
    KillReason.THROTTLE_LIMIT: Verdict.THROTTLE_LIMIT,
    KillReason.OPERATOR: Verdict.OPERATOR,
    KillReason.SESSION_END: Verdict.SESSION_END,
    KillReason.PARENT_END: Verdict.PARENT_END,
    KillReason.PROTECTION: Verdict.PROTECTION,
}


def _oom_level(counters: OomCounters, session_oom_attributed: int) -> Verdict | None:
    """Whose limit it was; None: that of a nested call, which has a report of its own."""
    if counters.call_oom_local:
        return Verdict.MEMORY_LIMIT_CALL
    if counters.own_oom_kill == 0:
        return None
    # The kernel takes a call whole, with what is nested in it.
    if counters.outer_oom_local:
        return Verdict.PARENT_END
    # One OOM of the session has one victim. Hits that earlier verdicts were blamed on do not count again, else a later
    # kill by the host would be put on the session.
    if counters.session_oom_local is not None and counters.session_oom_local > session_oom_attributed:
        return Verdict.MEMORY_LIMIT_SESSION
    return Verdict.MEMORY_LIMIT_HOST


def judge(
    status: ExitStatus,
    counters: OomCounters,
    usage: Usage,
    kill_reason: KillReason | None,
    session_oom_attributed: int = 0,
) -> Verdict:
    """The verdict on a call that has begun and ended."""
    failed = status.signal is not None or status.exit_code != 0
    # A kill by the daemon takes a call that was alive, so an OOM kill before it had left the call running.
    if kill_reason in _KILLS:
        return _KILLS[kill_reason]
    if failed and counters.call_oom_kill:
        level = _oom_level(counters, session_oom_attributed)
        if level is not None:
            return level
    if status.exit_code == 0:
        return Verdict.OK
    if usage.pids_max_events and status.signal is None and status.exit_code is not None:
        return Verdict.PIDS_LIMIT
    if status.exit_code is not None:
        return Verdict.EXIT_CODE
    if status.signal is not None:
        return Verdict.SIGNAL
    return Verdict.UNKNOWN
