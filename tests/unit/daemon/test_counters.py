"""Counters count what they are told, in the right bucket, and copies stand still."""

from dataclasses import fields

from agentcgroup.daemon.counters import Counters, Door, Histogram
from agentcgroup.daemon.model import CpuClass, Decision, ExitStatus, Priority, Reason, Report, Usage, Verdict


def _report(started_at_ns: int | None, usage: Usage, verdict: Verdict = Verdict.OK) -> Report:
    ended_at_ns = 2_000_000_000
    return Report("c1", "s1", verdict, ExitStatus(0), usage, started_at_ns, ended_at_ns, 1500, 2, "", "")


def test_an_observation_on_a_bound_is_counted_in_the_bucket_of_that_bound() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 3.0):
        histogram.observe(value)
    assert histogram.counts == [2, 2, 1]
    assert histogram.total == 8.0


def test_a_call_that_never_began_counts_as_ended_and_has_no_duration() -> None:
    counters = Counters()
    counters.call_ended(_report(None, Usage(), Verdict.NOT_BEGUN), Priority.LOW, None)
    assert counters.calls_ended == {(Verdict.NOT_BEGUN, Priority.LOW, None): 1}
    assert sum(counters.call_duration_s[None].counts) == 0


def test_an_unknown_peak_is_not_counted_as_a_peak_of_zero() -> None:
    counters = Counters()
    counters.call_ended(_report(1, Usage(memory_peak_bytes=None)), Priority.HIGH, CpuClass.BATCH)
    counters.call_ended(_report(1, Usage(memory_peak_bytes=3 << 20)), Priority.HIGH, CpuClass.BATCH)
    peaks = counters.call_peak_bytes[CpuClass.BATCH]
    assert sum(peaks.counts) == 1
    assert peaks.total == 3 << 20
    assert counters.leftover_processes == 4


def test_a_copy_has_every_counter() -> None:
    counters = Counters()
    numbers = {field.name: 3 + at for at, field in enumerate(fields(Counters)) if field.type is int}
    for name, number in numbers.items():
        setattr(counters, name, number)
    copy = counters.copy()
    assert "transparent_left" in numbers
    assert {name: getattr(copy, name) for name in numbers} == numbers


def test_a_copy_does_not_move_with_the_original() -> None:
    counters = Counters()
    counters.placed(Door.LAUNCHER, 0.0004)
    counters.answer(Decision.REFUSED, Reason.HOST_MEMORY)
    copy = counters.copy()
    counters.placed(Door.LAUNCHER, 0.0004)
    counters.answer(Decision.REFUSED, Reason.HOST_MEMORY)
    counters.lose_kernel_events(3)
    assert sum(copy.placement_s[Door.LAUNCHER].counts) == 1
    assert copy.answers[Decision.REFUSED, Reason.HOST_MEMORY] == 1
    assert copy.kernel_events_lost == 0
    assert counters.kernel_events_lost == 3
