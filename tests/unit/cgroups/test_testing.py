"""The fake tree does what the kernel does; tests/native and tests/kernel compare it with the kernel itself."""

from pathlib import Path

import pytest

from agentcgroup.cgroups import files
from agentcgroup.cgroups.errors import CgroupBusy, CgroupError
from agentcgroup.cgroups.testing import NEW_CGROUP, FakeCgroupTree
from agentcgroup.cgroups.values import MAX, CgroupEvents, DeviceNumber, IoMax, IoWeight, MemoryEvents
from agentcgroup.cgroups.watch import EventWatch, WatchEventKind

SDA = DeviceNumber(8, 0)


@pytest.fixture
def tree(tmp_path: Path) -> FakeCgroupTree:
    return FakeCgroupTree(tmp_path)


def test_every_file_it_makes_is_described_and_can_be_read(tree: FakeCgroupTree) -> None:
    call = tree.subtree().root.create_child("call")
    for name in NEW_CGROUP:
        file = files.BY_NAME[name]
        if file.readable:
            assert call.read(file) is not None


def test_a_child_has_the_files_of_the_controllers_enabled_for_it(tree: FakeCgroupTree) -> None:
    early = tree.root.create_child("early")
    assert early.read(files.MEMORY_MAX) is None
    assert early.read(files.CPU_STAT) is not None
    tree.root.enable_controllers(frozenset({"memory"}))
    assert early.read(files.MEMORY_MAX) is MAX
    assert tree.root.create_child("late").read(files.MEMORY_MAX) is MAX
    assert early.read(files.PIDS_MAX) is None


def test_a_controller_that_is_not_offered_cannot_be_enabled(tmp_path: Path) -> None:
    tree = FakeCgroupTree(tmp_path, controllers=["cpu"])
    with pytest.raises(CgroupError):
        tree.root.enable_controllers(frozenset({"memory"}))


def test_populated_follows_the_processes_up_the_tree(tree: FakeCgroupTree) -> None:
    session = tree.subtree().root.create_child("session")
    call = session.create_child("call")
    tree.add_process(70001, call)
    assert session.read(files.CGROUP_EVENTS) == CgroupEvents(True, False)
    assert session.read(files.PIDS_CURRENT) == 1
    tree.end_process(70001)
    assert session.read(files.CGROUP_EVENTS) == CgroupEvents(False, False)
    assert session.read(files.PIDS_CURRENT) == 0
    assert session.read(files.PIDS_PEAK) == 1


def test_no_process_enters_a_cgroup_that_controls_its_children(tree: FakeCgroupTree) -> None:
    session = tree.subtree().root.create_child("session")
    session.enable_controllers(frozenset({"memory"}))
    with pytest.raises(CgroupBusy):
        session.place(1)


def test_counters_are_set_line_by_line(tree: FakeCgroupTree) -> None:
    call = tree.subtree().root.create_child("call")
    tree.count(call, files.MEMORY_EVENTS, oom_kill=2, high=7)
    assert call.read(files.MEMORY_EVENTS) == MemoryEvents(0, 7, 0, 0, 2, 0, None)


def test_limits_of_devices_are_merged(tree: FakeCgroupTree) -> None:
    call = tree.subtree().root.create_child("call")
    call.write(files.IO_MAX, (IoMax(SDA, rbps=100),))
    call.write(files.IO_MAX, (IoMax(SDA, wbps=MAX), IoMax(DeviceNumber(8, 16), riops=5)))
    assert call.read(files.IO_MAX) == (IoMax(SDA, rbps=100, wbps=MAX), IoMax(DeviceNumber(8, 16), riops=5))
    call.write(files.IO_WEIGHT, (IoWeight(SDA, 7),))
    call.write(files.IO_WEIGHT, (IoWeight(SDA, None), IoWeight(None, 50)))
    assert call.read(files.IO_WEIGHT) == (IoWeight(None, 50),)


def test_a_real_watch_is_told_what_happens_in_the_fake(tree: FakeCgroupTree) -> None:
    call = tree.subtree().root.create_child("call")
    with EventWatch() as watch:
        watch_id = watch.add(call, files.CGROUP_EVENTS)
        assert watch.read() == []
        tree.add_process(70001, call)
        (event,) = watch.read()
        assert (event.kind, event.watch_id, event.cgroup_id) == (WatchEventKind.CHANGED, watch_id, call.id)
        call.try_remove_tree()
        assert [event.kind for event in watch.read()] == [WatchEventKind.CHANGED, WatchEventKind.GONE]
        assert len(watch) == 0
