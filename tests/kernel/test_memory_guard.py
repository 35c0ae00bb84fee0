"""The guard between sessions on a kernel that can hold tasks: who is slowed, who is not, and who is let go."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from agentcgroup.bpf.memory import Growth, GuardNumbers, MemoryProgram
from agentcgroup.bpf.scheduler import CpuScheduler, SchedulerMode
from agentcgroup.bpf.shared_maps import HOLDS, SharedMaps
from agentcgroup.cgroups import files
from agentcgroup.cgroups.cgroup import Cgroup
from agentcgroup.cgroups.scratch import scratch_cgroup
from tests.growing import MIB, Tool
from tests.running import wait_until

pytestmark = pytest.mark.kernel

SHARED_MIB = 160
HIGH, LOW = 2, 0


@pytest.fixture(scope="module")
def scheduler() -> Iterator[tuple[CpuScheduler, SharedMaps]]:
    shared = SharedMaps(HOLDS)
    with CpuScheduler(shared=shared) as scheduler:
        scheduler.attach_scheduler(SchedulerMode.FULL)
        yield scheduler, shared
        assert scheduler.end() is None, f"ejected: {scheduler.end()}"
    shared.close()


@dataclass
class Ground:
    """Two sessions under one limit, with a call in each."""

    program: MemoryProgram
    shared: Cgroup
    high: Cgroup
    low: Cgroup
    high_call: Cgroup
    low_call: Cgroup

    def set(self, *, hold_max_ns: int, hold_total_ns: int = 60_000_000_000) -> None:
        """Sessions are active until the end of the test."""
        numbers = GuardNumbers(
            self.shared.id,
            margin_bytes=8 * MIB,
            active_ns=600_000_000_000,
            hold_max_ns=hold_max_ns,
            hold_total_ns=hold_total_ns,
        )
        self.program.set_numbers(numbers)

    def growth(self, cgroup: Cgroup) -> Growth:
        growth = self.program.growth_of(cgroup.id)
        assert growth is not None
        return growth


@pytest.fixture
def ground(scheduler: tuple[CpuScheduler, SharedMaps]) -> Iterator[Ground]:
    program = MemoryProgram(shared=scheduler[1])
    with scratch_cgroup("memory", deadline_s=60) as shared:
        shared.write(files.MEMORY_MAX, SHARED_MIB * MIB)
        shared.write(files.MEMORY_SWAP_MAX, 0)
        with shared.create_child("high") as high, shared.create_child("low") as low:
            for cgroup in (high, low):
                cgroup.enable_controllers(frozenset({"memory"}))
            with high.create_child("call") as high_call, low.create_child("call") as low_call:
                for cgroup in (shared, high, low, high_call, low_call):
                    program.open_account(cgroup.id)
                program.guard(high.id, HIGH, 120 * MIB)
                program.guard(low.id, LOW, 0)
                ground = Ground(program, shared, high, low, high_call, low_call)
                # Short holds, so that a test is short.
                ground.set(hold_max_ns=50_000_000)
                yield ground
        program.close()


def test_a_call_that_grows_into_what_another_session_was_promised_is_held(ground: Ground) -> None:
    active = Tool(ground.high_call, 8)
    grown = Tool(ground.low_call, 48)
    # What has been held is on the books at the next charge.
    more = Tool(ground.low_call, 4)
    low, high = ground.growth(ground.low_call), ground.growth(ground.high_call)
    figures = ground.program.figures()
    for tool in (more, grown, active):
        tool.end()
    assert low.holds > 0 and low.held_ns > 0
    assert (high.holds, high.held_ns) == (0, 0)
    assert figures.holds >= low.holds and figures.failed == 0 and sum(figures.waits) > 0


def test_the_session_of_higher_rank_is_not_held_for_the_lower(ground: Ground) -> None:
    first = Tool(ground.low_call, 100)
    second = Tool(ground.high_call, 32)
    third = Tool(ground.high_call, 4)
    growth = ground.growth(ground.high_call)
    for tool in (third, second, first):
        tool.end()
    assert growth.holds == 0


def test_while_there_is_room_for_all_that_was_promised_nobody_is_held(ground: Ground) -> None:
    active = Tool(ground.high_call, 100)
    grown = Tool(ground.low_call, 8)
    figures = ground.program.figures()
    for tool in (grown, active):
        tool.end()
    assert (figures.asked, figures.holds) == (0, 0)


def test_all_holds_of_a_call_are_bounded(ground: Ground) -> None:
    ground.set(hold_max_ns=50_000_000, hold_total_ns=100_000_000)
    active = Tool(ground.high_call, 8)
    grown = Tool(ground.low_call, 80)
    growth = ground.growth(ground.low_call)
    for tool in (grown, active):
        tool.end()
    assert growth.holds_refused > 0
    # The last one may go beyond the bound, by its length and the tick that ends it.
    assert growth.held_ns < 1_000_000_000


def test_whoever_is_held_for_a_session_goes_on_when_it_is_gone(ground: Ground) -> None:
    ground.set(hold_max_ns=500_000_000)
    active = Tool(ground.high_call, 8)
    growing = Tool(ground.low_call, 80, wait=False)
    wait_until(lambda: ground.program.figures().holds > 0, what="the first hold being over")
    ground.program.forget(ground.high.id)
    asked = ground.program.figures().asked
    growing.wait()
    after = ground.program.figures()
    for tool in (growing, active):
        tool.end()
    # One charge may have been under way.
    assert after.asked <= asked + 1
    assert after.released > 0


def test_memory_given_back_lets_them_go_before_their_time(ground: Ground) -> None:
    ground.program.set_numbers(None)
    active = Tool(ground.high_call, 8)
    with ground.low.create_child("other") as other:
        large = Tool(other, 48)
        ground.set(hold_max_ns=500_000_000)
        growing = Tool(ground.low_call, 12, wait=False)
        wait_until(lambda: ground.program.figures().asked > 0, what="a hold being asked for")
        large.end()
        growing.wait()
        growing.end()
    active.end()
    assert ground.program.figures().released > 0
