"""The CPU scheduler on a real kernel, attached all the time: shares, caps, holds. Churn is in test_scheduler_churn.py.

Shares are read from cpu.stat after a given amount of CPU time, not of time: a slow machine makes these tests longer,
not wrong. A machine that pauses is another matter: to the guest, whose clock goes on, the task that a virtual CPU was
running seems to have used all of the pause. So what a pause can spoil is measured again (`settles`); a scheduler that
shares wrongly does so each time.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from agentcgroup.bpf.scheduler import CpuScheduler, ForeignScheduler, LatencyClass
from bench.spinning import end, make, spin, usage_us
from tests.running import wait_until

pytestmark = pytest.mark.kernel

POINTS = 3.0
MEASUREMENTS_MAX = 5
AN_HOUR_NS = 3_600_000_000_000
SESSIONS = {
    "a": (100, {"x": 100, "y": 300}),
    "b": (200, {"x": 50, "y": 100, "z": 50}),
    "c": (300, {"x": 400, "y": 100}),
}


def settles(measure: Callable[[], list[str]]) -> None:
    """Until `measure` finds nothing wrong; fails with what it found last."""
    for _ in range(MEASUREMENTS_MAX):
        wrong = measure()
        if not wrong:
            return
    raise AssertionError(f"measured {MEASUREMENTS_MAX} times, at last: {wrong}")


def used_us(whole: Path, groups: list[Path], cpu_s: float) -> dict[Path, int]:
    """What each had while `whole` used so much CPU time; the first second, in which all start, is left out."""
    start = usage_us(whole)
    wait_until(lambda: usage_us(whole) - start > 1e6, deadline_s=60)
    before = {group: usage_us(group) for group in groups}
    start = usage_us(whole)
    wait_until(lambda: usage_us(whole) - start > cpu_s * 1e6, deadline_s=60)
    return {group: usage_us(group) - before[group] for group in groups}


def test_every_level_of_nested_groups_shares_by_weight(ground: Path, scheduler: CpuScheduler) -> None:
    children = []
    for session, (weight, calls) in SESSIONS.items():
        make(ground / session, weight, is_inner=True)
        for call, call_weight in calls.items():
            children += spin(make(ground / session / call, call_weight))
    groups = [ground / s for s in SESSIONS] + [ground / s / c for s in SESSIONS for c in SESSIONS[s][1]]

    def wrong_shares() -> list[str]:
        used = used_us(ground, groups, 8)
        whole = sum(used[ground / session] for session in SESSIONS)
        wrong = []
        for session, (weight, calls) in SESSIONS.items():
            had = used[ground / session]
            shares = {session: (100 * had / whole, 100 * weight / 600)}
            for call, call_weight in calls.items():
                wanted = 100 * call_weight / sum(calls.values())
                shares[f"{session}/{call}"] = (100 * used[ground / session / call] / had, wanted)
            wrong += [
                f"{name}: {is_}, not {to_be}"
                for name, (is_, to_be) in shares.items()
                if abs(is_ - to_be) >= POINTS
            ]
        return wrong

    settles(wrong_shares)
    end(children)


def test_a_cap_is_kept_beside_others_and_alone(ground: Path, scheduler: CpuScheduler) -> None:
    capped, free = make(ground / "capped"), make(ground / "free")
    (capped / "cpu.max").write_text("50000 100000")

    def wrong_share() -> list[str]:
        before, begun = usage_us(capped), time.monotonic()
        wait_until(lambda: usage_us(capped) - before > 1.5e6, deadline_s=60)
        percent = (usage_us(capped) - before) / (time.monotonic() - begun) / 1e4
        return [] if abs(percent - 50) < 5 else [f"{percent} % of one CPU"]

    children = spin(capped)
    settles(wrong_share)
    children += spin(free)
    settles(wrong_share)
    end(children)


def test_an_idle_cgroup_gets_next_to_nothing_beside_another(ground: Path, scheduler: CpuScheduler) -> None:
    busy, idle = make(ground / "busy"), make(ground / "idle")
    children = spin(busy) + spin(idle)
    (idle / "cpu.idle").write_text("1")

    def wrong_share() -> list[str]:
        # The scheduler looks for it once a second.
        used = used_us(ground, [busy, idle], 5)
        percent = 100 * used[idle] / sum(used.values())
        return [] if percent < 20 else [f"{percent} %"]

    settles(wrong_share)
    end(children)


def test_a_hold_keeps_a_task_off_its_cpu_and_ends(ground: Path, scheduler: CpuScheduler) -> None:
    before = scheduler.counters()
    (child,) = spin(make(ground / "held"), 1)
    wait_until(lambda: usage_us(ground / "held") > 50_000, deadline_s=30)
    pidfd = os.pidfd_open(child.pid)
    scheduler.hold(pidfd, time.monotonic_ns() + AN_HOUR_NS)
    wait_until(lambda: scheduler.counters()["holds"] > before["holds"], deadline_s=30)
    # An hour was asked for; knobs.hold_max_ns is what there is.
    wait_until(lambda: scheduler.counters()["holds_released"] > before["holds_released"], deadline_s=30)
    ran = usage_us(ground / "held")
    wait_until(lambda: usage_us(ground / "held") > ran + 50_000, deadline_s=30)
    os.close(pidfd)
    end([child])


def test_a_held_task_can_be_killed(ground: Path, scheduler: CpuScheduler) -> None:
    before = scheduler.counters()
    (child,) = spin(make(ground / "held"), 1)
    wait_until(lambda: usage_us(ground / "held") > 50_000, deadline_s=30)
    pidfd = os.pidfd_open(child.pid)
    scheduler.hold(pidfd, time.monotonic_ns() + AN_HOUR_NS)
    os.close(pidfd)
    wait_until(lambda: scheduler.counters()["holds"] > before["holds"], deadline_s=30)
    end([child])


def test_a_scheduler_of_somebody_else_is_not_replaced(scheduler: CpuScheduler) -> None:
    with pytest.raises(ForeignScheduler, match="agentcgroup"):
        CpuScheduler()


def test_a_class_can_be_set_for_a_cgroup(ground: Path, scheduler: CpuScheduler) -> None:
    scheduler.set_class(os.stat(make(ground / "call")).st_ino, LatencyClass.INTERACTIVE)
