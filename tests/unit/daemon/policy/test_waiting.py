"""What a call that waits is told is something to go by, and does not change every second."""

import pytest

from agentcgroup.daemon.policy import waiting


@pytest.mark.parametrize(
    ("estimated_wait_ms", "words"),
    [
        (None, "nobody knows for how long"),
        (0, "likely for a few seconds"),
        (9_999, "likely for a few seconds"),
        (10_000, "likely for less than 30 s"),
        (30_001, "likely for less than 1 min"),
        (200_000, "likely for less than 3 min 30 s"),
    ],
)
def test_a_wait_is_told_in_steps(estimated_wait_ms: int | None, words: str) -> None:
    told = waiting.queued(2, 5, estimated_wait_ms, 90_000)
    assert told == f"Queued for room, place 2 of 5, {words}; refused when it has waited 1 min 30 s."


def test_a_refusal_after_the_wait_says_what_is_in_the_way_and_how_long_it_was() -> None:
    assert waiting.gave_up("Refused: 1 GiB is free.", 90_000) == (
        "Refused: 1 GiB is free. It waited 1 min 30 s for its turn."
    )
    assert "calls before it" in waiting.gave_up("", 90_000)


def test_a_full_queue_says_whose() -> None:
    assert "64 calls of this session" in waiting.full(64, True)
    assert "256 calls of this host" in waiting.full(256, False)
