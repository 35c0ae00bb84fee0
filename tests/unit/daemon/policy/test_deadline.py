"""The word before a deadline."""

import pytest

from agentcgroup.daemon.policy.deadline import notice_ms, word


@pytest.mark.parametrize(
    ("deadline_ms", "expected"), [(60_000, 6_000), (3_600_000, 60_000), (2_000, 200), (1_999, None)]
)
def test_notice_is_the_last_tenth_within_bounds(deadline_ms: int, expected: int | None) -> None:
    assert notice_ms(deadline_ms) == expected


def test_the_word_says_when_and_how_to_get_longer() -> None:
    message, advice = word("c-1", 60_000, 6_000)
    assert message == "The call is stopped in 6 s, at its deadline of 1 min."
    assert "`agentcg call set c-1 --timeout 120s`" in advice
