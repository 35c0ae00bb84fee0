"""The delegated subtree, over a tree in plain files."""

import errno
from pathlib import Path

import pytest

from agentcgroup.cgroups import files
from agentcgroup.cgroups.cgroup import Cgroup
from agentcgroup.cgroups.errors import CgroupBusy, NotCgroup2, NotDelegated
from agentcgroup.cgroups.membership import find_mount
from agentcgroup.cgroups.subtree import Delegation, Probe, Subtree, evacuate
from agentcgroup.cgroups.testing import FakeCgroupTree


@pytest.fixture
def tree(tmp_path: Path) -> FakeCgroupTree:
    return FakeCgroupTree(tmp_path)


def test_what_was_asked_for_and_is_not_offered_is_missing(tmp_path: Path) -> None:
    tree = FakeCgroupTree(tmp_path, controllers=["cpu", "pids"])
    subtree = Subtree(tree.root, ["memory", "cpu"])
    assert subtree.available_controllers() == {"cpu", "pids"}
    assert subtree.missing_controllers() == {"memory"}
    assert subtree.missing_from_children() == {"cpu"}
    subtree.enable()
    assert subtree.enabled_controllers() == {"cpu"}
    assert subtree.missing_from_children() == frozenset()


def test_what_is_enabled_already_is_not_written_again(tree: FakeCgroupTree) -> None:
    subtree = tree.subtree(["cpu"])
    tree.refuse(tree.root, files.CGROUP_SUBTREE_CONTROL, errno.EACCES)
    subtree.enable()


def test_a_refusal_to_enable_names_the_owner_as_the_next_step(tree: FakeCgroupTree) -> None:
    tree.refuse(tree.root, files.CGROUP_SUBTREE_CONTROL, errno.EACCES)
    with pytest.raises(NotDelegated, match="Delegate=yes"):
        tree.subtree(["cpu"])


@pytest.mark.parametrize("controllers", [["memory"], ["pids"]])
def test_processes_in_the_way_are_named_whichever_controller_it_is(
    controllers: list[str], tree: FakeCgroupTree
) -> None:
    session = tree.subtree().root.create_child("session")
    tree.add_process(70001, session)
    with pytest.raises(CgroupBusy, match="70001") as caught:
        Subtree(session, controllers).enable()
    assert "evacuate_into" in caught.value.reason
    assert session.read(files.CGROUP_SUBTREE_CONTROL) == frozenset()


def test_processes_are_moved_into_a_leaf_and_then_controllers_can_be_enabled(tree: FakeCgroupTree) -> None:
    session = tree.subtree().root.create_child("session")
    tree.add_process(70001, session)
    tree.add_process(70002, session)
    subtree = Subtree(session, ["memory"])
    leaf = subtree.evacuate_into("agent")
    subtree.enable()
    assert leaf.process_ids() == (70001, 70002)
    assert session.process_ids() == ()
    assert subtree.enabled_controllers() == {"memory"}
    # A second time there is nothing to move and the leaf exists.
    assert subtree.evacuate_into("agent").same_as(leaf)


def test_a_process_that_cannot_be_moved_is_named(tree: FakeCgroupTree) -> None:
    source = tree.root.create_child("source")
    leaf = tree.root.create_child("leaf")
    tree.add_process(70001, source)
    tree.refuse(leaf, files.CGROUP_PROCS, errno.EINVAL)
    with pytest.raises(CgroupBusy, match="process 70001 cannot be moved"):
        evacuate(source, leaf)


def test_a_source_in_which_new_processes_never_end_is_busy(tree: FakeCgroupTree) -> None:
    source = tree.root.create_child("source")
    leaf = tree.root.create_child("leaf")
    tree.set(source, files.CGROUP_PROCS, str(2**22 + 1))
    with pytest.raises(CgroupBusy, match="fork faster"):
        # The text above never changes, as if each process that ended had left another one behind.
        evacuate(source, leaf)


def test_probing_sets_a_limit_of_every_controller_and_leaves_nothing(tree: FakeCgroupTree) -> None:
    found = tree.subtree().probe_delegation()
    assert found.is_complete
    assert [probe.controller for probe in found.probes] == ["cpu", "cpuset", "io", "memory", "pids"]
    assert tree.root.child_names() == []
    assert {"memory.high", "pids.max", "cpu.weight"} <= {write.file for write in tree.writes}


def test_a_controller_that_is_not_there_is_found_by_probing(tmp_path: Path) -> None:
    tree = FakeCgroupTree(tmp_path, controllers=["pids"])
    subtree = Subtree(tree.root, ["memory", "pids", "rdma"])
    subtree.enable()
    found = subtree.probe_delegation()
    assert not found.is_complete
    assert {probe.controller for probe in found.probes if probe.is_working} == {"pids"}
    reasons = {probe.controller: probe.reason for probe in found.probes}
    assert "memory controller is not enabled" in reasons["memory"]
    assert "knows no limit" in reasons["rdma"]


def test_a_delegation_is_complete_only_if_every_probe_works() -> None:
    assert Delegation(True, (Probe("cpu", True),)).is_complete
    assert not Delegation(True, (Probe("cpu", True), Probe("io", False, "no"))).is_complete
    assert not Delegation(False, reason="no").is_complete


def test_a_root_that_is_gone_is_the_answer_of_a_probe_and_not_an_error(tree: FakeCgroupTree) -> None:
    session = tree.root.create_child("session")
    subtree = Subtree(session, ["memory"])
    tree.root.open_child("session").remove()
    found = subtree.probe_delegation()
    assert not found.can_make_children
    assert "removed" in found.reason


def test_a_scan_finds_all_descendants(tree: FakeCgroupTree) -> None:
    subtree = tree.subtree()
    subtree.root.create_child("a").create_child("b")
    subtree.root.create_child("c")
    assert [found.name for found in subtree.scan()] == ["a", "b", "c"]


def test_a_sweep_removes_leftovers_with_all_below_and_keeps_the_rest(tree: FakeCgroupTree) -> None:
    subtree = tree.subtree()
    kept = subtree.root.create_child("kept")
    old = subtree.root.create_child("old")
    inner = old.create_child("inner")
    tree.add_process(70001, inner)
    tree.add_process(70002, kept)
    asked: list[str] = []

    def is_leftover(cgroup: Cgroup) -> bool:
        asked.append(cgroup.name)
        return cgroup.name == "old"

    result = subtree.sweep(is_leftover)
    assert result.removed == (f"{tree.root.path}/old",)
    assert result.failed == ()
    assert asked == ["kept", "old"]
    assert tree.killed == [70001]
    assert tree.root.child_names() == ["kept"]


def test_a_sweep_goes_on_after_a_cgroup_that_cannot_be_removed(tree: FakeCgroupTree) -> None:
    subtree = tree.subtree()
    stuck = subtree.root.create_child("a-stuck")
    subtree.root.create_child("b-old")
    tree.add_process(70001, stuck)
    tree.refuse(stuck, files.CGROUP_KILL, errno.EACCES)
    result = subtree.sweep(lambda cgroup: True, deadline_s=0.01)
    assert result.removed == (f"{tree.root.path}/b-old",)
    ((path, reason),) = result.failed
    assert path == stuck.path
    assert "cgroup.kill" in reason


def test_a_path_outside_of_the_mount_is_refused(tmp_path: Path) -> None:
    try:
        find_mount()
    except NotCgroup2:
        with pytest.raises(NotCgroup2, match="no cgroup2 filesystem"):
            Subtree.open_or_create(tmp_path / "x", ["cpu"])
        return
    with pytest.raises(NotCgroup2, match="not below the cgroup2 mount"):
        Subtree.open_or_create(tmp_path / "x", ["cpu"])
    assert not (tmp_path / "x").exists()
