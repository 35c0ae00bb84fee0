"""What an agent and the decision log are told of a call that the kernel's guard has found."""

from dataclasses import replace

from agentcgroup.daemon.model import MemoryBreach
from agentcgroup.daemon.policy import guarding

MIB = 1 << 20
BREACH = MemoryBreach("web", "c-1", "other", 40 * MIB, 8 * MIB, 0, 50_000)


def test_the_words_say_how_fast_it_grows_into_what_and_what_is_done() -> None:
    words = guarding.words(BREACH)
    assert "40 MiB a second" in words and "was promised" in words and "The kernel slows it" in words


def test_without_a_hold_the_words_do_not_claim_one() -> None:
    assert "not slowed" in guarding.words(replace(BREACH, hold_us=0))


def test_a_wait_is_told_apart_from_a_promise() -> None:
    assert "waits for" in guarding.words(replace(BREACH, missing_bytes=0, stall_us=7000))


def test_the_other_session_is_named_to_operators_only() -> None:
    breach = replace(BREACH, for_session="zeta")
    assert "zeta" not in guarding.words(breach) + guarding.advice(breach)
    assert guarding.grounds(breach)["for_session"] == "zeta"
    assert guarding.advice(BREACH).endswith(".")
