"""The CPU scheduler on a real kernel: shares, caps, holds, churn, its end.

Shares are read from cpu.stat after a given amount of CPU time, not of time: a slow machine makes these tests longer,
not wrong.
"""

import asyncio
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentcgroup.bpf.scheduler import (
    CpuScheduler,
    ForeignScheduler,
    LatencyClass,
    SchedulerMode,
    attached_scheduler,
)
from agentcgroup.bpf.shared_maps import HOLDS, SharedMaps
from agentcgroup.cgroups.scratch import scratch_cgroup
from agentcgroup.daemon.host.scheduler import SchedulerKeeper
from agentcgroup.daemon.model import SchedulerState, SchedulerStatus
from tests.running import wait_until

pytestmark = pytest.mark.kernel

SPIN = ("/bin/sh", "-c", "while :; do :; done")
POINTS = 3.0
SESSIONS = {
    "a": (100, {"x": 100, "y": 300}),
    "b": (200, {"x": 50, "y": 100, "z": 50}),
    "c": (300, {"x": 400, "y": 100}),
}


@pytest.fixture
def ground() -> Iterator[Path]:
    with scratch_cgroup("cpu", deadline_s=30) as cgroup:
        yield Path(cgroup.path)


@pytest.fixture
def scheduler() -> Iterator[CpuScheduler]:
    with CpuScheduler() as scheduler:
        scheduler.attach_scheduler(SchedulerMode.FULL)
        yield scheduler
        assert scheduler.end() is None, f"ejected: {scheduler.end()}"


def make(path: Path, weight: int = 100, *, is_inner: bool = False) -> Path:
    path.mkdir()
    (path / "cpu.weight").write_text(str(weight))
    if is_inner:
        (path / "cgroup.subtree_control").write_text("+cpu")
    return path


def spin(group: Path, count: int = 2) -> list[subprocess.Popen[bytes]]:
    started = []
    for _ in range(count):
        child = subprocess.Popen(SPIN)
        (group / "cgroup.procs").write_text(str(child.pid))
        started.append(child)
    return started


def usage_us(group: Path) -> int:
    return int((group / "cpu.stat").read_text().split()[1])


def used_us(whole: Path, groups: list[Path], cpu_s: float) -> dict[Path, int]:
    """What each had while `whole` used so much CPU time; the first second, in which all start, is left out."""
    start = usage_us(whole)
    wait_until(lambda: usage_us(whole) - start > 1e6, deadline_s=60)
    before = {group: usage_us(group) for group in groups}
    start = usage_us(whole)
    wait_until(lambda: usage_us(whole) - start > cpu_s * 1e6, deadline_s=60)
    return {group: usage_us(group) - before[group] for group in groups}


def test_every_level_of_nested_groups_shares_by_weight(ground: Path, scheduler: CpuScheduler) -> None:
    children: list[subprocess.Popen[bytes]] = []
    for session, (weight, calls) in SESSIONS.items():
        make(ground / session, weight, is_inner=True)
        for call, call_weight in calls.items():
            children += spin(make(ground / session / call, call_weight))
    groups = [ground / s for s in SESSIONS] + [ground / s / c for s in SESSIONS for c in SESSIONS[s][1]]
    used = used_us(ground, groups, 12)
    whole = sum(used[ground / session] for session in SESSIONS)
    for session, (weight, calls) in SESSIONS.items():
        had = used[ground / session]
        assert abs(100 * had / whole - 100 * weight / 600) < POINTS, session
        for call, call_weight in calls.items():
            wanted = 100 * call_weight / sum(calls.values())
            assert abs(100 * used[ground / session / call] / had - wanted) < POINTS, f"{session}/{call}"
    end(children)


def end(children: list[subprocess.Popen[bytes]]) -> None:
    for child in children:
        child.kill()
    for child in children:
        child.wait(timeout=60)


def test_a_cap_is_kept_beside_others_and_alone(ground: Path, scheduler: CpuScheduler) -> None:
    capped, free = make(ground / "capped"), make(ground / "free")
    (capped / "cpu.max").write_text("50000 100000")
    children = spin(capped)
    share_alone = share_of_one_cpu(capped, 2)
    children += spin(free)
    share_beside = share_of_one_cpu(capped, 2)
    end(children)
    assert abs(share_alone - 50) < 5 and abs(share_beside - 50) < 5


def test_an_idle_cgroup_gets_next_to_nothing_beside_another(ground: Path, scheduler: CpuScheduler) -> None:
    busy, idle = make(ground / "busy"), make(ground / "idle")
    children = spin(busy) + spin(idle)
    (idle / "cpu.idle").write_text("1")
    # The scheduler looks for it once a second.
    used = used_us(ground, [busy, idle], 6)
    end(children)
    assert 100 * used[idle] / sum(used.values()) < 20


def share_of_one_cpu(group: Path, cpu_s: float) -> float:
    before, begun = usage_us(group), time.monotonic()
    wait_until(lambda: usage_us(group) - before > cpu_s * 1e6, deadline_s=60)
    return (usage_us(group) - before) / (time.monotonic() - begun) / 1e4


def test_cgroups_come_and_go_under_running_and_ending_tasks(ground: Path, scheduler: CpuScheduler) -> None:
    for number in range(60):
        groups = [make(ground / f"{number}-{one}") for one in range(4)]
        (groups[1] / "cpu.max").write_text("2000 100000")
        children = spin(groups[1]) + spin(groups[number % 4], 1)
        for group in groups:
            (group / "cgroup.procs").write_text(str(children[-1].pid))
        for group in groups:
            (group / "cgroup.kill").write_text("1")
        end(children)
        for group in groups:
            wait_until(lambda group=group: is_removed(group), deadline_s=30)
    counters = scheduler.counters()
    assert counters["groups_made"] >= 240 and counters["groups_missing"] == 0
    wait_until(lambda: scheduler.counters()["groups_freed"] >= 239, deadline_s=30)


def is_removed(group: Path) -> bool:
    try:
        group.rmdir()
    except OSError:
        return False
    return True


def test_a_hold_keeps_a_task_off_its_cpu_and_ends(ground: Path, scheduler: CpuScheduler) -> None:
    (child,) = spin(make(ground / "held"), 1)
    wait_until(lambda: usage_us(ground / "held") > 50_000, deadline_s=30)
    pidfd = os.pidfd_open(child.pid)
    scheduler.hold(pidfd, time.monotonic_ns() + 3_600_000_000_000)
    wait_until(lambda: scheduler.counters()["holds"] == 1, deadline_s=30)
    # An hour was asked for; knobs.hold_max_ns is what there is.
    wait_until(lambda: scheduler.counters()["holds_released"] == 1, deadline_s=30)
    ran = usage_us(ground / "held")
    wait_until(lambda: usage_us(ground / "held") > ran + 50_000, deadline_s=30)
    os.close(pidfd)
    end([child])


def test_holds_outlive_the_scheduler_that_was_loaded_first(ground: Path) -> None:
    shared = SharedMaps(HOLDS)
    (child,) = spin(make(ground / "held"), 1)
    pidfd = os.pidfd_open(child.pid)
    with CpuScheduler(shared=shared) as first:
        first.attach_scheduler(SchedulerMode.FULL)
        first.hold(pidfd, time.monotonic_ns() + 3_600_000_000_000)
        wait_until(lambda: first.held(pidfd).total_ns > 0, deadline_s=30)
        held_ns = first.held(pidfd).total_ns
        first.hold(pidfd, time.monotonic_ns() + 3_600_000_000_000)
        wait_until(lambda: first.held(pidfd).begun_at_ns > 0, deadline_s=30)
    with CpuScheduler(shared=shared) as second:
        assert second.held(pidfd).total_ns >= held_ns
        second.attach_scheduler(SchedulerMode.FULL)
        wait_until(lambda: second.held(pidfd).total_ns > held_ns, deadline_s=30)
        assert second.end() is None
    os.close(pidfd)
    shared.close()
    end([child])


def test_a_held_task_can_be_killed(ground: Path, scheduler: CpuScheduler) -> None:
    (child,) = spin(make(ground / "held"), 1)
    wait_until(lambda: usage_us(ground / "held") > 50_000, deadline_s=30)
    pidfd = os.pidfd_open(child.pid)
    scheduler.hold(pidfd, time.monotonic_ns() + 3_600_000_000_000)
    os.close(pidfd)
    wait_until(lambda: scheduler.counters()["holds"] == 1, deadline_s=30)
    end([child])


def test_a_scheduler_of_somebody_else_is_not_replaced(scheduler: CpuScheduler) -> None:
    with pytest.raises(ForeignScheduler, match="agentcgroup"):
        CpuScheduler()


def test_closing_gives_the_host_back_to_the_kernel() -> None:
    with CpuScheduler() as scheduler:
        scheduler.attach_scheduler(SchedulerMode.PARTIAL)
        assert attached_scheduler() == "agentcgroup"
    wait_until(lambda: attached_scheduler() is None, deadline_s=10)


def test_a_class_can_be_set_for_a_cgroup(ground: Path, scheduler: CpuScheduler) -> None:
    scheduler.set_class(os.stat(make(ground / "call")).st_ino, LatencyClass.INTERACTIVE)


async def test_an_ejection_is_told_and_the_scheduler_comes_back() -> None:
    heard: asyncio.Queue[SchedulerStatus] = asyncio.Queue()
    keeper = SchedulerKeeper(SchedulerMode.FULL, on_change=heard.put_nowait)
    keeper.start()
    assert (await heard.get()).state is SchedulerState.ATTACHED
    eject()
    async with asyncio.timeout(60):
        told = await heard.get()
        assert (
            told.state is SchedulerState.WAITING and "sysrq" in told.reason.lower() and told.ejections == 1
        )
        assert (await heard.get()).state is SchedulerState.ATTACHED
    await keeper.stop()


def eject() -> None:
    # SysRq-S is the kernel's own way to throw a scheduler off (Documentation/scheduler/sched-ext.rst).
    Path("/proc/sysrq-trigger").write_text("S")
