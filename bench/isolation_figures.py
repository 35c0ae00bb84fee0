"""Figures of an isolation run: medians with bootstrap intervals over repetitions, and what they say."""

import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from agentcgroup.client.replaying import PlayedSession, percentile
from bench.arms import HIGH, MEANING, Arm

_RESAMPLES: Final = 2000
_CONFIDENCE: Final = 0.95
_NEAR_PEAK: Final = 0.8
# What is to be reached, see the project's goals.
HIGH_WITHIN: Final = 1.02
STEP_P95_WITHIN: Final = 1.3
LOW_WITHIN: Final = 1.5
# Two arms closer than this are as good as each other.
_SAME: Final = 1.05


@dataclass(frozen=True, slots=True)
class Estimate:
    """A median over repetitions with its interval; None: no repetition had it."""

    median: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0


def estimate(values: Sequence[float], seed: int = 0) -> Estimate:
    """The median and its percentile bootstrap interval (Efron and Tibshirani, 1993, chapter 13)."""
    if not values:
        return Estimate(None)
    source = random.Random(seed)
    medians = sorted(statistics.median(source.choices(values, k=len(values))) for _ in range(_RESAMPLES))
    tail = (1 - _CONFIDENCE) / 2
    return Estimate(
        statistics.median(values),
        medians[int(tail * _RESAMPLES)],
        medians[min(_RESAMPLES - 1, int((1 - tail) * _RESAMPLES))],
        len(values),
    )


Repetition = list[PlayedSession]


def overlap(repetition: Repetition) -> float | None:
    """Of the time in which the first session of high priority was near its own peak: in how much another one was, too.

    None when there is no other, or the first was never there.
    """
    spans = {each.session: _near_peak(each) for each in repetition}
    first = next((each.session for each in repetition if each.priority == HIGH), None)
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


def most_held_bytes(repetition: Repetition) -> int:
    """The most that all sessions held together at one moment."""
    changes: list[tuple[int, str, int]] = []
    for each in repetition:
        changes += [(at, each.session, held) for at, held in each.held()]
    now: dict[str, int] = {}
    most = 0
    for _, name, held in sorted(changes):
        now[name] = held
        most = max(most, sum(now.values()))
    return most


def arm_figures(arm: Arm, repetitions: Sequence[Repetition]) -> dict[str, Any]:
    """Everything about one arm."""
    names = [each.session for each in repetitions[0]] if repetitions else []
    overlaps = [found for each in repetitions if (found := overlap(each)) is not None]
    return {
        "arm": arm.value,
        "meaning": MEANING[arm],
        "repetitions": len(repetitions),
        "all_survived": _share(repetitions, lambda each: all(played.survived for played in each)),
        "overlap_of_peaks": estimate(overlaps),
        "most_held_bytes": estimate([float(most_held_bytes(each)) for each in repetitions]),
        "sessions": [_session_figures(number, repetitions) for number in range(len(names))],
    }


def _session_figures(number: int, repetitions: Sequence[Repetition]) -> dict[str, Any]:
    mine = [each[number] for each in repetitions]
    steps = [each.step_us for each in mine]

    def of_steps(share: float) -> Estimate:
        return estimate([found for each in steps if (found := percentile(each, share)) is not None])

    return {
        "session": mine[0].session,
        "priority": mine[0].priority,
        "survived": sum(each.survived for each in mine) / len(mine),
        "agent_survived": sum(each.completed_us is not None for each in mine) / len(mine),
        "calls_ended_well": sum(sum(call.status == 0 for call in each.calls) for each in mine),
        "calls_recorded": sum(each.calls_recorded for each in mine),
        "calls_refused": sum(call.tries - 1 for each in mine for call in each.calls),
        "completed_us": estimate(
            [float(each.completed_us) for each in mine if each.completed_us is not None]
        ),
        "step_p50_us": of_steps(0.5),
        "step_p95_us": of_steps(0.95),
        "step_p99_us": of_steps(0.99),
        "step_most_us": max((max(each) for each in steps if each), default=None),
    }


def _share(repetitions: Sequence[Repetition], holds: Callable[[Repetition], bool]) -> float:
    return sum(map(holds, repetitions)) / len(repetitions) if repetitions else 0.0


# ---- what they say


@dataclass(frozen=True, slots=True)
class Score:
    """One arm against the mark: None where there is nothing to compare."""

    arm: str
    all_survived: float
    high_time: float | None
    high_p95: float | None
    low_time: float | None


def scores(arms: Sequence[dict[str, Any]]) -> list[Score]:
    """Each arm's sessions of high priority against ALONE, the others against NO_CONTROL, by medians."""
    by_name = {each["arm"]: each for each in arms}
    alone, free = by_name.get(Arm.ALONE.value), by_name.get(Arm.NO_CONTROL.value)
    # Times of a run in which somebody died are no mark.
    free_is_whole = free is not None and free["all_survived"] == 1
    found = []
    for each in arms:
        if each["arm"] == Arm.ALONE.value:
            continue
        found.append(
            Score(
                each["arm"],
                each["all_survived"],
                _ratio(each, alone, "completed_us", high=True),
                _ratio(each, alone, "step_p95_us", high=True),
                _ratio(each, free, "completed_us", high=False) if free_is_whole else None,
            )
        )
    return found


def _ratio(arm: dict[str, Any], mark: dict[str, Any] | None, figure: str, *, high: bool) -> float | None:
    """The worst session's."""
    marks = {each["session"]: each[figure].median for each in mark["sessions"]} if mark else {}
    ratios = [
        each[figure].median / marks[each["session"]]
        for each in arm["sessions"]
        if (each["priority"] == HIGH) is high and each[figure].median and marks.get(each["session"])
    ]
    return max(ratios) if ratios else None


def verdicts(found: Sequence[Score]) -> list[str]:
    """Whether the product reaches its goals, and which simpler arm is as good, as sentences."""
    by_name = {each.arm: each for each in found}
    product = by_name.get(Arm.PRODUCT.value) or by_name.get(Arm.PRODUCT_CGROUP.value)
    if product is None:
        return []
    told = [
        _goal("everybody survived in every repetition", product.all_survived, 1.0, at_least=True),
        _goal("time of high priority against alone", product.high_time, HIGH_WITHIN),
        _goal("p95 of its allocation steps against alone", product.high_p95, STEP_P95_WITHIN),
        _goal("time of the others against no control", product.low_time, LOW_WITHIN),
    ]
    for each in found:
        if each.arm in (Arm.PRODUCT.value, Arm.PRODUCT_CGROUP.value):
            continue
        if is_as_good(each, product):
            told.append(f"'{each.arm}' is as good as {product.arm} here: use that.")
    if len(told) == 4:
        told.append(f"No simpler arm is as good as {product.arm} here.")
    kernel_half = by_name.get(Arm.PRODUCT_CGROUP.value)
    if kernel_half is not None and kernel_half is not product and is_as_good(kernel_half, product):
        told.append("The kernel half makes no difference here.")
    return told


def _goal(what: str, value: float | None, bound: float, at_least: bool = False) -> str:
    if value is None:
        return f"not judged: {what} (nothing to compare with)"
    met = value >= bound if at_least else value <= bound
    sign = "at least" if at_least else "at most"
    return f"{'reached' if met else 'MISSED'}: {what} is {value:.3f}, to be {sign} {bound:g}"


def is_as_good(simple: Score, product: Score) -> bool:
    """Nobody dies more often, and no figure is noticeably worse."""
    if simple.all_survived < product.all_survived:
        return False
    pairs = (
        (simple.high_time, product.high_time),
        (simple.high_p95, product.high_p95),
        (simple.low_time, product.low_time),
    )
    return all(one is None or other is None or one <= other * _SAME for one, other in pairs)


def table(arms: Sequence[dict[str, Any]]) -> list[str]:
    """One line an arm and session."""
    head = (
        f"{'ARM':<22}{'SESSION':<12}{'LIVED':>6}  {'TOOK s (95% interval)':<24}{'STEP p50':>9}{'p95':>9}{'p99 ms':>9}"
        f"{'REFUSED':>9}{'OVERLAP':>9}"
    )
    lines = [head]
    for arm in arms:
        for number, each in enumerate(arm["sessions"]):
            took: Estimate = each["completed_us"]
            overlapped: Estimate = arm["overlap_of_peaks"]
            steps = "".join(
                f"{_shown(each[figure].median, 1000):>9}"
                for figure in ("step_p50_us", "step_p95_us", "step_p99_us")
            )
            lines.append(
                f"{arm['arm'] if number == 0 else '':<22}{each['session'][:11]:<12}{each['survived']:>6.0%}  "
                f"{_shown(took.median, 1e6)} ({_shown(took.low, 1e6)}-{_shown(took.high, 1e6)})".ljust(66)
                + f"{steps}{each['calls_refused']:>9}"
                + (
                    f"{'-' if overlapped.median is None else f'{overlapped.median:.0%}':>9}"
                    if number == 0
                    else ""
                )
            )
    return lines


def _shown(value: float | None, unit: float) -> str:
    return "-" if value is None else f"{value / unit:.2f}"
