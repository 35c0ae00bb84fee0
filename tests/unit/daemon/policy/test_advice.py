"""What the agent reads at the end of a call."""

import pytest

from agentcgroup.daemon.model import CallLimits, DoorHold, ExitStatus, OomVictim, Placement, Usage, Verdict
from agentcgroup.daemon.policy.advice import EndedCall, word

MIB = 1 << 20
UNKNOWN = ExitStatus()


def ended(verdict: Verdict, status: ExitStatus = UNKNOWN, **changes: object) -> EndedCall:
    facts: dict[str, object] = {
        "verdict": verdict,
        "status": status,
        "usage": Usage(
            memory_peak_bytes=300 * MIB, pids_max_events=7 if verdict is Verdict.PIDS_LIMIT else 0
        ),
        "limits": CallLimits(
            memory_bytes=200 * MIB, memory_max_bytes=300 * MIB, pids_max=50, deadline_ms=2000
        ),
        "duration_ms": 2100,
        "leftover_processes": 0,
        "kill_note": "",
        "memory_grantable_bytes": 3000 * MIB,
        "session_memory_bytes": 3500 * MIB,
    }
    return EndedCall(**(facts | changes))  # type: ignore[arg-type]


def test_a_call_over_its_limit_is_told_limit_peak_and_what_to_declare() -> None:
    message, advice = word(ended(Verdict.MEMORY_LIMIT_CALL, ExitStatus(signal=9)))
    assert "limit of 300 MiB (peak 300 MiB)" in message and "Only this call" in message
    assert "--memory 600M --memory-max 600M" in advice


def test_a_call_that_was_not_warned_is_told_why_as_far_as_the_kernel_tells() -> None:
    killed, fast = ExitStatus(signal=9), Usage(memory_growth_peak_bytes_per_s=3 << 30)
    message, _ = word(ended(Verdict.MEMORY_LIMIT_CALL, killed, unwarned_bytes=16 * MIB, usage=fast))
    assert "no time to warn: it took the last 16 MiB below its limit" in message
    assert "growing by up to 3.0 GiB a second" in message or "growing by up to 3 GiB a second" in message
    message, _ = word(ended(Verdict.MEMORY_LIMIT_CALL, killed, unwarned_bytes=16 * MIB))
    assert "before the daemon could say so. Only this call" in message
    assert "to warn" not in word(ended(Verdict.MEMORY_LIMIT_CALL, killed))[0]


def test_a_call_killed_in_a_full_session_is_told_what_the_agents_runtime_had_of_it() -> None:
    killed = ExitStatus(signal=9)
    message, _ = word(ended(Verdict.MEMORY_LIMIT_SESSION, killed, agent_beyond_bytes=500 * MIB))
    assert "reached 2.93 GiB (its agent's runtime had taken 500 MiB of what is theirs)" in message
    assert "together reached 3.42 GiB, and" in word(ended(Verdict.MEMORY_LIMIT_SESSION, killed))[0]


VICTIM = OomVictim(7, "cc1plus", 8, "ld", anonymous_bytes=200 * MIB, count=1)


@pytest.mark.parametrize(
    "verdict", [Verdict.MEMORY_LIMIT_CALL, Verdict.MEMORY_LIMIT_SESSION, Verdict.MEMORY_LIMIT_HOST]
)
def test_who_was_killed_and_for_whom_is_told_where_the_kernel_tells_it(verdict: Verdict) -> None:
    message, _ = word(ended(verdict, victim=VICTIM))
    assert "The victim was cc1plus (pid 7, 200 MiB of its own), when ld (pid 8) asked for more." in message
    assert "victim" not in word(ended(verdict))[0]


def test_a_victim_that_asked_itself_is_not_named_twice() -> None:
    message, _ = word(ended(Verdict.MEMORY_LIMIT_CALL, victim=OomVictim(7, "ld", 7, "ld", None, 3)))
    assert "The victim was ld (pid 7), which asked for more; 2 others went with it." in message


def test_no_more_memory_is_suggested_than_can_be_granted() -> None:
    _, some = word(ended(Verdict.MEMORY_LIMIT_CALL, memory_grantable_bytes=400 * MIB))
    assert "--memory-max 400M" in some and "600M" not in some
    _, none = word(ended(Verdict.MEMORY_LIMIT_CALL, memory_grantable_bytes=0))
    assert "No more can be granted now" in none


def test_processes_left_behind_are_mentioned_whatever_the_verdict() -> None:
    one, advice = word(ended(Verdict.OK, ExitStatus(exit_code=0), leftover_processes=1))
    assert "1 process it left behind was killed" in one and "call of its own" in advice
    two, _ = word(ended(Verdict.EXIT_CODE, ExitStatus(exit_code=2), leftover_processes=2))
    assert "2 processes it left behind were killed" in two


@pytest.mark.parametrize("verdict", list(Verdict))
def test_every_verdict_has_words(verdict: Verdict) -> None:
    status = ExitStatus(signal=15) if verdict is Verdict.SIGNAL else ExitStatus(exit_code=1)
    message, _ = word(ended(verdict, status))
    assert message.endswith(".") and message[0].isupper() and "None" not in message


def test_a_calm_end_needs_no_advice() -> None:
    assert word(ended(Verdict.OK, ExitStatus(exit_code=0)))[1] == ""


def test_pids_and_deadline_name_the_option_that_helps() -> None:
    assert "--pids 100" in word(ended(Verdict.PIDS_LIMIT, ExitStatus(exit_code=1)))[1]
    message, advice = word(ended(Verdict.DEADLINE))
    assert "deadline of 2 s" in message and "--timeout" in advice


@pytest.mark.parametrize(
    ("hold", "words"),
    [
        (None, "; until then it ran on the agent's account."),
        (DoorHold(60, lasted=True), "; the scheduler held it from 0.1 ms on."),
        (
            DoorHold(4_200, lasted=False),
            "; the scheduler held it from 4.2 ms on, but not until the end (scheduler.door_hold).",
        ),
    ],
)
def test_a_report_says_how_late_a_call_was_placed_and_what_it_did_until_then(
    hold: DoorHold | None, words: str
) -> None:
    message, _ = word(ended(Verdict.OK, placement=Placement(7, hold)))
    assert f"It was placed 7 ms after its exec{words}" in message


def test_a_call_that_its_caller_ended_is_not_called_a_riddle() -> None:
    assert word(ended(Verdict.UNKNOWN, finished=True))[0].startswith("Ended by its caller after 2.1 s")
    assert "how is not known" in word(ended(Verdict.UNKNOWN))[0]


def test_refused_processes_are_told_whatever_the_verdict_with_what_to_declare() -> None:
    refused = Usage(pids_max_events=1)
    for verdict, status in ((Verdict.OK, ExitStatus(exit_code=0)), (Verdict.SIGNAL, ExitStatus(signal=6))):
        message, advice = word(ended(verdict, status, usage=refused, session_pids_max=80))
        assert "refused it a new process once: it might have 50 processes and threads" in message
        assert "make -jN" in advice or verdict is Verdict.SIGNAL
    assert (
        "--pids 80"
        in word(ended(Verdict.OK, ExitStatus(exit_code=0), usage=refused, session_pids_max=80))[1]
    )
    none = word(ended(Verdict.PIDS_LIMIT, ExitStatus(exit_code=1), session_pids_max=50))[1]
    assert "no more can be granted" in none and "--pids" not in none


def test_a_call_that_failed_while_a_limit_that_it_shares_refused_is_not_told_that_no_limit_was_involved() -> (
    None
):
    failed = ExitStatus(exit_code=2)
    message, advice = word(
        ended(
            Verdict.EXIT_CODE,
            failed,
            refused_around=3,
            around_pids_max=200,
            around_whose="of the whole session",
        )
    )
    assert "no limit was involved" not in message
    assert "a new process 3 times at the limit of 200 processes and threads of the whole session" in message
    assert "fewer calls at once" in advice
    assert "no limit was involved" in word(ended(Verdict.EXIT_CODE, failed))[0]
