"""What the benchmark of warnings makes of what it heard."""

from datetime import UTC, datetime

from agentcgroup.client import Feedback, FeedbackKind
from bench.warned import Limit, Warned, _timed

MS = 1_000_000


def heard(*messages: tuple[int, FeedbackKind]) -> list[tuple[int, Feedback]]:
    return [
        (at_ms * MS, Feedback(sequence=1, at=datetime.now(UTC), session="s", kind=kind, message=""))
        for at_ms, kind in messages
    ]


def test_of_the_one_that_grew_its_last_instruction_counts() -> None:
    told = heard((0, FeedbackKind.STARTED), (103, FeedbackKind.WARNING), (420, FeedbackKind.ENDED))
    found = _timed(Limit.CALL, 48, 200, told, (100 * MS, 400 * MS), is_itself=True)
    assert found == Warned(Limit.CALL, 48, 200, 3.0, 297.0)
    late = heard((410, FeedbackKind.WARNING), (420, FeedbackKind.ENDED))
    assert _timed(Limit.CALL, 48, 200, late, (100 * MS, 400 * MS), is_itself=True).before_end_ms == -10.0


def test_of_another_one_its_end_counts_and_being_held_back_is_a_word_too() -> None:
    told = heard((50, FeedbackKind.THROTTLED), (60, FeedbackKind.FROZEN), (90, FeedbackKind.ENDED))
    found = _timed(Limit.YIELDS, 640, 200, told, (0, 0), is_itself=False)
    assert (found.warned_after_ms, found.before_end_ms) == (None, 40.0)


def test_an_end_without_a_word_is_not_warned_of() -> None:
    silent = heard((0, FeedbackKind.STARTED), (90, FeedbackKind.ENDED))
    assert _timed(Limit.SESSION, 48, 200, silent, (80 * MS, 89 * MS), is_itself=True).before_end_ms is None
