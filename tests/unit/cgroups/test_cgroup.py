"""Cgroup over a tree in plain files; what only the kernel can show is in tests/native and tests/kernel."""

import errno
import os
import subprocess
from pathlib import Path

import pytest

from agentcgroup.cgroups import files
from agentcgroup.cgroups.cgroup import Cgroup
from agentcgroup.cgroups.errors import (
    BadFormat,
    CgroupBusy,
    CgroupError,
    CgroupExists,
    CgroupGone,
    ControllerMissing,
    InterfaceMissing,
    NotDelegated,
    ProcessGone,
)
from agentcgroup.cgroups.testing import FakeCgroupTree
from agentcgroup.cgroups.values import MAX, CpuMax, Reclaim


@pytest.fixture
def tree(tmp_path: Path) -> FakeCgroupTree:
    tree = FakeCgroupTree(tmp_path)
    tree.subtree()
    return tree


@pytest.fixture
def call(tree: FakeCgroupTree) -> Cgroup:
    return tree.root.create_child("call")


def test_a_new_child_knows_its_name_and_its_path(tree: FakeCgroupTree) -> None:
    child = tree.root.create_child("one")
    assert (child.name, child.path) == ("one", f"{tree.root.path}/one")
    assert child.is_alive()
    assert tree.root.child_names() == ["one"]
    assert repr(child) == f"Cgroup({child.path!r}, id={child.id})"


def test_two_handles_of_one_cgroup_are_the_same_and_a_successor_is_not(tree: FakeCgroupTree) -> None:
    first = tree.root.create_child("one")
    again = tree.root.open_child("one")
    assert first.same_as(again)
    again.remove()
    successor = tree.root.create_child("one")
    assert not successor.same_as(first)
    assert not first.is_alive()
    assert successor.is_alive()


def test_a_taken_name_and_an_unknown_child_have_errors_of_their_own(
    tree: FakeCgroupTree, call: Cgroup
) -> None:
    with pytest.raises(CgroupExists):
        tree.root.create_child(call.name)
    with pytest.raises(CgroupGone):
        tree.root.open_child("nobody")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../call", "a\0b"])
def test_a_child_cannot_be_opened_by_a_path(name: str, tree: FakeCgroupTree) -> None:
    with pytest.raises(BadFormat):
        tree.root.open_child(name)


def test_nothing_is_made_below_a_cgroup_that_is_gone(tree: FakeCgroupTree, call: Cgroup) -> None:
    tree.root.open_child("call").remove()
    with pytest.raises(CgroupGone):
        call.create_child("sub")


def test_limits_are_read_back_as_they_were_written(call: Cgroup) -> None:
    call.write(files.MEMORY_MAX, 512 << 20)
    call.write(files.MEMORY_HIGH, MAX)
    call.write(files.CPU_MAX, CpuMax(150_000))
    call.write(files.MEMORY_OOM_GROUP, True)
    assert call.read(files.MEMORY_MAX) == 512 << 20
    assert call.read(files.MEMORY_HIGH) is MAX
    assert call.read(files.CPU_MAX) == CpuMax(150_000, 100_000)
    assert call.read(files.MEMORY_OOM_GROUP) is True


def test_a_file_that_this_kernel_lacks_is_none_and_cannot_be_set(tree: FakeCgroupTree, call: Cgroup) -> None:
    tree.drop_file(call, files.MEMORY_ZSWAP_WRITEBACK)
    assert call.read(files.MEMORY_ZSWAP_WRITEBACK) is None
    assert call.write_if_present(files.MEMORY_ZSWAP_WRITEBACK, False) is False
    with pytest.raises(InterfaceMissing, match="this kernel does not have") as caught:
        call.write(files.MEMORY_ZSWAP_WRITEBACK, False)
    assert not isinstance(caught.value, ControllerMissing)


def test_a_controller_that_is_not_enabled_is_named(call: Cgroup) -> None:
    grandchild = call.create_child("sub")
    assert grandchild.read(files.MEMORY_MAX) is None
    assert grandchild.write_if_present(files.MEMORY_MAX, 1) is False
    with pytest.raises(ControllerMissing, match="the memory controller is not enabled here"):
        grandchild.write(files.MEMORY_MAX, 1)


@pytest.mark.parametrize(
    ("code", "kind"), [(errno.EACCES, NotDelegated), (errno.EINVAL, CgroupError), (errno.EBUSY, CgroupBusy)]
)
def test_what_the_kernel_refuses_is_raised_with_the_text_that_was_written(
    code: int, kind: type[CgroupError], tree: FakeCgroupTree, call: Cgroup
) -> None:
    tree.refuse(call, files.MEMORY_MAX, code)
    with pytest.raises(kind, match=r"write '4096' to memory\.max"):
        call.write(files.MEMORY_MAX, 4096)


def test_a_value_of_several_lines_is_written_line_by_line(tree: FakeCgroupTree, call: Cgroup) -> None:
    tree.add_process(70001, call)
    tree.add_process(70002, call)
    leaf = tree.root.create_child("leaf")
    leaf.write(files.CGROUP_PROCS, (70001, 70002))
    assert [one.text for one in tree.writes if one.file == "cgroup.procs"] == ["70001", "70002"]
    assert leaf.process_ids() == (70001, 70002)


def test_a_placed_process_is_in_its_new_cgroup_only(tree: FakeCgroupTree, call: Cgroup) -> None:
    other = tree.root.create_child("other")
    other.place(os.getpid())
    call.place(os.getpid())
    assert call.process_ids() == (os.getpid(),)
    assert other.process_ids() == ()
    assert call.is_populated()
    assert not other.is_populated()


@pytest.mark.parametrize("pid", [0, -1])
def test_a_pid_that_would_mean_the_caller_is_refused(pid: int, call: Cgroup) -> None:
    with pytest.raises(BadFormat, match="the caller itself"):
        call.place(pid)
    assert call.process_ids() == ()


def test_a_process_that_is_gone_cannot_be_placed(call: Cgroup) -> None:
    with pytest.raises(ProcessGone):
        call.place(2**22 + 1)


def test_a_process_of_another_pid_namespace_is_not_listed_as_zero(
    tree: FakeCgroupTree, call: Cgroup
) -> None:
    tree.set(call, files.CGROUP_PROCS, "0\n12\n0\n")
    assert call.process_ids() == (12,)


def test_processes_of_descendants_are_found(tree: FakeCgroupTree, call: Cgroup) -> None:
    deep = call.create_child("a").create_child("b")
    tree.add_process(70001, call)
    tree.add_process(70002, deep)
    assert sorted(call.all_process_ids()) == [70001, 70002]
    assert call.process_ids() == (70001,)


def test_a_walk_visits_parents_before_children_and_siblings_by_name(call: Cgroup) -> None:
    for name in ("b", "a", "c"):
        call.create_child(name)
    call.open_child("a").create_child("x")
    assert [found.path.removeprefix(call.path + "/") for found in call.walk()] == ["a", "a/x", "b", "c"]


def test_a_walk_passes_over_what_vanishes_meanwhile(call: Cgroup) -> None:
    for name in ("a", "b", "c"):
        call.create_child(name)
    seen = []
    for found in call.walk():
        seen.append(found.name)
        if found.name == "a":
            call.open_child("b").remove()
    assert seen == ["a", "c"]


def test_a_hundred_siblings_are_walked_with_few_descriptors(call: Cgroup) -> None:
    for number in range(100):
        call.create_child(f"n{number}").close()
    before = len(os.listdir("/proc/self/fd"))
    most = max(len(os.listdir("/proc/self/fd")) for _ in call.walk())
    assert most - before <= 4


def test_freezing_and_thawing_are_written(tree: FakeCgroupTree, call: Cgroup) -> None:
    call.freeze()
    assert call.read(files.CGROUP_FREEZE) is True
    call.thaw()
    assert call.read(files.CGROUP_FREEZE) is False


def test_reclaiming_more_than_there_is_is_a_value_and_not_an_error(
    tree: FakeCgroupTree, call: Cgroup
) -> None:
    tree.set(call, files.MEMORY_CURRENT, "5000")
    assert call.reclaim(2000) == Reclaim(2000, is_complete=True, freed_bytes=2000)
    assert call.reclaim(9000) == Reclaim(9000, is_complete=False, freed_bytes=3000)


def test_reclaiming_on_a_kernel_without_it_says_so(tree: FakeCgroupTree, call: Cgroup) -> None:
    tree.drop_file(call, files.MEMORY_RECLAIM)
    with pytest.raises(InterfaceMissing):
        call.reclaim(1)


def test_the_root_cannot_be_killed_and_nobody_in_it_is(tree: FakeCgroupTree) -> None:
    with subprocess.Popen(["sleep", "1000"]) as process:
        tree.add_process(process.pid, tree.root)
        for way in (tree.root.kill, tree.root.kill_by_signals, tree.root.try_remove_tree):
            with pytest.raises(InterfaceMissing):
                way()
        assert process.poll() is None
        process.kill()


def test_a_used_cgroup_is_busy_and_stays(tree: FakeCgroupTree, call: Cgroup) -> None:
    tree.add_process(70001, call)
    with pytest.raises(CgroupBusy):
        call.remove()
    assert call.is_alive()


def test_removing_twice_is_not_an_error(tree: FakeCgroupTree, call: Cgroup) -> None:
    other = tree.root.open_child("call")
    assert call.remove() is True
    assert other.remove() is False


def test_a_tree_is_removed_with_all_that_runs_in_it(tree: FakeCgroupTree, call: Cgroup) -> None:
    deep = call.create_child("a").create_child("b")
    call.create_child("c")
    tree.add_process(70001, deep)
    assert call.try_remove_tree() is True
    assert tree.killed == [70001]
    assert tree.root.child_names() == []


def test_removing_a_tree_that_is_gone_succeeds(tree: FakeCgroupTree, call: Cgroup) -> None:
    tree.root.open_child("call").remove()
    assert call.try_remove_tree() is True


def test_a_tree_that_does_not_die_in_time_is_busy_and_names_its_processes(
    tree: FakeCgroupTree, call: Cgroup
) -> None:
    tree.add_process(70001, call)
    tree.refuse(call, files.CGROUP_KILL, errno.EBUSY)
    with pytest.raises(CgroupBusy, match="70001"):
        call.remove_tree(deadline_s=0.01)


def test_extended_attributes_are_kept_by_name(call: Cgroup) -> None:
    assert call.get_xattr("user.call") is None
    call.set_xattr("user.call", b"c-1")
    assert call.get_xattr("user.call") == b"c-1"
    assert call.list_xattrs() == ["user.call"]


def test_leaving_the_context_closes_the_handle_and_keeps_the_cgroup(tree: FakeCgroupTree) -> None:
    with tree.root.create_child("one") as child:
        pass
    assert child.fileno() == -1
    assert tree.root.child_names() == ["one"]


def test_controllers_are_disabled_for_children(tree: FakeCgroupTree, call: Cgroup) -> None:
    tree.root.disable_controllers(frozenset({"memory"}))
    assert call.read(files.MEMORY_MAX) is None
    assert "memory" not in (tree.root.read(files.CGROUP_SUBTREE_CONTROL) or ())
