"""Processes that the kernel refused, on a cgroup tree in files: whose limit it was, who is told, what is read."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agentcgroup.cgroups import files
from agentcgroup.cgroups.testing import FakeCgroupTree
from agentcgroup.daemon.host.changes import Changes
from agentcgroup.daemon.host.groups import CallGroup, SessionGroup
from agentcgroup.daemon.host.refusals import RefusalWatch, refused_at
from agentcgroup.daemon.model import Budget, Refusals

CONTROLLERS = frozenset({"memory", "cpu", "pids"})


class Ground:
    """Session "s", opened by an earlier daemon in which one process was refused, with call "c"; "d" is another session's."""

    def __init__(self, tree: FakeCgroupTree) -> None:
        self.tree = tree
        self.root = tree.root
        self.root.enable_controllers(CONTROLLERS)
        budget = Budget(800 << 20, 100 << 20, 0, None, 100, None, 10)
        self.session = SessionGroup.create(self.root, "s", budget, CONTROLLERS)
        calls = {name: CallGroup(self.session.calls.create_child(name), None, CONTROLLERS) for name in "cd"}
        self.call = calls["c"].cgroup
        self.cgroups = [each.cgroup for each in calls.values()]
        tree.count(self.session.cgroup, files.PIDS_EVENTS_LOCAL, max=1)
        tree.count(calls["d"].cgroup, files.PIDS_EVENTS_LOCAL, max=9)
        self.changes = Changes()
        self.watch = RefusalWatch(calls, {"c": "s", "d": "other"}.__getitem__, self.changes)
        self.watch.open("s", self.session)
        self.told = 0

    def hear(self) -> None:
        self.told += 1


@pytest.fixture
async def ground(tmp_path: Path) -> AsyncIterator[Ground]:
    found = Ground(FakeCgroupTree(tmp_path))
    yield found
    found.changes.close()
    for cgroup in found.cgroups:
        cgroup.close()
    found.session.close()
    found.root.close()


async def told() -> None:
    """inotify has an event before the write that made it returns: one turn of the loop reads it."""
    for _ in range(2):
        await asyncio.sleep(0)


async def test_a_refusal_is_told_and_laid_at_the_limit_that_it_met(ground: Ground) -> None:
    ground.watch.listen("s", ground.hear)
    assert ground.watch.read("s") == Refusals(), "what an earlier daemon saw is not news"
    ground.tree.count(ground.call, files.PIDS_EVENTS_LOCAL, max=3)
    ground.tree.count(ground.session.cgroup, files.PIDS_EVENTS, max=4)
    await told()
    assert ground.told == 1 and ground.watch.read("s") == Refusals(0, {"c": 3})
    ground.tree.count(ground.session.cgroup, files.PIDS_EVENTS_LOCAL, max=3)
    ground.tree.count(ground.session.cgroup, files.PIDS_EVENTS, max=6)
    assert ground.watch.read("s") == Refusals(2, {"c": 3})


async def test_calls_are_not_read_while_nothing_more_was_refused(ground: Ground) -> None:
    before = ground.watch.read("s")
    ground.tree.count(ground.call, files.PIDS_EVENTS_LOCAL, max=3)
    assert ground.watch.read("s") == before, "the session's count has not risen, so nobody looks further"


async def test_who_does_not_listen_is_not_told_and_a_session_that_is_gone_has_none(ground: Ground) -> None:
    ground.watch.listen("s", ground.hear)
    ground.watch.ignore("s")
    ground.tree.count(ground.session.cgroup, files.PIDS_EVENTS, max=4)
    await told()
    assert not ground.told and len(ground.changes) == 0
    ground.watch.listen("s", ground.hear)
    ground.watch.forget("s")
    assert len(ground.changes) == 0 and ground.watch.read("s") == Refusals()
    ground.watch.listen("s", ground.hear)
    assert len(ground.changes) == 0


def test_a_kernel_before_6_11_does_not_say_whose_limit_it_was(ground: Ground) -> None:
    ground.tree.drop_file(ground.call, files.PIDS_EVENTS_LOCAL)
    assert refused_at(ground.call) is None and refused_at(ground.session.cgroup) == 1
