"""Figures of an isolation run: medians with bootstrap intervals over repetitions, and what they say."""

import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from bench.arms import HIGH, MEANING, Arm
from bench.isolation_outcomes import Figures, Outcome

_RESAMPLES: Final = 2000
_CONFIDENCE: Final = 0.95
# What is to be reached, see the project's goals.
HIGH_WITHIN: Final = 1.02
STEP_P95_WITHIN: Final = 1.3
LOW_WITHIN: Final = 1.5
# Two arms whose steps, or whose low sessions, are closer than this are as good as each other.
_SAME: Final = 1.1

Figure = Callable[[Figures], float | None]


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


def arm_figures(arm: Arm, repetitions: Sequence[Outcome]) -> dict[str, Any]:
    """Everything about one arm."""
    names = repetitions[0].sessions if repetitions else ()
    overlaps = [each.overlap_of_peaks for each in repetitions if each.overlap_of_peaks is not None]
    return {
        "arm": arm.value,
        "meaning": MEANING[arm],
        "repetitions": len(repetitions),
        "all_survived": _share(repetitions),
        "overlap_of_peaks": estimate(overlaps),
        "most_held_bytes": estimate([float(each.most_held_bytes) for each in repetitions]),
        "sessions": [
            _session_figures([each.sessions[number] for each in repetitions]) for number in range(len(names))
        ],
    }


def _session_figures(mine: Sequence[Figures]) -> dict[str, Any]:
    def over(figure: Figure) -> Estimate:
        return estimate([found for each in mine if (found := figure(each)) is not None])

    return {
        "session": mine[0].session,
        "priority": mine[0].priority,
        "survived": sum(each.survived for each in mine) / len(mine),
        "agent_survived": sum(each.completed_us is not None for each in mine) / len(mine),
        "calls_ended_well": sum(each.calls_ended_well for each in mine),
        "calls_recorded": sum(each.calls_recorded for each in mine),
        "calls_refused": sum(each.calls_refused for each in mine),
        "completed_us": over(lambda each: each.took_us),
        "step_p50_us": over(lambda each: each.step_p50_us),
        "step_p95_us": over(lambda each: each.step_p95_us),
        "step_p99_us": over(lambda each: each.step_p99_us),
        "step_most_us": max(
            (each.step_most_us for each in mine if each.step_most_us is not None), default=None
        ),
    }


def _share(repetitions: Sequence[Outcome]) -> float:
    return sum(each.all_survived for each in repetitions) / len(repetitions) if repetitions else 0.0


# ---- what they say


@dataclass(frozen=True, slots=True)
class Score:
    """One arm against the marks, repetition by repetition: medians of ratios, of its worst session each time."""

    arm: str
    all_survived: float
    # Against ALONE, and against NO_CONTROL in those repetitions in which everybody lived there.
    high_time: Estimate
    high_p95: Estimate
    low_time: Estimate


def scores(played: Mapping[Arm, Sequence[Outcome]]) -> list[Score]:
    """Each arm's sessions of high priority against ALONE, the others against NO_CONTROL. Arms of one repetition are compared
    with each other: whatever the machine did meanwhile met both."""
    alone = [each.sessions for each in played.get(Arm.ALONE, ())]
    # Times of a run in which somebody died are no mark.
    free = [each.sessions if each.all_survived else () for each in played.get(Arm.NO_CONTROL, ())]
    return [
        Score(
            arm.value,
            _share(repetitions),
            _ratios(repetitions, alone, lambda each: each.took_us, high=True),
            _ratios(repetitions, alone, lambda each: each.step_p95_us, high=True),
            _ratios(repetitions, free, lambda each: each.took_us, high=False),
        )
        for arm, repetitions in played.items()
        if arm is not Arm.ALONE
    ]


def _ratios(
    arm: Sequence[Outcome], mark: Sequence[Sequence[Figures]], figure: Figure, *, high: bool
) -> Estimate:
    found = []
    for mine, theirs in zip(arm, mark, strict=False):
        marks = {each.session: figure(each) for each in theirs}
        ratios = [
            value / base
            for each in mine.sessions
            if (each.priority == HIGH) is high
            and (value := figure(each)) is not None
            and (base := marks.get(each.session))
        ]
        found += [max(ratios)] if ratios else []
    return estimate(found)


def verdicts(found: Sequence[Score]) -> list[str]:
    """Whether the product reaches its goals, and which simpler arm is as good, as sentences."""
    by_name = {each.arm: each for each in found}
    product = by_name.get(Arm.PRODUCT.value) or by_name.get(Arm.PRODUCT_CGROUP.value)
    if product is None:
        return []
    lived = Estimate(product.all_survived)
    told = [
        _goal("share of repetitions in which everybody lived", lived, 1.0, at_least=True),
        _goal("time of high priority against alone", product.high_time, HIGH_WITHIN),
        _goal("p95 of its allocation steps against alone", product.high_p95, STEP_P95_WITHIN),
        _goal("time of the others against no control", product.low_time, LOW_WITHIN),
    ]
    simpler = [each for each in found if each.arm not in (Arm.PRODUCT.value, Arm.PRODUCT_CGROUP.value)]
    as_good = [each for each in simpler if is_as_good(each, product)]
    told += [f"'{each.arm}' is as good as {product.arm} here: use that." for each in as_good]
    if simpler and not as_good:
        told.append(f"No simpler arm is as good as {product.arm} here.")
    kernel_half = by_name.get(Arm.PRODUCT_CGROUP.value)
    if kernel_half is not None and kernel_half is not product and is_as_good(kernel_half, product):
        told.append("The kernel half makes no difference here.")
    return told


def _goal(what: str, value: Estimate, bound: float, at_least: bool = False) -> str:
    if value.median is None:
        return f"not judged: {what} (nothing to compare with)"
    met = value.median >= bound if at_least else value.median <= bound
    sign = "at least" if at_least else "at most"
    interval = "" if value.low is None else f" (95%: {value.low:.3f}-{value.high:.3f}, n={value.n})"
    return f"{'met' if met else 'MISSED'}: {what}: {value.median:.3f}{interval}, to be {sign} {bound:g}"


def is_as_good(simple: Score, product: Score) -> bool:
    """Nobody dies more often, and no figure is noticeably worse."""
    # Where somebody always dies it still matters whether it was who is to be protected.
    if simple.all_survived < product.all_survived or simple.high_time.n < product.high_time.n:
        return False
    pairs = (
        (simple.high_time, product.high_time, HIGH_WITHIN),
        (simple.high_p95, product.high_p95, _SAME),
        (simple.low_time, product.low_time, _SAME),
    )
    return all(
        one.median is None or other.median is None or one.median <= other.median * same
        for one, other, same in pairs
    )


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


def in_short(repetition: Outcome) -> str:
    """How one repetition went, for whoever watches: time, and p50, p95 and p99 of the steps in ms."""
    return "; ".join(
        f"{each.session} "
        + (f"{each.took_us / 1e6:.3f} s " if each.took_us else "died ")
        + "/".join(
            _shown(step_us, 1000) for step_us in (each.step_p50_us, each.step_p95_us, each.step_p99_us)
        )
        for each in repetition.sessions
    )


def score_table(found: Sequence[Score]) -> list[str]:
    """One line an arm: its worst sessions against the marks."""
    lines = [
        f"{'ARM':<22}{'ALL LIVED':>9}  {'HIGH / ALONE':<22}{'ITS p95 STEP / ALONE':<22}{'LOW / NO CONTROL':<22}"
    ]
    for each in found:
        ratios = "".join(
            f"{_spread(figure):<22}" for figure in (each.high_time, each.high_p95, each.low_time)
        )
        lines.append(f"{each.arm:<22}{each.all_survived:>9.0%}  {ratios}".rstrip())
    return lines


def _spread(value: Estimate) -> str:
    if value.median is None:
        return "-"
    return f"{value.median:.3f} ({value.low:.3f}-{value.high:.3f})"


def _shown(value: float | None, unit: float) -> str:
    return "-" if value is None else f"{value / unit:.2f}"
