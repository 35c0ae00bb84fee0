"""What one repetition of an isolation run came to: few figures of many steps, which a result keeps for each of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from agentcgroup.client.replaying import PlayedSession, percentile
from bench.arms import HIGH

_NEAR_PEAK: Final = 0.8


@dataclass(frozen=True, slots=True)
class Figures:
    """One session. `completed_us` None: its agent did not live to see the end."""

    session: str
    priority: str
    survived: bool
    completed_us: int | None
    calls_recorded: int
    calls_ended_well: int
    calls_refused: int
    step_p50_us: float | None
    step_p95_us: float | None
    step_p99_us: float | None
    step_most_us: int | None

    @property
    def took_us(self) -> int | None:
        """An agent whose call died is soon done; that is no merit."""
        return self.completed_us if self.survived else None


@dataclass(frozen=True, slots=True)
class Outcome:
    """All sessions, in the recording's order. `overlap_of_peaks`: see `overlap`."""

    sessions: tuple[Figures, ...]
    overlap_of_peaks: float | None
    most_held_bytes: int

    @property
    def all_survived(self) -> bool:
        return all(each.survived for each in self.sessions)


def outcome_of(played: Sequence[PlayedSession]) -> Outcome:
    """What was played, in short."""
    return Outcome(tuple(map(_figures_of, played)), overlap(played), most_held_bytes(played))


def read_outcome(written: Mapping[str, Any]) -> Outcome:
    """One that was written as JSON. Raises TypeError or KeyError when it is none."""
    sessions = tuple(Figures(**each) for each in written["sessions"])
    return Outcome(sessions, written["overlap_of_peaks"], written["most_held_bytes"])


def _figures_of(played: PlayedSession) -> Figures:
    steps = played.step_us
    return Figures(
        played.session,
        played.priority,
        played.survived,
        played.completed_us,
        played.calls_recorded,
        sum(call.status == 0 for call in played.calls),
        sum(call.tries - 1 for call in played.calls),
        percentile(steps, 0.5),
        percentile(steps, 0.95),
        percentile(steps, 0.99),
        max(steps, default=None),
    )


def overlap(played: Sequence[PlayedSession]) -> float | None:
    """Of the time in which the first session of high priority was near its own peak: in how much another one was, too.

    None when there is no other, or the first was never there.
    """
    spans = {each.session: _near_peak(each) for each in played}
    first = next((each.session for each in played if each.priority == HIGH), None)
    others = [span for name, found in spans.items() if name != first for span in found]
    if first is None or not others or not spans[first]:
        return None
    total = sum(end - start for start, end in spans[first])
    moments = sorted({moment for span in (*spans[first], *others) for moment in span})
    shared = sum(
        after - before
        for before, after in zip(moments, moments[1:], strict=False)
        if _covers(spans[first], before, after) and _covers(others, before, after)
    )
    return shared / total if total else None


def _near_peak(played: PlayedSession) -> list[tuple[int, int]]:
    course = played.held()
    most = max((held for _, held in course), default=0)
    spans: list[tuple[int, int]] = []
    for (at, held), (until, _) in zip(course, course[1:], strict=False):
        if most and held >= most * _NEAR_PEAK and until > at:
            spans.append((at, until))
    return spans


def _covers(spans: Sequence[tuple[int, int]], start: int, end: int) -> bool:
    return any(span_start <= start and end <= span_end for span_start, span_end in spans)


def most_held_bytes(played: Sequence[PlayedSession]) -> int:
    """The most that all sessions held together at one moment."""
    changes: list[tuple[int, str, int]] = []
    for each in played:
        changes += [(at, each.session, held) for at, held in each.held()]
    now: dict[str, int] = {}
    most = 0
    for _, name, held in sorted(changes):
        now[name] = held
        most = max(most, sum(now.values()))
    return most
