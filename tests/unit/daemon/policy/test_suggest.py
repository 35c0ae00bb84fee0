"""Figures from earlier runs: what completed runs needed, what killed runs prove, and what neither can spoil."""

import dataclasses
import math
from collections.abc import Sequence

import pytest
from hypothesis import given, settings, strategies as st

from agentcgroup.daemon.experience import KINDS_KEPT, RUNS_KEPT, Experience
from agentcgroup.daemon.model import (
    CallLimits,
    Decision,
    ExitStatus,
    HistoryEntry,
    Intent,
    Report,
    Usage,
    Verdict,
)
from agentcgroup.daemon.policy.suggest import (
    Observed,
    Rules,
    Run,
    project_of,
    quantile,
    run_of,
    suggestion_of,
)

MIB = 1 << 20
DAY_NS = 86_400 * 10**9
NOW_NS = 1_800_000_000 * 10**9
RULES = Rules(quantile=0.95, headroom=1.2, floor_bytes=64 * MIB, least_runs=3, half_life_ms=14 * 86_400_000)


def run(memory_mib: int | None, completed: bool = True, ended_at_ns: int = NOW_NS) -> Run:
    return Run(ended_at_ns, completed, 1000, None if memory_mib is None else memory_mib * MIB, 500_000)


def entry(
    peak_mib: int,
    verdict: Verdict = Verdict.OK,
    *,
    max_mib: int = 4096,
    command: Sequence[str] = ("pytest", "-q"),
) -> HistoryEntry:
    report = Report(
        call_id="c1", session="web", verdict=verdict, exit_status=ExitStatus(exit_code=0),
        usage=Usage(memory_peak_bytes=peak_mib * MIB, cpu_usage_us=500_000), started_at_ns=NOW_NS, ended_at_ns=NOW_NS,
        duration_ms=1000, leftover_processes=0, message="", advice="",
    )  # fmt: skip
    limits = CallLimits(memory_bytes=64 * MIB, memory_max_bytes=max_mib * MIB, memory_high_bytes=96 * MIB)
    return HistoryEntry(report, Intent(command=tuple(command)), limits, Decision.GRANTED, "", "django")


# ---- quantiles

_values = st.lists(st.integers(1, 10**6), min_size=1, max_size=40)
_observed = st.lists(
    st.builds(Observed, st.integers(1, 1000), st.booleans(), st.floats(0.001, 1.0)), min_size=1, max_size=40
)
_shares = st.floats(0.01, 0.99)


@settings(deadline=None)
@given(_values, _shares)
def test_without_killed_runs_it_is_the_ordinary_quantile(values: list[int], share: float) -> None:
    found = quantile([Observed(value, False) for value in values], share)
    rank = math.ceil(share * len(values) - 1e-6)
    assert found == (sorted(values)[max(rank, 1) - 1], False)


@settings(deadline=None)
@given(_observed, _shares, st.data())
def test_a_killed_run_never_lowers_a_figure(
    observed: list[Observed], share: float, data: st.DataObject
) -> None:
    at = data.draw(st.integers(0, len(observed) - 1))
    complete = [*observed[:at], dataclasses.replace(observed[at], is_at_least=False), *observed[at + 1 :]]
    cut = [*observed[:at], dataclasses.replace(observed[at], is_at_least=True), *observed[at + 1 :]]
    before, after = quantile(complete, share), quantile(cut, share)
    assert before is not None and after is not None
    assert after[0] >= before[0]


@settings(deadline=None)
@given(_observed, _shares)
def test_it_is_one_of_what_was_seen_and_above_all_only_when_runs_were_cut_short(
    observed: list[Observed], share: float
) -> None:
    value, is_above_all = quantile(observed, share) or (0, False)
    assert value in {each.value for each in observed}
    if is_above_all:
        assert value == max(each.value for each in observed)
        assert any(each.is_at_least for each in observed)


@settings(deadline=None)
@given(_observed, _shares, st.integers(1, 40))
def test_it_does_not_change_when_all_runs_grow_older_together(
    observed: list[Observed], share: float, half_lives: int
) -> None:
    older = [dataclasses.replace(each, weight=each.weight * 0.5**half_lives) for each in observed]
    assert quantile(older, share) == quantile(observed, share)


def test_of_nothing_there_is_no_quantile() -> None:
    assert quantile([], 0.5) is None


# ---- suggestions


def test_runs_that_completed_set_the_figure_with_room_above_it() -> None:
    found = suggestion_of("django", "pytest", [run(size) for size in (200, 210, 220, 230, 400)], RULES)
    assert (found.memory_seen_bytes, found.memory_bytes) == (400 * MIB, 480 * MIB)
    assert (found.memory_median_bytes, found.memory_is_at_least) == (220 * MIB, False)
    assert (found.expected_duration_ms, found.cpu_milli, found.runs, found.killed_runs) == (1000, 500, 5, 0)
    assert "pytest ran 5 times in project django; 95% of the runs needed at most 400 MiB" in found.reason


def test_runs_killed_at_a_limit_ask_for_more_than_the_limit() -> None:
    found = suggestion_of("", "pytest", [run(300, completed=False)] * 4, RULES)
    assert (found.memory_bytes, found.memory_is_at_least, found.runs, found.killed_runs) == (
        450 * MIB,
        True,
        0,
        4,
    )
    assert found.memory_median_bytes is found.expected_duration_ms is None
    assert "stopped at up to 300 MiB and never showed how much it needs" in found.reason


def test_one_killed_run_among_many_that_needed_less_changes_little() -> None:
    found = suggestion_of("", "pytest", [*[run(300)] * 40, run(4000, completed=False)], RULES)
    assert found.memory_bytes == 360 * MIB
    found = suggestion_of("", "pytest", [*[run(300)] * 40, *[run(310, completed=False)] * 40], RULES)
    assert found.memory_is_at_least and found.memory_bytes == 465 * MIB


def test_new_runs_outweigh_old_ones() -> None:
    old = [run(2000, ended_at_ns=NOW_NS - 200 * DAY_NS)] * 30
    new = [run(100)] * 3
    assert suggestion_of("", "pytest", [*old, *new], RULES).memory_seen_bytes == 100 * MIB
    assert suggestion_of("", "pytest", old, RULES).memory_seen_bytes == 2000 * MIB


def test_too_few_runs_give_no_figure_and_say_so() -> None:
    for runs, known in ([], "no run is"), ([run(100)], "1 run is"), ([run(100)] * 2, "2 runs are"):
        found = suggestion_of("django", "pytest", runs, RULES)
        assert found.memory_bytes is found.expected_duration_ms is None
        assert found.reason == f"A figure takes 3 runs of pytest; {known} known in project django."
    assert suggestion_of("", "", [run(1)] * 9, RULES).memory_bytes is None


def test_small_runs_get_the_floor() -> None:
    found = suggestion_of("", "git status", [run(3)] * 5, RULES)
    assert (found.memory_bytes, found.memory_seen_bytes) == (64 * MIB, 3 * MIB)
    assert "floor of 64 MiB" in found.reason


def test_a_kernel_without_peaks_gives_durations_only() -> None:
    found = suggestion_of("", "pytest", [run(None)] * 5, RULES)
    assert (found.memory_bytes, found.expected_duration_ms) == (None, 1000)
    assert "does not tell how much memory" in found.reason


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 4000), st.booleans()), min_size=3, max_size=40), st.integers(0, 4000)
)
def test_a_further_kill_at_a_limit_never_lowers_what_is_suggested(
    runs: list[tuple[int, bool]], above_mib: int
) -> None:
    known = [run(*each) for each in runs]
    before = suggestion_of("", "pytest", known, RULES)
    limit_mib = max(size for size, _ in runs) + above_mib
    after = suggestion_of("", "pytest", [*known, run(limit_mib, completed=False)], RULES)
    assert before.memory_bytes is not None and after.memory_bytes is not None
    assert after.memory_bytes >= before.memory_bytes or not after.memory_is_at_least


# ---- what counts


@pytest.mark.parametrize(
    ("verdict", "completed", "memory_mib"),
    [
        (Verdict.OK, True, 50),
        (Verdict.EXIT_CODE, True, 50),
        (Verdict.MEMORY_LIMIT_CALL, False, 128),
        (Verdict.THROTTLE_LIMIT, False, 96),
        (Verdict.MEMORY_LIMIT_SESSION, False, 50),
        (Verdict.DEADLINE, False, 50),
        (Verdict.OPERATOR, False, 50),
        (Verdict.SIGNAL, False, 50),
        (Verdict.UNKNOWN, False, 50),
    ],
)
def test_only_calls_that_ended_by_themselves_show_a_peak(
    verdict: Verdict, completed: bool, memory_mib: int
) -> None:
    taught = run_of(entry(50, verdict, max_mib=128))
    assert taught is not None
    assert (taught.completed, taught.memory_bytes) == (completed, memory_mib * MIB)


def test_a_call_that_lost_a_process_and_ended_well_shows_no_peak() -> None:
    whole = entry(50)
    usage = dataclasses.replace(whole.report.usage, oom_kill_events=1)
    robbed = dataclasses.replace(whole, report=dataclasses.replace(whole.report, usage=usage))
    taught = run_of(robbed)
    assert taught is not None and not taught.completed


def test_a_call_that_never_ran_teaches_nothing() -> None:
    assert run_of(entry(1, Verdict.NOT_BEGUN)) is None


def test_the_project_is_the_calls_label_before_its_sessions() -> None:
    assert project_of((("project", "a"), ("team", "x")), (("project", "b"),)) == "a"
    assert project_of((("team", "x"),), (("project", "b"),)) == "b"
    assert project_of((), ()) == ""


# ---- experience


def test_calls_of_one_kind_learn_from_each_other_and_from_no_others() -> None:
    experience = Experience(RULES)
    assert experience.learn([entry(100), entry(110, command=("python", "-m", "pytest")), entry(120)]) == 3
    assert experience.about("django", ["uv", "run", "pytest", "-x"]).memory_seen_bytes == 120 * MIB
    assert experience.about("", ["pytest"]).memory_bytes is None
    assert experience.about("django", ["cargo", "test"]).memory_bytes is None
    experience.learn([entry(500)])
    assert experience.about("django", ["pytest"]).memory_seen_bytes == 500 * MIB


def test_experience_is_bounded_in_runs_and_kinds() -> None:
    experience = Experience(RULES)
    experience.learn([entry(1000)])
    experience.learn(entry(100) for _ in range(RUNS_KEPT))
    assert experience.about("django", ["pytest"]).memory_seen_bytes == 100 * MIB
    experience.learn(entry(100, command=(f"tool-{number}.sh",)) for number in range(KINDS_KEPT))
    assert experience.about("django", ["pytest"]).runs == 0
