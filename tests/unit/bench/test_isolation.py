"""What an isolation run says: figures from what was played, and sentences from figures."""

import dataclasses
import json
import statistics
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from agentcgroup.client import recordings
from agentcgroup.client.recordings import Call, Curve, Recording, Session, Source
from agentcgroup.client.replaying import Pace, PlayedCall, PlayedSession, Step
from bench import convert_traces, isolation
from bench.arms import Arm, joint_need, needs_of
from bench.isolation_figures import (
    Estimate,
    Score,
    arm_figures,
    estimate,
    is_as_good,
    score_table,
    scores,
    table,
    verdicts,
)
from bench.isolation_outcomes import Outcome, most_held_bytes, outcome_of, overlap
from bench.spawning import BenchError

MIB = 1 << 20


def played(
    name: str, took_us: int | None, step_us: list[int], near: tuple[int, int], high: bool
) -> PlayedSession:
    """Holds 10, and 100 from `near[0]` to `near[1]`."""
    made = PlayedSession(name, "high" if high else "low", 1, completed_us=took_us, agent_status=0)
    made.calls = [PlayedCall("c", 0, 1, 0, 1)]
    made.steps = [Step("agent", at, took, 10) for at, took in enumerate(step_us)]
    made.steps += [Step("agent", near[0], None, 100), Step("agent", near[1], None, 10)]
    return made


def trio(
    high_us: int, low_us: int | None, step_us: int = 1000, low_near: tuple[int, int] = (150, 250)
) -> list[PlayedSession]:
    return [
        played("high", high_us, [step_us] * 20, (100, 200), True),
        played("low", low_us, [step_us] * 20, low_near, False),
    ]


@settings(deadline=None)
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=12))
def test_an_estimate_is_the_median_within_its_interval(values: list[float]) -> None:
    found = estimate(values)
    assert found.median == statistics.median(values)
    assert found.low is not None and found.high is not None and found.median is not None
    assert min(values) <= found.low <= found.median <= found.high <= max(values)


def test_of_nothing_there_is_no_estimate() -> None:
    assert estimate([]).median is None


@pytest.mark.parametrize(
    ("low_near", "expected"), [((100, 200), 1.0), ((150, 250), 0.5), ((200, 300), 0.0), ((50, 1000), 1.0)]
)
def test_overlap_is_the_share_of_the_peak_in_which_another_was_near_its_own(
    low_near: tuple[int, int], expected: float
) -> None:
    assert overlap(trio(1, 1, low_near=low_near)) == expected
    assert most_held_bytes(trio(1, 1, low_near=low_near)) == (200 if expected else 110)


def test_alone_nothing_overlaps() -> None:
    assert overlap(trio(1, 1)[:1]) is None


def outcomes(arms: dict[Arm, list[list[PlayedSession]]]) -> dict[Arm, list[Outcome]]:
    return {arm: [outcome_of(each) for each in repetitions] for arm, repetitions in arms.items()}


def test_a_product_that_keeps_its_promises_says_so_and_names_who_else_does() -> None:
    arms = {
        Arm.ALONE: [trio(100, None)[:1]] * 3,
        Arm.NO_CONTROL: [trio(150, 200)] * 3,
        Arm.MEMORY_LOW: [trio(101, 260)] * 3,
        Arm.STATIC: [trio(101, 900)] * 3,
        Arm.PRODUCT_CGROUP: [trio(102, 250)] * 3,
        Arm.PRODUCT: [trio(101, 250)] * 3,
    }
    found = scores(outcomes(arms))
    by_name = {each.arm: each for each in found}
    assert by_name["agentcgroup"] == score("agentcgroup", 1.0, 1.01, 1.0, 1.25, n=3)
    told = verdicts(found)
    assert [line.partition(":")[0] for line in told[:4]] == ["met"] * 4
    assert told[4:] == [
        "'memory.low' is as good as agentcgroup here: use that.",
        "The kernel half makes no difference here.",
    ]
    lines = table([arm_figures(arm, played) for arm, played in outcomes(arms).items()])
    assert len(lines) == 1 + 1 + 5 * 2
    assert "50%" in lines[2]
    assert "1.250 (1.250-1.250)" in score_table(found)[-1]


def test_arms_are_compared_repetition_by_repetition() -> None:
    # The machine was twice as slow in the second: that is nobody's merit or fault.
    arms = {
        Arm.ALONE: [trio(100, None)[:1], trio(200, None)[:1], trio(100, None)[:1]],
        Arm.NO_CONTROL: [trio(100, 100), trio(200, None), trio(100, 100)],
        Arm.PRODUCT: [trio(101, 150), trio(202, 900), trio(101, 150)],
    }
    product = {each.arm: each for each in scores(outcomes(arms))}["agentcgroup"]
    assert product.high_time == Estimate(1.01, 1.01, 1.01, 3)
    # And where somebody died without control there is no mark for those of low priority.
    assert product.low_time == Estimate(1.5, 1.5, 1.5, 2)


def test_who_is_soon_done_because_its_call_died_has_no_time() -> None:
    lost = trio(60, 100)
    lost[0].calls = [PlayedCall("c", 0, 1, 137, 1)]
    arms = {Arm.ALONE: [trio(100, None)[:1]], Arm.MEMORY_HIGH: [lost]}
    (found,) = scores(outcomes(arms))
    assert found.high_time == Estimate(None) and found.all_survived == 0
    assert arm_figures(Arm.MEMORY_HIGH, [outcome_of(lost)])["sessions"][0]["completed_us"] == Estimate(None)


def test_a_product_that_misses_says_that() -> None:
    arms = {
        Arm.ALONE: [trio(100, None, 1000)[:1]] * 2,
        Arm.NO_CONTROL: [trio(100, None)] * 2,
        Arm.PRODUCT: [trio(150, 200, 2000), trio(150, None, 2000)],
    }
    told = verdicts(scores(outcomes(arms)))
    assert told == [
        "MISSED: share of repetitions in which everybody lived: 0.500, to be at least 1",
        "MISSED: time of high priority against alone: 1.500 (95%: 1.500-1.500, n=2), to be at most 1.02",
        "MISSED: p95 of its allocation steps against alone: 2.000 (95%: 2.000-2.000, n=2), to be at most 1.3",
        # A run in which somebody died is no mark.
        "not judged: time of the others against no control (nothing to compare with)",
        "No simpler arm is as good as agentcgroup here.",
    ]
    assert verdicts([]) == []


def score(
    arm: str,
    lived: float,
    high_time: float | None,
    high_p95: float | None,
    low_time: float | None,
    n: int = 1,
) -> Score:
    def of(value: float | None) -> Estimate:
        return Estimate(None) if value is None else Estimate(value, value, value, n)

    return Score(arm, lived, of(high_time), of(high_p95), of(low_time))


def test_who_lets_sessions_die_is_not_as_good() -> None:
    product = score("agentcgroup", 1.0, 1.0, 1.0, 1.2)
    assert is_as_good(score("x", 1.0, 1.015, None, 1.2), product)
    assert not is_as_good(score("x", 0.9, 1.0, 1.0, 1.2), product)
    assert not is_as_good(score("x", 1.0, 1.03, 1.0, 1.2), product)
    # In neither arm did all live, and there the session of high priority never did.
    assert not is_as_good(score("x", 0.0, None, 1.0, None), score("agentcgroup", 0.0, 1.0, 1.0, None))


def test_a_measurement_goes_on_where_it_stopped_and_not_with_another(tmp_path: Path) -> None:
    head = {"kernel": "7.3", "cpus": 1, "recording": {"name": "r"}, "pace": {"speed": 50.0}}
    before = outcome_of([played("high", 100, [7, 9], (100, 200), True)])
    scene = {
        "memory_bytes": 5,
        "orders": [["alone"]],
        "took_s": 2.5,
        "played": {"alone": [dataclasses.asdict(before)]},
    }
    path = tmp_path / "isolation-r.json"
    path.write_text(json.dumps({**head, "scenes": [scene]}))
    (begun,) = isolation.begun_scenes(path, head, [5], [Arm.ALONE])
    assert (begun.played, begun.orders, begun.took_s) == ({Arm.ALONE: [before]}, [[Arm.ALONE]], 2.5)
    (anew,) = isolation.begun_scenes(None, head, [5], [Arm.ALONE])
    assert (anew.played, anew.orders) == ({Arm.ALONE: []}, [])
    with pytest.raises(BenchError, match="its kernel is 7.3, and here it is 6.18"):
        isolation.begun_scenes(path, {**head, "kernel": "6.18"}, [5], [Arm.ALONE])
    with pytest.raises(BenchError, match="other limits or arms"):
        isolation.begun_scenes(path, head, [6], [Arm.ALONE])
    path.write_text("{}")
    with pytest.raises(BenchError, match="no result to go on with"):
        isolation.begun_scenes(path, head, [5], [Arm.ALONE])


def test_needs_are_those_of_agent_and_calls_at_one_moment() -> None:
    recording = Recording(
        (Session("a", "high", memory=Curve(Source.SAMPLED, (0, 100), (10 * MIB, 20 * MIB))), Session("b")),
        (
            Call("c1", "a", 50, 40, memory=Curve(Source.SAMPLED, (0,), (8 * MIB,))),
            Call("c2", "a", 80, 40, memory=Curve(Source.SAMPLED, (0, 5), (2 * MIB, 4 * MIB))),
        ),
    )
    assert needs_of(recording, Pace(scale=0.5)) == {"a": 12 * MIB, "b": 0}
    both = Recording(
        recording.sessions, (*recording.calls, Call("c3", "b", 85, 5, memory_peak_bytes=10 * MIB))
    )
    assert joint_need(both, Pace()) == (10 + 8 + 4 + 10) * MIB


@pytest.mark.parametrize(("text", "expected"), [("89%", 890), ("106%", 1060), ("1K", 1024)])
def test_a_limit_is_a_size_or_a_share_of_the_need(text: str, expected: int) -> None:
    assert isolation.limit_bytes(text, 1000) == expected


def test_a_converted_run_needs_exactly_what_was_sampled() -> None:
    samples = [
        [0.0, 100 * MIB, None],
        [1.0, 101 * MIB, 0],
        [2.0, 180 * MIB, 0],
        [3.0, 150 * MIB, 0],
        [4.0, 120 * MIB, 0],
    ]
    run = {
        "id": "task",
        "samples": samples,
        "tool_calls": [
            {"start_s": 0.5, "end_s": 0.9, "command": "ls"},
            {"start_s": 1.5, "end_s": 3.5, "command": "cd /x && python -m pytest -q"},
            {"start_s": 1.8, "end_s": 3.0, "command": "inside"},
            {"start_s": 3.9, "end_s": None},
        ],
    }
    session, calls = convert_traces.convert(run, "a", "high", convert_traces.Options(base_bytes=10 * MIB))
    (call,) = calls
    assert (call.command_class, call.start_ms, call.duration_ms) == ("pytest", 1500, 2000)
    assert call.memory == Curve(Source.SAMPLED, (500, 1500), (79 * MIB, 49 * MIB))
    assert needs_of(Recording((session,), (call,)), Pace())["a"] == 190 * MIB
    assert session.memory.bytes[-1] == 130 * MIB
    assert not call.intent
    _, (declaring,) = convert_traces.convert(run, "a", "high", convert_traces.Options(declare=True))
    assert declaring.intent == {"memory_bytes": 80 * MIB}


def test_the_shipped_recording_can_be_measured_with() -> None:
    recording = recordings.read(isolation.SHIPPED)
    assert {each.priority for each in recording.sessions} > {"high"}
    assert joint_need(recording, Pace()) > 64 * MIB
