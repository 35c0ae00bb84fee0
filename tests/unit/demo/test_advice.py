"""Reading options out of the daemon's own sentences."""

from agentcgroup.daemon.model import CallLimits, ExitStatus, Usage, Verdict
from agentcgroup.daemon.policy.advice import EndedCall, word
from demo.advice import options_in
from demo.story import LOAD_FIRST_MEMORY_MAX, MIB


def test_options_are_read_with_their_values() -> None:
    text = "Declare more, for example --memory 384M --memory-max 384M (448 MiB can be granted now), or need less."

    assert options_in(text) == {"memory": "384M", "memory-max": "384M"}


def test_the_first_figure_of_an_option_counts() -> None:
    assert options_in("--pids 48, or --pids 96") == {"pids": "48"}


def test_a_text_without_options_has_none() -> None:
    assert options_in("Wait for a running call to end and declare again (see --help).") == {}


def test_what_the_daemon_says_of_a_call_killed_for_memory_can_be_followed() -> None:
    limit = int(LOAD_FIRST_MEMORY_MAX.removesuffix("M")) * MIB
    ended = EndedCall(
        verdict=Verdict.MEMORY_LIMIT_CALL, status=ExitStatus(signal=9), usage=Usage(memory_peak_bytes=limit),
        limits=CallLimits(memory_bytes=limit, memory_max_bytes=limit), duration_ms=1000, leftover_processes=0,
        kill_note="", memory_grantable_bytes=512 * MIB, session_memory_bytes=512 * MIB,
    )  # fmt: skip

    _, advice = word(ended)

    assert options_in(advice) == {"memory": "384M", "memory-max": "384M"}
