"""Which execs a door tells of, on this kernel: the runtime's children, what enters from outside, and not the rest."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentcgroup.bpf import features
from agentcgroup.bpf.abi import FILENAME_BYTES, DoorSource, ExecFlag
from agentcgroup.bpf.lifecycle import Lifecycle
from agentcgroup.bpf.records import Exec, Record
from agentcgroup.cgroups.cgroup import Cgroup
from agentcgroup.cgroups.scratch import scratch_cgroup
from bench.shell import Shell

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="making cgroups and loading programs needs root"),
    pytest.mark.skipif(
        not features.tracing().is_available, reason=f"no tracing programs here: {features.tracing().detail}"
    ),
]

BOTH = DoorSource.AGENT | DoorSource.OUTSIDE


class Runtime(Shell):
    """A shell that plays the agent runtime: this process, which plays the daemon, moves it in."""

    def __init__(self, cgroup: Cgroup) -> None:
        super().__init__()
        cgroup.place(self.pid)


class Door:
    """A session's cgroup with an account, and what its door told."""

    def __init__(self, cgroup: Cgroup, sources: DoorSource) -> None:
        self._records: list[Record] = []
        self.lifecycle = Lifecycle(self._records.append, kinds=(), daemon_pid=os.getpid())
        self.lifecycle.open_account(cgroup.id)
        self.lifecycle.set_door(cgroup.id, sources)

    def told(self) -> list[Exec]:
        while self.lifecycle.drain():
            pass
        found = [record for record in self._records if isinstance(record, Exec)]
        assert len(found) == len(self._records), "kinds that nobody asked for"
        return found

    def names(self) -> list[str]:
        return [record.command for record in self.told()]


@pytest.fixture
def cgroup() -> Iterator[Cgroup]:
    with scratch_cgroup() as made:
        yield made


@pytest.fixture
def door(cgroup: Cgroup) -> Iterator[Door]:
    door = Door(cgroup, BOTH)
    yield door
    door.lifecycle.close()


@pytest.fixture
def runtime(cgroup: Cgroup, door: Door) -> Iterator[Runtime]:
    runtime = Runtime(cgroup)
    yield runtime
    runtime.end()


def test_a_child_of_the_runtime_is_told_with_all_that_a_rule_needs(door: Door, runtime: Runtime) -> None:
    runtime.run("/bin/echo 'two words' >/dev/null")
    (seen,) = door.told()
    assert seen.flags == ExecFlag.AT_DOOR
    assert seen.parent_pid == runtime.pid
    assert seen.filename == b"/bin/echo" and seen.arguments == (b"/bin/echo", b"two words")
    # A shell without job control keeps what it starts in its own group.
    assert seen.process_group == seen.parent_process_group == os.getpgid(runtime.pid)


def test_the_runtime_s_own_execs_are_nobody_s_business(cgroup: Cgroup, door: Door) -> None:
    runtime = subprocess.Popen(["sh", "-c", "read go; exec /bin/true"], stdin=subprocess.PIPE)
    cgroup.place(runtime.pid)
    runtime.communicate(b"\n", timeout=30)
    assert door.names() == []


def test_who_was_there_before_the_account_is_the_runtime(cgroup: Cgroup) -> None:
    runtime = Runtime(cgroup)
    door = Door(cgroup, BOTH)
    runtime.run("/bin/true")
    runtime.process.communicate("exec /bin/cat </dev/null\n", timeout=30)
    names = door.names()
    door.lifecycle.close()
    assert names == ["true"]


def test_what_moves_itself_in_enters_from_outside_and_so_does_what_it_forks(
    cgroup: Cgroup, door: Door
) -> None:
    script = f"echo $$ > {cgroup.path}/cgroup.procs; /bin/true; exec /bin/cat"
    subprocess.run(["sh", "-c", script], check=True, stdin=subprocess.DEVNULL, timeout=30)
    assert [(seen.command, seen.flags) for seen in door.told()] == [
        ("true", ExecFlag.AT_DOOR | ExecFlag.FROM_OUTSIDE),
        ("cat", ExecFlag.AT_DOOR | ExecFlag.FROM_OUTSIDE),
    ]


@pytest.mark.parametrize(
    ("sources", "expected"), [(DoorSource.AGENT, ["true"]), (DoorSource.OUTSIDE, ["cat"])]
)
def test_a_door_asks_about_its_own_sources_alone(
    cgroup: Cgroup, door: Door, runtime: Runtime, sources: DoorSource, expected: list[str]
) -> None:
    door.lifecycle.set_door(cgroup.id, sources)
    runtime.run("/bin/true")
    script = f"echo $$ > {cgroup.path}/cgroup.procs; exec /bin/cat"
    subprocess.run(["sh", "-c", script], check=True, stdin=subprocess.DEVNULL, timeout=30)
    assert door.names() == expected


def test_what_lives_in_an_account_within_does_not_pass_the_door(
    cgroup: Cgroup, door: Door, runtime: Runtime
) -> None:
    with cgroup.create_child("call") as call:
        door.lifecycle.open_account(call.id)
        runtime.run(f'(/bin/sh -c "echo \\$\\$ > {call.path}/cgroup.procs; /bin/true; exec /bin/true")')
    assert door.names() == ["sh"]


def test_what_is_let_be_is_not_told_again_and_nor_is_what_it_forks(
    cgroup: Cgroup, door: Door, runtime: Runtime, tmp_path: Path
) -> None:
    fifo = tmp_path / "go"
    os.mkfifo(fifo)
    runtime.run(f"/bin/sh -c 'read go < {fifo}; /bin/true; (/bin/true; :); exec /bin/true' &")
    while not (seen := door.told()):
        pass
    pidfd = os.pidfd_open(seen[0].pid)
    door.lifecycle.let_be(pidfd)
    fifo.write_text("go\n")
    runtime.run("wait")
    os.close(pidfd)
    runtime.run("/bin/true")
    assert door.names() == ["sh", "true"]


def test_a_door_that_was_removed_tells_nothing(cgroup: Cgroup, door: Door, runtime: Runtime) -> None:
    door.lifecycle.remove_door(cgroup.id)
    runtime.run("/bin/true")
    assert door.names() == []


def test_two_processes_of_a_job_share_a_group_of_their_own(door: Door, runtime: Runtime) -> None:
    runtime.run("set -m; /bin/true | /bin/cat")
    first, second = door.told()
    assert first.process_group == second.process_group != first.parent_process_group


def test_a_long_path_is_cut_and_the_name_is_still_there(door: Door, runtime: Runtime) -> None:
    runtime.run("/bin/" + "./" * FILENAME_BYTES + "true")
    (seen,) = door.told()
    assert len(seen.filename) == FILENAME_BYTES - 1 and seen.command == "true"
