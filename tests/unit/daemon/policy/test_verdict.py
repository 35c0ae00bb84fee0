"""Verdicts come from counters and the exit status."""

import pytest

from agentcgroup.daemon.model import ExitStatus, KillReason, OomCounters, Usage, Verdict
from agentcgroup.daemon.policy.verdict import judge

KILLED = ExitStatus(signal=9)
NOTHING = OomCounters()
OWN = OomCounters(call_oom_kill=1, call_oom_local=1, session_oom_local=0)
NESTED = OomCounters(call_oom_kill=1, call_oom_local=0, session_oom_local=0, own_oom_kill=0)


@pytest.mark.parametrize(
    ("status", "counters", "usage", "reason", "verdict"),
    [
        (ExitStatus(exit_code=0), NOTHING, Usage(), None, Verdict.OK),
        (ExitStatus(exit_code=3), NOTHING, Usage(), None, Verdict.EXIT_CODE),
        (ExitStatus(exit_code=137), NOTHING, Usage(), None, Verdict.EXIT_CODE),
        (KILLED, NOTHING, Usage(), None, Verdict.SIGNAL),
        (KILLED, OWN, Usage(), None, Verdict.MEMORY_LIMIT_CALL),
        (ExitStatus(exit_code=137), OWN, Usage(), None, Verdict.MEMORY_LIMIT_CALL),
        (ExitStatus(), OWN, Usage(), None, Verdict.MEMORY_LIMIT_CALL),
        (ExitStatus(exit_code=0), OWN, Usage(), None, Verdict.OK),
        (KILLED, OomCounters(1, 0, 1), Usage(), None, Verdict.MEMORY_LIMIT_SESSION),
        (KILLED, OomCounters(1, 0, 0), Usage(), None, Verdict.MEMORY_LIMIT_HOST),
        # A nested call reached its limit and this one failed with it; or its own processes were killed, too.
        (ExitStatus(exit_code=7), NESTED, Usage(), None, Verdict.EXIT_CODE),
        (KILLED, NESTED, Usage(), None, Verdict.SIGNAL),
        (KILLED, OomCounters(2, 1, 0, own_oom_kill=0), Usage(), None, Verdict.MEMORY_LIMIT_CALL),
        # The call around this one reached its limit, and the kernel took both.
        (KILLED, OomCounters(1, 0, 0, own_oom_kill=1, outer_oom_local=1), Usage(), None, Verdict.PARENT_END),
        (KILLED, NOTHING, Usage(), KillReason.DEADLINE, Verdict.DEADLINE),
        (KILLED, OWN, Usage(), KillReason.DEADLINE, Verdict.DEADLINE),
        (KILLED, NOTHING, Usage(), KillReason.OPERATOR, Verdict.OPERATOR),
        (KILLED, NOTHING, Usage(), KillReason.SESSION_END, Verdict.SESSION_END),
        (KILLED, NOTHING, Usage(), KillReason.PARENT_END, Verdict.PARENT_END),
        (KILLED, NOTHING, Usage(), KillReason.THROTTLE_LIMIT, Verdict.THROTTLE_LIMIT),
        (ExitStatus(exit_code=0), NOTHING, Usage(), KillReason.FINISHED, Verdict.OK),
        (ExitStatus(), NOTHING, Usage(), KillReason.FINISHED, Verdict.UNKNOWN),
        (ExitStatus(exit_code=1), NOTHING, Usage(pids_max_events=4), None, Verdict.PIDS_LIMIT),
        (ExitStatus(exit_code=0), NOTHING, Usage(pids_max_events=4), None, Verdict.OK),
        (KILLED, NOTHING, Usage(pids_max_events=4), None, Verdict.SIGNAL),
        (ExitStatus(), NOTHING, Usage(), None, Verdict.UNKNOWN),
    ],
)
def test_a_verdict_follows_from_counters_and_status(
    status: ExitStatus, counters: OomCounters, usage: Usage, reason: KillReason | None, verdict: Verdict
) -> None:
    assert judge(status, counters, usage, reason) is verdict


def test_a_session_hit_that_was_blamed_before_is_not_blamed_again() -> None:
    counters = OomCounters(call_oom_kill=1, call_oom_local=0, session_oom_local=1)
    assert judge(KILLED, counters, Usage(), None, session_oom_attributed=1) is Verdict.MEMORY_LIMIT_HOST
