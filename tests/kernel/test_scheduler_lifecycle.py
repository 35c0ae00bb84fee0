"""The CPU scheduler comes and goes on a real kernel: closed, thrown off, loaded anew beside what it left."""

import asyncio
import os
import time
from pathlib import Path

import pytest

from agentcgroup.bpf.scheduler import CpuScheduler, SchedulerMode, attached_scheduler
from agentcgroup.bpf.shared_maps import HOLDS, SharedMaps
from agentcgroup.daemon.host.scheduler import SchedulerKeeper
from agentcgroup.daemon.model import SchedulerState, SchedulerStatus
from bench.spinning import end, make, spin
from tests.running import wait_until

pytestmark = pytest.mark.kernel

AN_HOUR_NS = 3_600_000_000_000


def is_held(scheduler: CpuScheduler, pidfd: int) -> bool:
    """Whether it is just now; a hold that is over already, as on a machine that paused, is asked for again."""
    found = scheduler.held(pidfd)
    if not found.until_ns and not found.begun_at_ns:
        scheduler.hold(pidfd, time.monotonic_ns() + AN_HOUR_NS)
    return found.begun_at_ns > 0


def test_holds_outlive_the_scheduler_that_was_loaded_first(ground: Path) -> None:
    shared = SharedMaps(HOLDS)
    (child,) = spin(make(ground / "held"), 1)
    pidfd = os.pidfd_open(child.pid)
    with CpuScheduler(shared=shared) as first:
        first.attach_scheduler(SchedulerMode.FULL)
        first.hold(pidfd, time.monotonic_ns() + AN_HOUR_NS)
        wait_until(lambda: first.held(pidfd).total_ns > 0, deadline_s=30)
        held_ns = first.held(pidfd).total_ns
        wait_until(lambda: is_held(first, pidfd), deadline_s=30, what="being held as the scheduler goes")
    with CpuScheduler(shared=shared) as second:
        assert second.held(pidfd).total_ns >= held_ns
        second.attach_scheduler(SchedulerMode.FULL)

        def is_held_longer() -> bool:
            is_held(second, pidfd)
            return second.held(pidfd).total_ns > held_ns

        wait_until(is_held_longer, deadline_s=30, what="being held by the next scheduler")
        assert second.end() is None
    os.close(pidfd)
    shared.close()
    end([child])


def test_closing_gives_the_host_back_to_the_kernel() -> None:
    with CpuScheduler() as scheduler:
        scheduler.attach_scheduler(SchedulerMode.PARTIAL)
        assert attached_scheduler() == "agentcgroup"
    wait_until(lambda: attached_scheduler() is None, deadline_s=60)


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
