"""The guard beside a scheduler that has some tasks only, and one whose owner ends."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentcgroup.bpf.scheduler import attached_scheduler
from agentcgroup.client import Client, FeedbackKind, Priority
from tests import bpf_objects
from tests.ear import Ear
from tests.growing import CHURN, Tool
from tests.guarding import tight_cgroups
from tests.running import RunningDaemon, running_daemon, wait_until

pytestmark = pytest.mark.kernel

# Others that would step in are off.
CONFIGURATION = """
[scheduler]
mode = "partial"
[bpf]
memory_guard = "auto"
hold_max = "50ms"
[protection]
sessions = "off"
"""


def holds(daemon: RunningDaemon) -> float:
    """Of the daemon's calls so far, by its metrics."""
    name = "agentcgroup_guard_holds_total "
    lines = daemon.metrics().splitlines()
    return next(float(line.removeprefix(name)) for line in lines if line.startswith(name))


def test_in_mode_partial_calls_of_the_daemon_are_held_and_told_so(tmp_path: Path) -> None:
    with (
        running_daemon(tmp_path, CONFIGURATION, unenforced="refuse", memory="300M") as daemon,
        daemon.operator() as operator,
    ):
        for name, priority in (("top", Priority.HIGH), ("low", Priority.LOW)):
            operator.create_session(name, memory="290M", agent_memory="10M", priority=priority)
        # 300 less what was promised to the high session and the margin leaves the low one about 75 MiB.
        with (
            Ear(Client(daemon.session_dir("low"))) as ear,
            calling(daemon, "top", "200M", 8),
            calling(daemon, "low", "20M", 110),
        ):
            told = ear.wait(lambda message: message.kind is FeedbackKind.THROTTLED, what="the hold")
            assert "The kernel slows it" in told.message
            wait_until(lambda: holds(daemon) > 2, deadline_s=60, what="holds")
        assert operator.host().scheduler.ejections == 0


@contextlib.contextmanager
def calling(daemon: RunningDaemon, session: str, declared: str, mib: int) -> Iterator[None]:
    """A call that takes so much and gives it back, over and over."""
    command = (sys.executable, "-S", "-c", CHURN, str(mib))
    launched = daemon.launch(session, *command, options=("--memory", declared))
    try:
        yield
    finally:
        launched.kill()
        launched.communicate(timeout=120)


@pytest.mark.parametrize("is_killed", [False, True], ids=["stopped", "killed"])
def test_an_owner_that_ends_amid_the_pressure_frees_every_held_task(is_killed: bool) -> None:
    with tight_cgroups() as cgroups:
        high_call, low_call = cgroups[3:]
        owner = subprocess.Popen(
            [sys.executable, "-m", "tests.guarding", *(str(cgroup.id) for cgroup in cgroups)],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert owner.stdout is not None and owner.stdout.readline() == "guarding\n"
        active = Tool(high_call, 8)
        # Half a second for each quarter of a MiB: minutes, if they went on being held.
        growing = [Tool(low_call, 50, wait=False) for _ in range(2)]
        assert owner.stdout.readline() == "held\n"
        objects = bpf_objects.of_process(owner.pid)
        if is_killed:
            owner.kill()
        # Closes its input, too.
        owner.communicate(timeout=60)
        wait_until(lambda: attached_scheduler() is None, what="the scheduler being gone")
        for tool in growing:
            tool.wait()
        for tool in (*growing, active):
            tool.end()
    assert objects
    wait_until(lambda: not bpf_objects.in_kernel() & objects, what="its programs, maps and links being gone")
