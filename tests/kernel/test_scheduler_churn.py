"""The scheduler under churn: what is not about figures but about nothing going wrong, said by the kernel itself."""

import os
import subprocess
import time
from pathlib import Path

import pytest

from agentcgroup.bpf.scheduler import CpuScheduler
from bench.spinning import SPIN, end, usage_us
from tests.running import wait_until

pytestmark = pytest.mark.kernel

# Forks, waits and is woken all the time.
NAP = ("/bin/sh", "-c", "while :; do sleep 0.01; done")
ROUNDS = 100
GROUPS_PER_ROUND = 10
# Rounds after which the cgroups of one are removed: who forked there has ended, mostly.
KEPT_ROUNDS = 3
AN_HOUR_NS = 3_600_000_000_000


@pytest.fixture
def leaf(ground: Path) -> Path:
    """Where tasks may be: `ground` has children with controllers."""
    path = ground / "leaf"
    path.mkdir()
    return path


def start(words: tuple[str, ...], group: Path) -> "subprocess.Popen[bytes]":
    # A shell tells of children that were killed.
    child = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    move(child, group)
    return child


def move(child: "subprocess.Popen[bytes]", group: Path) -> None:
    (group / "cgroup.procs").write_text(str(child.pid))


def hold(scheduler: CpuScheduler, child: "subprocess.Popen[bytes]") -> None:
    pidfd = os.pidfd_open(child.pid)
    try:
        scheduler.hold(pidfd, time.monotonic_ns() + AN_HOUR_NS)
    finally:
        os.close(pidfd)


def remove(groups: list[Path]) -> None:
    """With whoever was forked there and is still on its way to its end, slowly where it is throttled."""
    for group in groups:
        (group / "cgroup.kill").write_text("1")
    for group in groups:
        wait_until(lambda group=group: is_removed(group), deadline_s=60, what=f"the removal of {group.name}")


def is_removed(group: Path) -> bool:
    try:
        group.rmdir()
    except OSError:
        return False
    return True


def test_a_thousand_cgroups_come_and_go(ground: Path, leaf: Path, scheduler: CpuScheduler) -> None:
    """Under tasks that run, nap, fork, migrate, are throttled, held and killed in them."""
    begun = scheduler.counters()
    # So that who makes and removes the cgroups has time to.
    (ground / "cpu.weight").write_text("10")
    kept: list[list[Path]] = []
    walkers = [start(words, leaf) for words in (SPIN, SPIN, NAP, NAP)]
    for number in range(ROUNDS):
        groups = [ground / f"{number}-{one}" for one in range(GROUPS_PER_ROUND)]
        for group in groups:
            group.mkdir()
        (groups[1] / "cpu.max").write_text("5000 100000")
        (groups[2] / "cpu.weight").write_text(str(1 + number * 100))
        for one, walker in enumerate(walkers):
            move(walker, groups[(number + one) % len(walkers)])
        if number % 4 == 0:
            # One that is held, or about to be, in a group that is throttled, or about to be, while it is killed.
            victim = start(SPIN, groups[1])
            hold(scheduler, victim)
            (groups[1] / "cpu.max").write_text("max")
            (groups[1] / "cpu.max").write_text("1000 100000")
            end([victim])
        kept.append(groups)
        if len(kept) > KEPT_ROUNDS:
            remove(kept.pop(0))
    end(walkers)
    for groups in kept:
        remove(groups)
    counters = scheduler.counters()
    assert counters["groups_made"] - begun["groups_made"] >= ROUNDS * GROUPS_PER_ROUND
    assert counters["groups_missing"] == begun["groups_missing"]
    assert counters["throttles"] > begun["throttles"]
    # Freed groups are given out again: all that live now are those of the cgroups there are.
    wait_until(lambda: live(scheduler) <= cgroups(), deadline_s=60, what="the release of every group")
    assert len(list(scheduler.groups().keys())) <= cgroups()


def live(scheduler: CpuScheduler) -> int:
    counters = scheduler.counters()
    return counters["groups_made"] - counters["groups_freed"]


def cgroups() -> int:
    """Cgroups with the cpu controller, the root included."""
    return 1 + sum("cpu.weight" in files for _, _, files in os.walk("/sys/fs/cgroup"))


def test_many_held_tasks_end_while_they_are_held(leaf: Path, scheduler: CpuScheduler) -> None:
    for _ in range(6):
        children = [start(SPIN, leaf) for _ in range(4)]
        begun = scheduler.counters()["holds"]
        for child in children:
            hold(scheduler, child)
        wait_until(lambda begun=begun: scheduler.counters()["holds"] > begun, deadline_s=60, what="a hold")
        end(children)


def test_a_throttled_group_does_not_keep_its_tasks_from_ending(
    ground: Path, scheduler: CpuScheduler
) -> None:
    capped = ground / "capped"
    capped.mkdir()
    # A thousandth of a CPU: 1 ms a second.
    (capped / "cpu.max").write_text("1000 1000000")
    begun = scheduler.counters()["throttles"]
    children = [start(SPIN, capped) for _ in range(4)]
    wait_until(lambda: scheduler.counters()["throttles"] > begun, deadline_s=60, what="a throttle")
    end(children)
    remove([capped])


def test_a_capped_task_that_is_bound_to_a_cpu_runs_in_every_period(
    ground: Path, scheduler: CpuScheduler
) -> None:
    """Its CPU sleeps while it is throttled, and nothing but the end of that wakes it."""
    capped = ground / "capped"
    capped.mkdir()
    (capped / "cpu.max").write_text("20000 100000")
    child = start(SPIN, capped)
    os.sched_setaffinity(child.pid, {0})
    begun = scheduler.counters()["unthrottles"]
    # Of 20 ms each, more after a pause of the machine. Whoever is forgotten is rescued, after five seconds.
    wait_until(lambda: usage_us(capped) > 400_000, deadline_s=60, what="running between throttles")
    assert scheduler.counters()["unthrottles"] > begun + 2
    end([child])
