"""The daemon with its CPU scheduler: attached, thrown off, refused, and told to operators."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from agentcgroup.bpf.scheduler import CpuScheduler, SchedulerMode, attached_scheduler
from agentcgroup.client import OperatorClient
from tests.running import RunningDaemon, running_daemon, wait_until

pytestmark = pytest.mark.kernel

# include/uapi/linux/sched.h
SCHED_EXT = 7


def configuration(mode: str) -> str:
    return f'[scheduler]\nmode = "{mode}"\n'


def becomes(operator: OperatorClient, state: str) -> Callable[[], bool]:
    return lambda: operator.host().scheduler.state == state


def check(daemon: RunningDaemon) -> str:
    """`agentcg check`, as operators see it."""
    command = [
        str(Path(sys.executable).parent / "agentcg"),
        "check",
        "--socket",
        str(daemon.operator_socket),
    ]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_an_ejection_is_told_and_the_scheduler_comes_back(tmp_path: Path) -> None:
    with running_daemon(tmp_path, configuration("full")) as daemon, daemon.operator() as operator:
        assert operator.host().scheduler.state == "attached" and attached_scheduler() == "agentcgroup"
        assert "ours, full" in check(daemon)
        # SysRq-S is the kernel's own way to throw a scheduler off (Documentation/scheduler/sched-ext.rst).
        Path("/proc/sysrq-trigger").write_text("S")
        wait_until(lambda: operator.host().scheduler.ejections == 1, deadline_s=30)
        wait_until(becomes(operator, "attached"), deadline_s=60)
        assert "thrown off once" in check(daemon)
        log = daemon.log.read_text()
        assert "CPU scheduler ended: " in log and "sysrq" in log.lower()
        metrics = daemon.metrics()
        assert "agentcgroup_scheduler_ejections_total 1.0" in metrics
        assert 'agentcgroup_scheduler_state{state="attached"} 1.0' in metrics
    wait_until(lambda: attached_scheduler() is None, deadline_s=30)


def test_a_scheduler_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    with CpuScheduler() as other:
        other.attach_scheduler(SchedulerMode.PARTIAL)
        with running_daemon(tmp_path, configuration("full")) as daemon, daemon.operator() as operator:
            told = operator.host().scheduler
            assert told.state == "refused" and "is loaded" in told.reason
            assert "ours is refused" in check(daemon)
        assert other.end() is None


def test_in_partial_mode_calls_are_scheduled_by_it_and_the_rest_is_not(tmp_path: Path) -> None:
    with running_daemon(tmp_path, configuration("partial")) as daemon, daemon.operator() as operator:
        operator.create_session("s", memory="500M")
        code = "import os, subprocess, sys; print(os.sched_getscheduler(0), flush=True)"
        nested = f"{code}; subprocess.run([sys.executable, '-c', {code!r}])"
        call = daemon.launch("s", sys.executable, "-c", nested)
        out, _ = call.communicate(timeout=120)
        assert out.split() == [str(SCHED_EXT), str(SCHED_EXT)]
        assert policy_of(daemon.pid) != SCHED_EXT


def policy_of(pid: int) -> int:
    # Field 41 of proc_pid_stat(5).
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[38])
