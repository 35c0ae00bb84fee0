"""The keeper of the CPU scheduler: what it does when attaching fails or the kernel throws the scheduler off."""

import asyncio
import errno
import os
import subprocess

import pytest

from agentcgroup.bpf.libbpf import BpfError
from agentcgroup.bpf.scheduler import ForeignScheduler, LatencyClass, SchedulerEnd, SchedulerMode
from agentcgroup.daemon.host import scheduler as module
from agentcgroup.daemon.host.scheduler import SchedulerKeeper
from agentcgroup.daemon.model import SchedulerState, SchedulerStatus


class Kernel:
    """Loads schedulers that do as it says."""

    def __init__(self) -> None:
        self.loaded: list[Loaded] = []
        self.refusal: Exception | None = None

    def load(self) -> "Loaded":
        if self.refusal is not None:
            raise self.refusal
        self.loaded.append(Loaded())
        return self.loaded[-1]


class Loaded:
    def __init__(self) -> None:
        self.mode: SchedulerMode | None = None
        self.classes: dict[int, LatencyClass] = {}
        self.ended: SchedulerEnd | None = None
        self.is_closed = False
        self._bell = os.eventfd(0)

    def throw_off(self, end: SchedulerEnd) -> None:
        self.ended = end
        os.eventfd_write(self._bell, 1)

    def fileno(self) -> int:
        return self._bell

    def attach_scheduler(self, mode: SchedulerMode) -> None:
        self.mode = mode

    def set_class(self, cgroup_id: int, latency: LatencyClass) -> None:
        self.classes[cgroup_id] = latency

    def end(self) -> SchedulerEnd | None:
        return self.ended

    def close(self) -> None:
        self.is_closed = True
        os.close(self._bell)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BACK_OFF_FIRST_S", 0.001)


async def becomes(heard: asyncio.Queue[SchedulerStatus], state: SchedulerState) -> SchedulerStatus:
    async with asyncio.timeout(60):
        while (status := await heard.get()).state is not state:
            pass
        return status


@pytest.mark.parametrize(("mode", "everybody"), [(SchedulerMode.FULL, True), (SchedulerMode.PARTIAL, False)])
async def test_everybody_is_scheduled_by_it_in_mode_full_while_it_is_attached(
    mode: SchedulerMode, everybody: bool
) -> None:
    keeper = SchedulerKeeper(mode, Kernel().load)
    assert not keeper.schedules_everybody
    keeper.start()
    assert keeper.schedules_everybody is everybody
    await keeper.stop()
    assert not keeper.schedules_everybody


async def test_off_loads_nothing() -> None:
    kernel = Kernel()
    keeper = SchedulerKeeper(None, kernel.load)
    keeper.start()
    keeper.set_class(7, LatencyClass.BATCH)
    await keeper.stop()
    assert kernel.loaded == [] and keeper.status.state is SchedulerState.OFF


async def test_an_ejected_scheduler_is_counted_and_attached_anew_with_its_classes() -> None:
    kernel = Kernel()
    heard: asyncio.Queue[SchedulerStatus] = asyncio.Queue()
    keeper = SchedulerKeeper(SchedulerMode.FULL, kernel.load, heard.put_nowait)
    keeper.start()
    await becomes(heard, SchedulerState.ATTACHED)
    keeper.set_class(7, LatencyClass.INTERACTIVE)
    keeper.set_class(8, LatencyClass.BATCH)
    keeper.forget(8)
    kernel.loaded[0].throw_off(SchedulerEnd(1024, 0, "runtime error", "a stall"))
    assert (await becomes(heard, SchedulerState.WAITING)).reason == "runtime error (kind 1024): a stall"
    await becomes(heard, SchedulerState.ATTACHED)
    await keeper.stop()
    assert keeper.status.ejections == 1
    assert kernel.loaded[0].is_closed and kernel.loaded[1].is_closed
    assert kernel.loaded[1].mode is SchedulerMode.FULL
    assert kernel.loaded[1].classes == {7: LatencyClass.INTERACTIVE}


async def test_a_foreign_scheduler_is_left_alone_for_good() -> None:
    kernel = Kernel()
    kernel.refusal = ForeignScheduler("the scheduler 'other' is loaded")
    keeper = SchedulerKeeper(SchedulerMode.FULL, kernel.load)
    keeper.start()
    assert keeper.status.state is SchedulerState.REFUSED and "other" in keeper.status.reason
    await keeper.stop()


async def test_a_failed_attachment_is_tried_again() -> None:
    kernel = Kernel()
    kernel.refusal = BpfError("attaching", errno.EBUSY)
    heard: asyncio.Queue[SchedulerStatus] = asyncio.Queue()
    keeper = SchedulerKeeper(SchedulerMode.PARTIAL, kernel.load, heard.put_nowait)
    keeper.start()
    await becomes(heard, SchedulerState.WAITING)
    kernel.refusal = None
    await becomes(heard, SchedulerState.ATTACHED)
    await keeper.stop()
    assert keeper.status.state is SchedulerState.OFF and kernel.loaded[0].is_closed


def test_only_partial_mode_changes_the_policy_of_processes() -> None:
    for mode in (None, SchedulerMode.FULL):
        keeper = SchedulerKeeper(mode, Kernel().load)
        keeper.take(os.getpid())
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


def test_a_process_that_is_gone_is_not_taken() -> None:
    child = subprocess.Popen(("true",))
    child.wait()
    SchedulerKeeper(SchedulerMode.PARTIAL, Kernel().load).take(child.pid)
