"""Cgroups of the running kernel.

No controller is needed, only root and a cgroup2 mount that can be written.
"""

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator

import pytest

from agentcgroup.cgroups import files
from agentcgroup.cgroups.cgroup import Cgroup
from agentcgroup.cgroups.errors import (
    CgroupBusy,
    CgroupError,
    CgroupExists,
    CgroupGone,
    ControllerMissing,
    NotCgroup2,
    ProcessGone,
)
from agentcgroup.cgroups.membership import cgroup_of, find_mount, is_kernel_thread, membership
from agentcgroup.cgroups.scratch import scratch_cgroup, scratch_path, why_unavailable
from agentcgroup.cgroups.subtree import Subtree
from agentcgroup.cgroups.testing import FakeCgroupTree
from agentcgroup.cgroups.values import MAX, CgroupEvents, CgroupType

REASON = why_unavailable()
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))


@pytest.fixture
def cgroup() -> Iterator[Cgroup]:
    with scratch_cgroup() as cgroup:
        yield cgroup


@contextlib.contextmanager
def sleeper(cgroup: Cgroup | None = None) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "1000"])
    try:
        if cgroup is not None:
            cgroup.place(process.pid)
        yield process
    finally:
        process.kill()
        process.wait()


def wait_for(path: Cgroup, wanted: CgroupEvents, deadline_s: float = 30.0) -> None:
    end = time.monotonic() + deadline_s
    while path.read(files.CGROUP_EVENTS) != wanted:
        assert time.monotonic() < end, f"{path.path} never became {wanted}"
        time.sleep(0.002)


def test_the_id_of_a_cgroup_is_its_inode_and_a_successor_has_another(cgroup: Cgroup) -> None:
    child = cgroup.create_child("one")
    assert child.id == os.stat(child.path).st_ino
    assert child.remove() is True
    successor = cgroup.create_child("one")
    assert not successor.same_as(child)


def test_every_file_of_this_kernel_that_we_describe_can_be_read(cgroup: Cgroup) -> None:
    present = set(os.listdir(cgroup.path))
    for file in files.ALL:
        if file.readable:
            assert (cgroup.read(file) is not None) == (file.name in present), file.name


def test_a_new_cgroup_reads_as_documented(cgroup: Cgroup) -> None:
    assert cgroup.read(files.CGROUP_TYPE) is CgroupType.DOMAIN
    assert cgroup.read(files.CGROUP_EVENTS) == CgroupEvents(populated=False, frozen=False)
    assert cgroup.read(files.CGROUP_MAX_DEPTH) is MAX
    assert cgroup.read(files.CGROUP_PROCS) == ()


def test_the_fake_tree_makes_the_core_files_that_the_kernel_makes(
    cgroup: Cgroup, tmp_path: os.PathLike[str]
) -> None:
    from pathlib import Path

    fake = FakeCgroupTree(Path(tmp_path)).root.create_child("x")
    core = {file.name for file in files.ALL if file.controller is None}
    # Only these depend on the kernel's release or configuration.
    optional = {"cgroup.stat.local", "irq.pressure", "cpu.stat.local", "cgroup.pressure"}
    real = set(os.listdir(cgroup.path))
    assert (set(os.listdir(fake.path)) & core) - optional == (real & core) - optional


def test_a_removed_cgroup_is_gone_for_every_handle_and_every_use(cgroup: Cgroup) -> None:
    child = cgroup.create_child("one")
    other = cgroup.open_child("one")
    assert child.remove() is True
    assert not other.is_alive()
    for use in (
        lambda: other.read(files.CGROUP_EVENTS),
        lambda: other.read(files.MEMORY_MAX),
        lambda: other.write(files.CGROUP_FREEZE, True),
        lambda: other.place(os.getpid()),
        lambda: other.create_child("x"),
        lambda: other.open_child("x"),
        other.process_ids,
        other.kill,
    ):
        with pytest.raises(CgroupGone):
            use()
    assert other.remove() is False


def test_a_cgroup_made_anew_under_the_same_name_is_not_removed_by_an_old_handle(cgroup: Cgroup) -> None:
    old = cgroup.create_child("one")
    cgroup.open_child("one").remove()
    new = cgroup.create_child("one")
    assert old.remove() is False
    assert new.is_alive()


def test_a_directory_elsewhere_is_not_a_cgroup(tmp_path: os.PathLike[str]) -> None:
    with pytest.raises(NotCgroup2):
        Cgroup.open(tmp_path)
    with pytest.raises(CgroupGone):
        Cgroup.open(f"{find_mount().path}/there-is-no-such-cgroup")


def test_a_taken_name_is_an_error_of_its_own(cgroup: Cgroup) -> None:
    cgroup.create_child("one")
    with pytest.raises(CgroupExists):
        cgroup.create_child("one")


def test_a_name_of_255_bytes_can_be_made_and_removed(cgroup: Cgroup) -> None:
    child = cgroup.create_child("ü" * 127 + "x")
    assert cgroup.child_names() == [child.name]
    assert child.remove() is True


def test_the_limit_of_descendants_is_named_when_it_is_reached(cgroup: Cgroup) -> None:
    cgroup.write(files.CGROUP_MAX_DESCENDANTS, 1)
    cgroup.create_child("one")
    with pytest.raises(CgroupError, match="max.descendants"):
        cgroup.create_child("two")


def test_a_limit_without_its_controller_names_the_controller(cgroup: Cgroup) -> None:
    child = cgroup.create_child("one")
    with pytest.raises(ControllerMissing, match="memory controller"):
        child.write(files.MEMORY_MAX, 1 << 20)


def test_a_process_is_placed_with_all_its_threads(cgroup: Cgroup) -> None:
    with sleeper(cgroup) as process:
        assert cgroup.process_ids() == (process.pid,)
        mount = str(find_mount().path)
        assert cgroup_of(process.pid) == cgroup.path.removeprefix(mount)
        wait_for(cgroup, CgroupEvents(True, False))
    wait_for(cgroup, CgroupEvents(False, False))


def test_a_process_that_is_gone_or_of_the_kernel_cannot_be_placed(cgroup: Cgroup) -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    with pytest.raises(ProcessGone):
        cgroup.place(process.pid)
    if os.path.exists("/proc/2") and is_kernel_thread(2):
        with pytest.raises(CgroupError, match="Invalid argument"):
            cgroup.place(2)


def test_the_cgroup_of_a_zombie_can_be_removed_and_is_then_shown_as_deleted(cgroup: Cgroup) -> None:
    child = cgroup.create_child("one")
    with sleeper(child) as process:
        process.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert child.process_ids() == ()
        child.remove_tree(deadline_s=30)
        found = membership(process.pid)
    assert found.is_deleted
    assert found.path.endswith("/one")


def test_a_used_cgroup_cannot_be_removed(cgroup: Cgroup) -> None:
    child = cgroup.create_child("one")
    with sleeper(child):
        with pytest.raises(CgroupBusy):
            child.remove()
        assert child.is_alive()


def test_freezing_stops_and_thawing_continues(cgroup: Cgroup) -> None:
    with sleeper(cgroup) as process:
        cgroup.freeze()
        wait_for(cgroup, CgroupEvents(True, True))
        cgroup.thaw()
        wait_for(cgroup, CgroupEvents(True, False))
        assert process.poll() is None


@pytest.mark.parametrize("is_frozen", [False, True], ids=["running", "frozen"])
@pytest.mark.parametrize("way", ["kill", "kill_by_signals"])
def test_everything_in_a_tree_is_killed(way: str, is_frozen: bool, cgroup: Cgroup) -> None:
    deep = cgroup.create_child("a").create_child("b")
    with sleeper(cgroup) as first, sleeper(deep) as second:
        if is_frozen:
            cgroup.freeze()
            wait_for(cgroup, CgroupEvents(True, True))
        getattr(cgroup, way)()
        assert first.wait(30) == -signal.SIGKILL
        assert second.wait(30) == -signal.SIGKILL
        assert cgroup.read(files.CGROUP_FREEZE) is is_frozen
        assert cgroup.wait_until_empty(timeout_s=30)


def test_a_fork_bomb_is_removed_with_its_tree(cgroup: Cgroup) -> None:
    child = cgroup.create_child("bomb")
    # Every generation starts two and ends; it cannot grow faster than it is killed, and at most for five
    # seconds, should it not be killed.
    script = "f() { [ $(date +%s) -lt $END ] && { f & f & sleep 0.05; }; }; f; wait"
    command = ["sh", "-c", f"read _; {script}"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, env={**os.environ, "END": str(int(time.time()) + 5)}
    ) as bomb:
        assert bomb.stdin is not None
        child.place(bomb.pid)
        bomb.stdin.write(b"\n")
        bomb.stdin.close()
        end = time.monotonic() + 30
        while len(child.process_ids()) < 4 and time.monotonic() < end:
            time.sleep(0.005)
        assert len(child.process_ids()) >= 4
        child.remove_tree(deadline_s=30)
        assert bomb.wait(30) == -signal.SIGKILL
    assert cgroup.child_names() == []


def test_a_deep_and_wide_tree_is_removed_within_few_descriptors(cgroup: Cgroup) -> None:
    top = cgroup.create_child("top")
    here = top
    for _ in range(30):
        here = here.create_child("deeper")
    for number in range(50):
        top.create_child(f"n{number}").close()
    with sleeper(here):
        top.remove_tree(deadline_s=30)
    assert cgroup.child_names() == []


def test_trying_to_remove_a_tree_does_not_wait_for_what_it_kills(cgroup: Cgroup) -> None:
    child = cgroup.create_child("one")
    with sleeper(child) as process:
        end = time.monotonic() + 30
        while not child.try_remove_tree():
            assert time.monotonic() < end
            child.wait_until_empty(timeout_s=1)
        assert process.wait(30) == -signal.SIGKILL
    assert not child.is_alive()


def test_waiting_ends_with_the_last_process_and_at_its_deadline(cgroup: Cgroup) -> None:
    assert cgroup.wait_until_empty(timeout_s=0)
    with sleeper(cgroup) as process:
        assert not cgroup.wait_until_empty(timeout_s=0.01)
        threading.Timer(0.05, process.kill).start()
        assert cgroup.wait_until_empty(timeout_s=30)


def test_attributes_live_on_the_cgroup_and_not_on_the_handle(cgroup: Cgroup) -> None:
    child = cgroup.create_child("one")
    child.set_xattr("user.agentcgroup.call", b"c-1\0\xff")
    child.set_xattr("trusted.agentcgroup.call", b"c-2")
    child.close()
    again = cgroup.open_child("one")
    assert again.get_xattr("user.agentcgroup.call") == b"c-1\0\xff"
    assert again.get_xattr("trusted.agentcgroup.call") == b"c-2"
    assert again.get_xattr("user.other") is None
    assert set(again.list_xattrs()) == {"user.agentcgroup.call", "trusted.agentcgroup.call"}


def test_many_processes_are_listed_completely(cgroup: Cgroup) -> None:
    # Three hundred lines of four to seven digits: more than half a page, so more than one read(2).
    command = ["sh", "-c", "read _; i=0; while [ $i -lt 300 ]; do sleep 1000 & i=$((i+1)); done; wait"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as shell:
        assert shell.stdin is not None
        cgroup.place(shell.pid)
        shell.stdin.write(b"\n")
        shell.stdin.close()
        end = time.monotonic() + 30
        while len(cgroup.process_ids()) < 301 and time.monotonic() < end:
            time.sleep(0.02)
        found = cgroup.process_ids()
        assert len(found) == len(set(found)) == 301
        cgroup.kill()
        shell.wait(30)
    assert cgroup.wait_until_empty(timeout_s=30)


def test_a_subtree_is_made_with_all_that_is_missing_above_it() -> None:
    path = scratch_path()
    try:
        with Subtree.open_or_create(f"{path}/a/b", ["memory", "cpu"]) as subtree:
            assert subtree.root.path == f"{path}/a/b"
            offered = subtree.available_controllers()
            assert subtree.missing_controllers() == {"memory", "cpu"} - offered
        with Subtree.open_or_create(f"{path}/a/b", []) as again:
            assert again.root.same_as(subtree.root)
    finally:
        Cgroup.open(path).remove_tree(deadline_s=30)


def test_own_processes_are_moved_into_a_leaf(cgroup: Cgroup) -> None:
    with sleeper(cgroup) as one, sleeper(cgroup) as two:
        leaf = Subtree(cgroup).evacuate_into("leaf")
        assert sorted(leaf.process_ids()) == sorted([one.pid, two.pid])
        assert cgroup.process_ids() == ()


def test_a_sweep_kills_leftovers(cgroup: Cgroup) -> None:
    cgroup.create_child("kept")
    with sleeper(cgroup.create_child("old").create_child("inner")) as process:
        result = Subtree(cgroup).sweep(lambda found: found.name == "old")
        assert process.wait(30) == -signal.SIGKILL
    assert result.removed == (f"{cgroup.path}/old",)
    assert result.failed == ()
    assert cgroup.child_names() == ["kept"]


def test_probing_leaves_nothing_behind(cgroup: Cgroup) -> None:
    found = Subtree(cgroup, ["memory"]).probe_delegation()
    assert found.can_make_children
    assert cgroup.child_names() == []
