"""The scheduler where the kernel takes one, and where it does not."""

import pytest

from agentcgroup.bpf import features
from agentcgroup.bpf.scheduler import SchedulerMode
from agentcgroup.daemon.host.scheduler import SchedulerKeeper
from agentcgroup.daemon.model import SchedulerState

pytestmark = pytest.mark.kernel


async def test_the_keeper_attaches_or_says_why_it_cannot() -> None:
    keeper = SchedulerKeeper(SchedulerMode.FULL)
    keeper.start()
    status = keeper.status
    await keeper.stop()
    if features.sched_ext().is_available:
        assert status.state is SchedulerState.ATTACHED and not status.reason
    else:
        assert status.state is SchedulerState.REFUSED and "no sched_ext" in status.reason
