"""Marks, protection and reads of memory between sessions, on a cgroup tree in files."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from agentcgroup.cgroups import files
from agentcgroup.cgroups.testing import FakeCgroupTree
from agentcgroup.cgroups.values import MAX
from agentcgroup.daemon.host.changes import Changes
from agentcgroup.daemon.host.groups import CallGroup, SessionGroup
from agentcgroup.daemon.host.marks import MemoryMarks
from agentcgroup.daemon.model import Budget, CallMemory

MIB = 1 << 20
CONTROLLERS = frozenset({"memory", "cpu", "pids"})


class Listener:
    """Hears which sessions crossed their mark."""

    def __init__(self) -> None:
        self.crossed: list[str] = []
        self.met: list[str] = []

    def memory_mark_crossed(self, session: str) -> None:
        self.crossed.append(session)

    def memory_limit_met(self, session: str) -> None:
        self.met.append(session)

    def memory_stalled(self, session: str) -> None:
        raise AssertionError(session)


class Ground:
    """One session with one call, and the callbacks that the event loop would call."""

    def __init__(self, tree: FakeCgroupTree) -> None:
        self.tree = tree
        self.root = tree.root
        self.root.enable_controllers(CONTROLLERS)
        budget = Budget(800 * MIB, 100 * MIB, 0, None, 100, None, 10)
        self.session = SessionGroup.create(self.root, "s", budget, CONTROLLERS)
        self.call = CallGroup(self.session.calls.create_child("c"), None, CONTROLLERS)
        self.changes = Changes()
        self.marks = MemoryMarks(self.root, {"s": self.session}, {"c": self.call}, self.changes)
        self.listener = Listener()
        self.marks.listen(self.listener)  # type: ignore[arg-type]


@pytest.fixture
async def ground(tmp_path: Path) -> AsyncIterator[Ground]:
    found = Ground(FakeCgroupTree(tmp_path))
    yield found
    found.changes.close()
    found.call.cgroup.close()
    found.session.close()
    found.root.close()


async def told() -> None:
    """inotify has an event before the write that made it returns: one turn of the loop reads it."""
    for _ in range(2):
        await asyncio.sleep(0)


async def test_a_mark_stands_in_the_kernel_and_who_crosses_it_is_told_of(ground: Ground) -> None:
    ground.marks.set_mark("s", 300 * MIB)
    assert ground.session.calls.read(files.MEMORY_HIGH) == 300 * MIB
    ground.marks.set_mark("s", 310 * MIB)
    ground.tree.count(ground.session.calls, files.MEMORY_EVENTS_LOCAL, max=1)
    await told()
    assert not ground.listener.crossed, "something else in the file changed"
    ground.tree.count(ground.session.calls, files.MEMORY_EVENTS_LOCAL, high=3)
    await told()
    ground.tree.count(ground.session.calls, files.MEMORY_EVENTS_LOCAL, max=2)
    await told()
    assert ground.listener.crossed == ["s"]
    ground.marks.set_mark("s", None)
    assert ground.session.calls.read(files.MEMORY_HIGH) == MAX


async def test_a_mark_that_is_not_listened_to_is_told_of_again_when_it_is(ground: Ground) -> None:
    ground.marks.listen_to_mark("s", False)
    ground.marks.set_mark("s", 300 * MIB)
    ground.marks.listen_to_mark("s", False)
    ground.tree.count(ground.session.calls, files.MEMORY_EVENTS_LOCAL, high=3)
    await told()
    assert not ground.listener.crossed and len(ground.changes) == 0
    ground.marks.listen_to_mark("s", True)
    await told()
    assert not ground.listener.crossed, "what happened meanwhile is not told"
    ground.tree.count(ground.session.calls, files.MEMORY_EVENTS_LOCAL, high=4)
    await told()
    assert ground.listener.crossed == ["s"]
    ground.marks.listen_to_mark("s", False)
    ground.marks.set_mark("s", None)
    ground.marks.forget("s")
    assert len(ground.changes) == 0


def test_the_calls_of_a_session_hold_what_reclaim_cannot_take(ground: Ground) -> None:
    ground.tree.set(ground.session.calls, files.MEMORY_CURRENT, str(90 * MIB))
    ground.tree.set(ground.session.calls, files.MEMORY_STAT, f"anon {50 * MIB}\nfile {40 * MIB}")
    assert ground.marks.calls_memory("s") == CallMemory(90 * MIB, 50 * MIB)
    assert ground.marks.calls_memory("gone") == CallMemory()


def test_room_counts_what_is_read_once_and_never_more_than_the_limit(ground: Ground) -> None:
    ground.root.write(files.MEMORY_MAX, 1000 * MIB)
    ground.tree.set(ground.root, files.MEMORY_CURRENT, str(900 * MIB))
    ground.tree.set(ground.root, files.MEMORY_STAT, f"anon 0\ninactive_file {200 * MIB}")
    host = ground.marks.host()
    assert host is not None and host.capacity_bytes == 1000 * MIB and 0 < host.room_bytes <= 300 * MIB


def test_room_is_what_the_kernel_calls_available_where_the_limit_leaves_more(ground: Ground) -> None:
    ground.root.write(files.MEMORY_MAX, 1 << 50)
    ground.tree.set(ground.root, files.MEMORY_CURRENT, "0")
    host = ground.marks.host()
    available_bytes = psutil.virtual_memory().available
    assert host is not None and abs(host.room_bytes - available_bytes) < available_bytes / 4


def test_without_the_controller_there_is_nothing_to_protect(ground: Ground) -> None:
    for cgroup in (ground.root, ground.session.agent):
        ground.tree.drop_file(cgroup, files.MEMORY_CURRENT)
    assert ground.marks.host() is None and ground.marks.session("s") is None
    assert ground.marks.session("gone") is None and ground.marks.call_bytes("gone") is None


def test_a_promise_is_protected_up_to_the_root_and_forgotten_with_its_session(ground: Ground) -> None:
    ground.marks.protect_calls("s", (("c", 200 * MIB), ("gone", 50 * MIB)))
    assert ground.call.cgroup.read(files.MEMORY_LOW) == 200 * MIB
    for above in (ground.session.calls, ground.session.cgroup, ground.root):
        assert above.read(files.MEMORY_LOW) == 250 * MIB
    ground.marks.set_mark("s", MIB)
    ground.marks.forget("s")
    assert ground.root.read(files.MEMORY_LOW) == 0 and len(ground.changes) == 0


async def test_reclaim_asks_for_so_much_and_says_what_came(ground: Ground) -> None:
    ground.tree.set(ground.session.agent, files.MEMORY_CURRENT, str(64 * MIB))
    assert await ground.marks.reclaim_agent("s", 8 * MIB) == 0
    assert (Path(ground.session.agent.path) / "memory.reclaim").read_text().startswith(str(8 * MIB))
    ground.tree.drop_file(ground.session.agent, files.MEMORY_RECLAIM)
    assert await ground.marks.reclaim_agent("s", MIB) is None
    assert await ground.marks.reclaim_agent("gone", MIB) is None


async def test_that_a_session_meets_its_limit_is_told_once_and_again_when_it_is_awaited_again(
    ground: Ground,
) -> None:
    for _ in range(2):
        ground.marks.await_limit("s")
    ground.marks.await_limit("gone")
    ground.tree.count(ground.session.cgroup, files.MEMORY_EVENTS_LOCAL, low=3)
    await told()
    assert not ground.listener.met, "something else in the file changed"
    for count in (1, 2):
        ground.tree.count(ground.session.cgroup, files.MEMORY_EVENTS_LOCAL, max=count)
        await told()
    assert ground.listener.met == ["s"] and len(ground.changes) == 0
    ground.marks.await_limit("s")
    await told()
    assert ground.listener.met == ["s"], "what happened meanwhile is not told"
    ground.marks.forget("s")
    assert len(ground.changes) == 0


async def test_that_all_sessions_together_meet_their_limit_is_told_as_nobodys(ground: Ground) -> None:
    ground.marks.await_limit("")
    ground.tree.count(ground.session.cgroup, files.MEMORY_EVENTS_LOCAL, max=1)
    await told()
    assert not ground.listener.met
    ground.tree.count(ground.root, files.MEMORY_EVENTS_LOCAL, max=1)
    await told()
    assert ground.listener.met == [""]


def test_an_agent_runtime_holds_what_reclaim_cannot_take(ground: Ground) -> None:
    ground.tree.set(ground.session.agent, files.MEMORY_CURRENT, str(90 * MIB))
    ground.tree.set(ground.session.agent, files.MEMORY_STAT, f"anon {50 * MIB}\nfile {40 * MIB}")
    assert ground.marks.agent_memory("s") == CallMemory(90 * MIB, 50 * MIB)
    assert ground.marks.agent_memory("gone") == CallMemory()
