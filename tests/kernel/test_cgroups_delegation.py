"""Who may do what in which subtree, as the kernel decides it."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from agentcgroup.cgroups import files
from agentcgroup.cgroups.cgroup import Cgroup
from agentcgroup.cgroups.errors import CgroupBusy, CgroupError
from agentcgroup.cgroups.membership import cgroup_of, find_mount, is_kernel_thread
from agentcgroup.cgroups.scratch import scratch_cgroup
from agentcgroup.cgroups.spawn import Credentials, spawn
from agentcgroup.cgroups.subtree import Subtree
from agentcgroup.cgroups.values import Controller

pytestmark = pytest.mark.kernel

ENV = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
NOBODY = Credentials(65534, 65534)
# Opens the subtree as whoever runs it and says what came of it.
TRY = """
import sys
from agentcgroup.cgroups.errors import CgroupError
from agentcgroup.cgroups.subtree import Subtree
try:
    with Subtree.open_or_create(sys.argv[1], ["memory", "pids"]) as subtree:
        found = subtree.probe_delegation()
        print("complete" if found.is_complete else f"incomplete {found}")
except CgroupError as error:
    print(type(error).__name__, error)
"""


@pytest.fixture
def parent() -> Iterator[Cgroup]:
    with scratch_cgroup(*Controller) as cgroup:
        yield cgroup


@pytest.fixture
def sleeper() -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen(["sleep", "1000"]) as process:
        try:
            yield process
        finally:
            process.kill()


def answer(cgroup: Cgroup, argv: list[str], user: Credentials | None) -> str:
    """What a program prints that is started in ``cgroup``."""
    reader, writer = os.pipe()
    with (
        open(reader, encoding="utf-8") as file,
        spawn(cgroup, argv, env=ENV, cwd="/", user=user, stdout=writer) as child,
    ):
        os.close(writer)
        text = file.read()
        assert child.wait(120) == 0, text
    return text


def test_all_controllers_work_in_a_subtree_of_ours(parent: Cgroup) -> None:
    found = Subtree(parent, Controller).probe_delegation()
    assert found.is_complete, found
    assert [probe.controller for probe in found.probes] == sorted(Controller)


def test_a_subtree_that_nobody_delegated_is_refused(parent: Cgroup) -> None:
    runner = parent.create_child("runner")
    text = answer(runner, [sys.executable, "-c", TRY, f"{parent.path}/session"], NOBODY)
    assert text.startswith("NotDelegated")
    assert "not delegated to uid 65534" in text


def test_a_delegated_subtree_works_without_root(parent: Cgroup) -> None:
    # cgroup-v2.rst 2-5-1: the directory, cgroup.procs and cgroup.subtree_control are handed over, and
    # nothing above.
    session = parent.create_child("session")
    runner = parent.create_child("runner")
    for name in ("", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"):
        os.chown(f"{session.path}/{name}", 65534, 65534)
    assert answer(runner, [sys.executable, "-c", TRY, session.path], NOBODY) == "complete\n"
    assert session.read(files.CGROUP_SUBTREE_CONTROL) == frozenset({"memory", "pids"})
    assert session.child_names() == []


def test_a_read_only_cgroup_file_system_is_refused(parent: Cgroup) -> None:
    runner = parent.create_child("runner")
    mount = str(find_mount().path)
    script = f'mount -o remount,bind,ro {mount} && exec "$@"'
    program = [sys.executable, "-c", TRY, f"{parent.path}/session"]
    text = answer(runner, ["unshare", "--mount", "sh", "-c", script, "sh", *program], None)
    assert text.startswith("NotDelegated")
    assert "EROFS" in text


@pytest.mark.parametrize(
    "controllers", [["memory"], ["pids"], list(Controller)], ids=["domain", "threaded", "all"]
)
def test_processes_in_the_way_of_controllers_are_moved_into_a_leaf(
    controllers: list[str], parent: Cgroup, sleeper: "subprocess.Popen[bytes]"
) -> None:
    session = parent.create_child("session")
    session.place(sleeper.pid)
    with pytest.raises(CgroupBusy, match=str(sleeper.pid)):
        Subtree.open_or_create(session.path, controllers)
    with Subtree.open_or_create(session.path, controllers, evacuate_into="agent") as subtree:
        assert subtree.enabled_controllers() == set(controllers)
        assert subtree.root.child_names() == ["agent"]
        assert subtree.root.read(files.CGROUP_TYPE) == "domain"
    assert cgroup_of(sleeper.pid).endswith("/session/agent")


def test_no_process_enters_a_cgroup_that_controls_its_children(
    parent: Cgroup, sleeper: "subprocess.Popen[bytes]"
) -> None:
    with pytest.raises(CgroupBusy):
        parent.place(sleeper.pid)
    with pytest.raises(CgroupBusy):
        spawn(parent, ["true"], env=ENV)


def test_a_kernel_thread_stays_where_it_is(parent: Cgroup) -> None:
    assert is_kernel_thread(2)
    leaf = parent.create_child("leaf")
    with pytest.raises(CgroupError, match="Invalid argument"):
        leaf.place(2)
    assert cgroup_of(2) == "/"


def test_controllers_that_a_child_passes_on_cannot_be_disabled(parent: Cgroup) -> None:
    session = parent.create_child("session")
    session.enable_controllers(frozenset({"memory"}))
    with pytest.raises(CgroupBusy):
        parent.disable_controllers(frozenset({"memory"}))
    session.disable_controllers(frozenset({"memory"}))
    parent.disable_controllers(frozenset({"memory"}))
    assert session.read(files.MEMORY_MAX) is None
