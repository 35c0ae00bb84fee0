"""The scheduler under churn: what is not about figures but about nothing going wrong, said by the kernel itself."""

import contextlib
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agentcgroup.bpf.scheduler import CpuScheduler, SchedulerMode
from agentcgroup.cgroups.scratch import scratch_cgroup
from tests.running import wait_until

pytestmark = pytest.mark.kernel

SPIN = ("/bin/sh", "-c", "while :; do :; done")
# Forks, waits and is woken all the time.
NAP = ("/bin/sh", "-c", "while :; do sleep 0.01; done")
ROUNDS = 250
GROUPS_PER_ROUND = 4
CPU1 = Path("/sys/devices/system/cpu/cpu1/online")
AN_HOUR_NS = 3_600_000_000_000
WARNING = re.compile(
    r"WARNING|BUG:|Oops|stall|hung task|scheduler .* (errored|exited)|kernel panic", re.IGNORECASE
)


@pytest.fixture
def ground() -> Iterator[Path]:
    with scratch_cgroup("churn", deadline_s=60) as cgroup:
        yield Path(cgroup.path)


@pytest.fixture
def scheduler() -> Iterator[CpuScheduler]:
    """Attached all the time, without a word from the kernel."""
    with kernel_log() as warnings, CpuScheduler() as scheduler:
        scheduler.attach_scheduler(SchedulerMode.FULL)
        yield scheduler
        assert scheduler.end() is None, f"ejected: {scheduler.end()}"
        assert warnings() == []


@contextlib.contextmanager
def kernel_log() -> Iterator[Callable[[], list[str]]]:
    """Lines of the kernel's log since then that should not be there."""
    descriptor = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    os.lseek(descriptor, 0, os.SEEK_END)

    def warnings() -> list[str]:
        found: list[str] = []
        while True:
            try:
                record = os.read(descriptor, 8192).decode(errors="replace")
            except BlockingIOError:
                return found
            if WARNING.search(record):
                found.append(record)

    try:
        yield warnings
    finally:
        os.close(descriptor)


def move(child: "subprocess.Popen[bytes]", group: Path) -> None:
    (group / "cgroup.procs").write_text(str(child.pid))


def remove(group: Path) -> None:
    def is_removed() -> bool:
        try:
            group.rmdir()
        except OSError:
            return False
        return True

    wait_until(is_removed, deadline_s=60, what=f"the removal of {group.name}")


def end(children: "list[subprocess.Popen[bytes]]") -> None:
    for child in children:
        child.kill()
    for child in children:
        child.wait(timeout=60)


def test_a_thousand_cgroups_come_and_go(ground: Path, scheduler: CpuScheduler) -> None:
    """Under tasks that run, nap, migrate, are throttled, held and killed in them."""
    made_before = scheduler.counters()["groups_made"]
    before: list[Path] = []
    walkers = [subprocess.Popen(SPIN), subprocess.Popen(SPIN), subprocess.Popen(NAP), subprocess.Popen(NAP)]
    for number in range(ROUNDS):
        groups = [ground / f"{number}-{one}" for one in range(GROUPS_PER_ROUND)]
        for group in groups:
            group.mkdir()
        (groups[1] / "cpu.max").write_text("1000 100000")
        (groups[2] / "cpu.weight").write_text(str(1 + number * 40))
        for one, walker in enumerate(walkers):
            move(walker, groups[(number + one) % GROUPS_PER_ROUND])
        if number % 5 == 0:
            # One that is held, in a group that is throttled, while it is killed.
            victim = subprocess.Popen(SPIN)
            move(victim, groups[1])
            pidfd = os.pidfd_open(victim.pid)
            scheduler.hold(pidfd, time.monotonic_ns() + AN_HOUR_NS)
            os.close(pidfd)
            move(walkers[number % 4], groups[1])
            (groups[1] / "cpu.max").write_text("max")
            (groups[1] / "cpu.max").write_text("1000 100000")
            victim.kill()
            victim.wait(timeout=60)
        for group in before:
            remove(group)
        before = groups
    end(walkers)
    for group in before:
        remove(group)
    counters = scheduler.counters()
    made = counters["groups_made"] - made_before
    assert made >= ROUNDS * GROUPS_PER_ROUND and counters["groups_missing"] == 0
    # Freed groups are given out again: all that live now are those of the cgroups there are.
    wait_until(lambda: live(scheduler) <= cgroups(), deadline_s=30, what="the release of every group")
    assert counters["throttles"] > 0


def live(scheduler: CpuScheduler) -> int:
    counters = scheduler.counters()
    return counters["groups_made"] - counters["groups_freed"]


def cgroups() -> int:
    """Cgroups with the cpu controller, the root included."""
    return 1 + sum(1 for _ in Path("/sys/fs/cgroup").rglob("cpu.weight"))


def test_many_held_tasks_end_while_they_are_held(ground: Path, scheduler: CpuScheduler) -> None:
    for _ in range(6):
        children = [subprocess.Popen(SPIN) for _ in range(4)]
        for child in children:
            move(child, ground)
            pidfd = os.pidfd_open(child.pid)
            scheduler.hold(pidfd, time.monotonic_ns() + AN_HOUR_NS)
            os.close(pidfd)
        wanted = scheduler.counters()["holds"] + 1
        wait_until(lambda wanted=wanted: scheduler.counters()["holds"] >= wanted, deadline_s=30)
        end(children)


def test_a_throttled_group_does_not_keep_its_tasks_from_ending(
    ground: Path, scheduler: CpuScheduler
) -> None:
    capped = ground / "capped"
    capped.mkdir()
    # A thousandth of a CPU: 1 ms a second.
    (capped / "cpu.max").write_text("1000 1000000")
    children = [subprocess.Popen(SPIN) for _ in range(4)]
    for child in children:
        move(child, capped)
    wait_until(lambda: scheduler.counters()["throttles"] > 0, deadline_s=30)
    end(children)
    remove(capped)


@pytest.fixture
def second_cpu() -> Iterator[Path]:
    yield CPU1
    CPU1.write_text("1")


def test_a_cpu_goes_and_comes_back(ground: Path, scheduler: CpuScheduler, second_cpu: Path) -> None:
    children = [subprocess.Popen(SPIN) for _ in range(3)] + [subprocess.Popen(NAP) for _ in range(3)]
    for child in children:
        move(child, ground)
    os.sched_setaffinity(children[0].pid, {1})
    os.sched_setaffinity(children[3].pid, {1})
    for _ in range(3):
        second_cpu.write_text("0")
        # Whoever was bound to it goes on where the kernel lets it.
        before = usage_us(ground)
        wait_until(lambda before=before: usage_us(ground) - before > 200_000, deadline_s=60)
        second_cpu.write_text("1")
        before = usage_us(ground)
        wait_until(lambda before=before: usage_us(ground) - before > 200_000, deadline_s=60)
    for child in children:
        assert child.poll() is None
    end(children)


def usage_us(group: Path) -> int:
    return int((group / "cpu.stat").read_text().split()[1])


def test_a_capped_task_that_is_bound_to_a_cpu_stays_capped(ground: Path, scheduler: CpuScheduler) -> None:
    capped = ground / "capped"
    capped.mkdir()
    (capped / "cpu.max").write_text("20000 100000")
    child = subprocess.Popen(SPIN)
    os.sched_setaffinity(child.pid, {0})
    move(child, capped)
    wait_until(lambda: usage_us(capped) > 100_000, deadline_s=60)
    before, begun = usage_us(capped), time.monotonic()
    wait_until(lambda: usage_us(capped) - before > 400_000, deadline_s=60)
    share = (usage_us(capped) - before) / (time.monotonic() - begun) / 1e4
    end([child])
    assert abs(share - 20) < 5
