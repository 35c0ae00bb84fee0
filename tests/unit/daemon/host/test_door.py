"""The transparent door: what the programs are told as the scheduler comes and goes, and which processes are caught."""

import os
import subprocess
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from agentcgroup.bpf.abi import DoorSource, ExecFlag, PassageHold
from agentcgroup.bpf.records import Exec
from agentcgroup.bpf.scheduler import SchedulerMode
from agentcgroup.daemon.errors import RequestError
from agentcgroup.daemon.host.door import LinuxDoor, NoDoor
from agentcgroup.daemon.host.scheduler import SchedulerKeeper
from agentcgroup.daemon.model import DoorHold, Knock, TransparentScope
from tests.unit.daemon.host.test_scheduler import Kernel

ACCOUNT = 4711
BOTH = DoorSource.AGENT | DoorSource.OUTSIDE


class Events:
    """What the programs are told."""

    def __init__(self) -> None:
        self.doors: dict[int, tuple[DoorSource, int]] = {}
        self.tell: Any = None
        self.passage = PassageHold.NEVER_BEGAN, 0

    def let_through(self, pid: int) -> tuple[PassageHold, int]:
        return self.passage

    def listen_at_door(self, on_exec: Any) -> None:
        self.tell = on_exec

    def set_door(self, account_id: int, sources: DoorSource, hold_ns: int) -> None:
        self.doors[account_id] = sources, hold_ns

    def remove_door(self, account_id: int) -> None:
        del self.doors[account_id]


def door_of(events: Events, keeper: SchedulerKeeper) -> LinuxDoor:
    leaf = SimpleNamespace(all_process_ids=lambda: (os.getpid(),))
    sessions = {"web": SimpleNamespace(cgroup=SimpleNamespace(id=ACCOUNT), agent=leaf)}
    return LinuxDoor(cast(Any, events), keeper, cast(Any, sessions), {}, hold_ms=50)


def program(account_id: int, pid: int) -> Exec:
    at_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - 3_000_000
    return Exec(
        pid, at_ns, account_id, account_id, "make", os.getpid(), 7, 8, b"/bin/make", (b"make", b"-j\xff"), 9,
        ExecFlag.AT_DOOR | ExecFlag.HELD,
    )  # fmt: skip


async def test_processes_are_held_as_long_as_the_scheduler_schedules_everything() -> None:
    events, kernel = Events(), Kernel()
    keeper = SchedulerKeeper(SchedulerMode.FULL, kernel.load)
    door = door_of(events, keeper)
    door.set("web", TransparentScope.ALL)
    assert events.doors == {ACCOUNT: (BOTH, 0)}
    events.passage = PassageHold.LASTED, 120_000
    assert door.release(os.getpid()) is None
    keeper.start()
    assert events.doors == {ACCOUNT: (BOTH, 50_000_000)}
    assert door.release(os.getpid()) == DoorHold(120, lasted=True)
    events.passage = PassageHold.RAN_OUT, 120_000
    assert door.release(os.getpid()) == DoorHold(120, lasted=False)
    events.passage = PassageHold.NEVER_BEGAN, 0
    assert door.release(os.getpid()) is None
    await keeper.stop()
    assert events.doors == {ACCOUNT: (BOTH, 0)}


async def test_in_mode_partial_nothing_is_held() -> None:
    events, kernel = Events(), Kernel()
    keeper = SchedulerKeeper(SchedulerMode.PARTIAL, kernel.load)
    keeper.start()
    door_of(events, keeper).set("web", TransparentScope.AGENT)
    assert events.doors == {ACCOUNT: (DoorSource.AGENT, 0)}
    await keeper.stop()


def test_off_removes_the_door_and_so_does_the_end_of_the_session() -> None:
    events = Events()
    door = door_of(events, SchedulerKeeper(None))
    door.set("web", TransparentScope.OFF)
    door.set("web", TransparentScope.OUTSIDE)
    assert events.doors == {ACCOUNT: (DoorSource.OUTSIDE, 0)}
    door.set("web", TransparentScope.OFF)
    assert events.doors == {}
    door.set("web", TransparentScope.ALL)
    door.forget(ACCOUNT)
    door.forget(ACCOUNT)
    assert events.doors == {}


def test_an_exec_is_told_as_a_knock_with_the_pipes_that_are_not_its_parents() -> None:
    events, heard = Events(), list[Knock]()
    door = door_of(events, SchedulerKeeper(None))
    door.listen(heard.append)
    door.set("web", TransparentScope.ALL)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as child:
        events.tell(program(ACCOUNT, child.pid))
        events.tell(program(ACCOUNT + 1, child.pid))
        (knock,) = heard
        assert child.stdin is not None
        assert knock.stdin_pipe == os.fstat(child.stdin.fileno()).st_ino and knock.stdout_pipe is None
    assert (knock.session, knock.pid, knock.parent_pid) == ("web", child.pid, os.getpid())
    assert (knock.filename, knock.command) == ("/bin/make", ("make", "-j\udcff"))
    assert knock.process_group == 7 and knock.parent_process_group == 8
    assert time.time_ns() - knock.executed_at_ns >= 3_000_000


def test_only_what_lives_is_caught() -> None:
    door = door_of(Events(), SchedulerKeeper(None))
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
        caught = door.catch(child.pid)
        assert caught is not None and caught.pid == child.pid
        os.close(caught.pidfd)
        assert child.stdin is not None
        child.stdin.close()
        # Dead, and not reaped yet.
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert door.catch(child.pid) is None
    assert door.catch(child.pid) is None


def test_no_door_refuses_a_rule_with_the_reason() -> None:
    door = NoDoor("this daemon runs with --dry-run")
    door.set("web", TransparentScope.OFF)
    with pytest.raises(RequestError, match="--dry-run"):
        door.set("web", TransparentScope.ALL)
