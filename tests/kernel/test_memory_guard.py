"""The guard between sessions on a kernel that can hold tasks: who is slowed, who is not, and who is let go."""

import contextlib
import os
import time
from collections.abc import Iterator

import pytest

from agentcgroup.bpf import features
from agentcgroup.bpf.programs import YOUNG
from agentcgroup.bpf.scheduler import CpuScheduler, SchedulerMode
from agentcgroup.bpf.shared_maps import HOLDS, SharedMaps
from tests.growing import MIB, Tool, churning
from tests.guarding import FOREVER_NS, HIGH, LOW, PROMISED_MIB, Ground, guarded_ground
from tests.running import wait_until

pytestmark = pytest.mark.kernel


@pytest.fixture(scope="module")
def scheduler() -> Iterator[tuple[CpuScheduler, SharedMaps]]:
    shared = SharedMaps(HOLDS)
    with CpuScheduler(shared=shared) as scheduler:
        scheduler.attach_scheduler(SchedulerMode.FULL)
        yield scheduler, shared
        assert scheduler.end() is None, f"ejected: {scheduler.end()}"
    shared.close()


@pytest.fixture
def ground(scheduler: tuple[CpuScheduler, SharedMaps]) -> Iterator[Ground]:
    with guarded_ground(scheduler[1]) as ground:
        yield ground


@contextlib.contextmanager
def shortage(ground: Ground) -> Iterator[None]:
    """The lower call has taken most of what the higher session was promised, and is charged again and again.

    How many holds that makes in which time is the machine's to say, so tests wait for what has to come.
    """
    active = Tool(ground.high_call, 8)
    taken = Tool(ground.low_call, 56)
    try:
        with churning(ground.low_call, 4):
            yield
    finally:
        for tool in (taken, active):
            tool.end()


def test_a_call_that_grows_into_what_another_session_was_promised_is_held(ground: Ground) -> None:
    # Else holds begin late, if at all: each kernel that can hold has task work, under one name or the other.
    assert features.task_work().is_available
    assert YOUNG not in {one.name for one in ground.program.absent}
    with shortage(ground):
        # What has been held is on the books at the next charge.
        wait_until(lambda: ground.growth(ground.low_call).holds > 0, deadline_s=60, what="a hold being over")
        low, high = ground.growth(ground.low_call), ground.growth(ground.high_call)
        figures = ground.program.figures()
    assert low.held_ns > 0
    assert (high.holds, high.held_ns) == (0, 0)
    assert figures.holds >= low.holds and figures.failed == 0 and sum(figures.waits) > 0


def test_time_held_for_another_reason_is_not_on_the_books(
    ground: Ground, scheduler: tuple[CpuScheduler, SharedMaps]
) -> None:
    with shortage(ground):
        wait_until(lambda: ground.growth(ground.low_call).holds > 0, deadline_s=60, what="a hold being over")
    ground.set(hold_max_ns=0)
    before = ground.growth(ground.low_call)
    taken = Tool(ground.low_call, 48)
    with churning(ground.high_call, 4) as process:
        pidfd = os.pidfd_open(process.pid)

        def held_ns() -> int:
            return scheduler[0].held(pidfd).total_ns

        # As at a door. For an hour, but bounded by the scheduler.
        scheduler[0].hold(pidfd, time.monotonic_ns() + FOREVER_NS)
        wait_until(lambda: held_ns() > 0, deadline_s=60, what="the hold being over")
        ground.low_call.place(process.pid)
        wait_until(lambda: held_ns() == 0, deadline_s=60, what="the next charge")
        os.close(pidfd)
    after = ground.growth(ground.low_call)
    taken.end()
    assert (after.holds, after.held_ns) == (before.holds, before.held_ns)


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


def test_what_its_own_session_was_promised_a_call_takes_freely(ground: Ground) -> None:
    ground.program.guard(ground.low.id, LOW, 90 * MIB)
    active = Tool(ground.high_call, 8)
    grown = Tool(ground.low_call, 60)
    figures = ground.program.figures()
    for tool in (grown, active):
        tool.end()
    assert (figures.asked, figures.holds) == (0, 0)


def test_all_holds_of_a_call_are_bounded(ground: Ground) -> None:
    # So little that the first hold is all there is.
    ground.set(hold_max_ns=50_000_000, hold_total_ns=1)

    def refused() -> int:
        return ground.growth(ground.low_call).holds_refused

    with shortage(ground):
        wait_until(lambda: refused() > 0, deadline_s=60, what="a hold being refused")
        asked, before = ground.program.figures().asked, refused()
        wait_until(lambda: refused() > before + 20, deadline_s=60, what="more being refused")
        assert ground.program.figures().asked == asked


def test_whoever_is_held_for_a_session_goes_on_when_it_is_gone(ground: Ground) -> None:
    def is_let_go() -> bool:
        # Nearly always it is held just now; else once more.
        ground.program.guard(ground.high.id, HIGH, PROMISED_MIB * MIB)
        asked = ground.program.figures().asked
        wait_until(lambda: ground.program.figures().asked > asked, deadline_s=60, what="being held")
        ground.program.forget(ground.high.id)
        return ground.program.figures().released > 0

    def batches() -> int:
        account = ground.program._accounts.get(ground.low_call.id)
        return account.batches if account else 0

    with shortage(ground):
        ground.set(hold_max_ns=500_000_000)
        wait_until(is_let_go, deadline_s=60, what="being let go")
        asked, charged = ground.program.figures().asked, batches()
        wait_until(lambda: batches() > charged + 100, deadline_s=60, what="going on")
        # One charge may have been under way.
        assert ground.program.figures().asked <= asked + 1


def test_memory_given_back_lets_them_go_before_their_time(ground: Ground) -> None:
    ground.set(hold_max_ns=500_000_000)
    active = Tool(ground.high_call, 8)
    with ground.low.create_child("other") as other, churning(ground.low_call, 8):

        def is_let_go() -> bool:
            # Nearly always somebody is held when the memory comes back; else once more.
            asked = ground.program.figures().asked
            large = Tool(other, 56)
            wait_until(lambda: ground.program.figures().asked > asked, deadline_s=60, what="being held")
            large.end()
            return ground.program.figures().released > 0

        wait_until(is_let_go, deadline_s=60, what="being let go")
    active.end()
