"""The daemon as its unit runs it: what the sandbox still allows, and what survives systemd, a crash and a
hang.
"""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from agentcgroup.cgroups import files
from agentcgroup.cgroups.cgroup import Cgroup
from agentcgroup.cgroups.files import InterfaceFile
from agentcgroup.client import CallState, Client, OperatorClient, Verdict
from agentcgroup.proto.words import Action
from tests import bpf_objects
from tests.running import LAUNCHER, wait_until

UNIT = "agentcgroup.service"
ROOT = Path("/sys/fs/cgroup/agentcgroup.slice")
SESSION = "systemd-test"
MIB = 1 << 20

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        not Path("/run/systemd/system").is_dir() or not Path("/etc/systemd/system", UNIT).exists(),
        reason="needs a host that systemd runs, with the unit installed",
    ),
]


def systemctl(*arguments: str) -> str:
    ran = subprocess.run(["systemctl", *arguments], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, f"systemctl {' '.join(arguments)}: {ran.stderr}"
    return ran.stdout.strip()


def shown(name: str) -> str:
    return systemctl("show", "--value", "--property", name, UNIT)


def await_daemon() -> None:
    wait_until(lambda: shown("ActiveState") == "active" and shown("SubState") == "running", 120)


@pytest.fixture(autouse=True)
def daemon() -> None:
    systemctl("reset-failed", UNIT)
    systemctl("start", UNIT)
    await_daemon()


@dataclass
class Alive:
    """A session with an agent and a call that do nothing but live."""

    agent: subprocess.Popen[bytes]
    call: subprocess.Popen[bytes]
    cgroup: Path

    def limits(self) -> dict[str, object]:
        found: dict[str, object] = {}
        watched: tuple[InterfaceFile[Any], ...] = (
            files.MEMORY_MAX, files.CPU_MAX, files.PIDS_MAX, files.CGROUP_SUBTREE_CONTROL,
        )  # fmt: skip
        with Cgroup.open(self.cgroup) as session:
            for cgroup in (session, *session.walk()):
                for file in watched:
                    found[f"{cgroup.path}/{file.name}"] = cgroup.read(file)
        return found

    def assert_alive(self) -> None:
        assert self.agent.poll() is None, "the agent died"
        assert self.call.poll() is None, "the call died"


@pytest.fixture
def alive() -> Iterator[Alive]:
    with OperatorClient() as operator:
        session = operator.create_session(SESSION, memory="200M", agent_memory="64M", cpu=1, pids=100)
        agent = subprocess.Popen(["sleep", "600"])
        operator.place_agent(SESSION, agent.pid)
    launch = [str(LAUNCHER), "run", "--session-dir", session.socket_dir, "--memory", "32M", "--pids", "10"]
    call = subprocess.Popen([*launch, "--", "sleep", "600"])
    cgroup = ROOT / SESSION
    wait_until(lambda: any((cgroup / "calls").glob("c-*/cgroup.procs")), 60)
    yield Alive(agent, call, cgroup)
    with OperatorClient() as operator:
        operator.remove_session(SESSION)
    for process in (agent, call):
        process.kill()
        process.wait()
    assert not cgroup.exists()


def test_this_systemd_finds_nothing_wrong_with_the_unit() -> None:
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", f"/etc/systemd/system/{UNIT}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (verified.returncode, verified.stderr) == (0, "")


def check_host() -> dict[str, dict[str, Any]]:
    ran = subprocess.run(
        ["agentcgroupd", "--check-host", "--json"], capture_output=True, text=True, check=False
    )
    return {one["name"]: one for one in json.loads(ran.stdout)["capabilities"]}


def test_the_sandbox_of_the_unit_takes_no_capability_away() -> None:
    with OperatorClient() as operator:
        inside = {one.name: one.available for one in operator.host().capabilities}
    outside = {name: one["available"] for name, one in check_host().items()}
    # dockerd may have been started or stopped since the daemon was.
    inside.pop("docker"), outside.pop("docker")
    assert inside == outside


def test_the_sandbox_of_the_unit_lets_the_daemon_have_its_programs() -> None:
    pid = int(shown("MainPID"))
    assert {kind for kind, _ in bpf_objects.of_process(pid)} == {"prog", "map", "link"}


def test_the_sandbox_of_the_unit_lets_the_doors_thread_go_first() -> None:
    tasks = Path(f"/proc/{shown('MainPID')}/task").iterdir()
    (door,) = [int(task.name) for task in tasks if (task / "comm").read_text() == "door\n"]
    # SCHED_DEADLINE, sched(7); not in the os module of Python 3.11.
    assert os.sched_getscheduler(door) == 6


def test_the_sandbox_of_the_unit_lets_a_stopped_tool_say_why(alive: Alive) -> None:
    session = f"/run/agentcgroup/sessions/{SESSION}"
    launch = [str(LAUNCHER), "run", "--session-dir", session, "--memory", "16M", "--timeout", "1s"]
    stopped = subprocess.run([*launch, "--", "sleep", "600"], stderr=subprocess.PIPE, text=True, check=False)
    assert stopped.returncode == -signal.SIGKILL
    assert "agentcg: call c-" in stopped.stderr and "deadline" in stopped.stderr


def test_the_daemon_outlives_its_tools_and_passes_that_on_to_nobody(alive: Alive) -> None:
    daemon = int(shown("MainPID"))
    assert int(Path(f"/proc/{daemon}/oom_score_adj").read_text()) == -900
    assert int(Path(f"/proc/{alive.agent.pid}/oom_score_adj").read_text()) == 0
    assert int(Path(f"/proc/{alive.call.pid}/oom_score_adj").read_text()) == 500


def test_reloading_systemd_leaves_sessions_and_their_limits_alone(alive: Alive) -> None:
    before = alive.limits()
    systemctl("daemon-reload")
    systemctl("daemon-reexec")
    # Starting and stopping units is when systemd thinks about which controllers are needed where.
    subprocess.run(
        ["systemd-run", "--quiet", "--wait", "-p", "CPUWeight=50", "-p", "TasksMax=9", "true"], check=True
    )
    systemctl("daemon-reload")
    alive.assert_alive()
    assert alive.limits() == before
    root_controllers = (ROOT.parent / "cgroup.subtree_control").read_text().split()
    assert {"memory", "cpu", "pids"} <= set(root_controllers)


def granted_pids(agent: Client) -> int | None:
    granted = agent.declare(memory="16M").granted
    assert granted is not None
    return granted.pids_max


def test_systemctl_reload_reads_the_configuration_anew_and_costs_no_call(alive: Alive) -> None:
    path = Path("/etc/agentcgroup/agentcgroup.toml")
    kept = path.read_text(encoding="utf-8") if path.exists() else None
    before, daemon = alive.limits(), shown("MainPID")
    try:
        path.parent.mkdir(exist_ok=True)
        path.write_text("[call]\npids_max = 77\n", encoding="utf-8")
        systemctl("reload", UNIT)
        with Client(next(Path("/run/agentcgroup/sessions").glob(SESSION))) as agent:
            assert granted_pids(agent) == 77
        path.write_text("[call]\npids_mex = 78\n", encoding="utf-8")
        wrong = subprocess.run(["systemctl", "reload", UNIT], capture_output=True, text=True, check=False)
        assert wrong.returncode != 0
        with Client(next(Path("/run/agentcgroup/sessions").glob(SESSION))) as agent:
            assert granted_pids(agent) == 77
    finally:
        path.unlink()
        if kept is not None:
            path.write_text(kept, encoding="utf-8")
        systemctl("reload", UNIT)
    alive.assert_alive()
    assert (alive.limits(), shown("MainPID")) == (before, daemon)


def adoptions(operator: OperatorClient, call_id: str) -> int:
    """How often the call was taken over; its story tells what happened to its session, too."""
    events = operator.explain(call_id).events
    return sum(one.action == Action.ADOPTED and one.call_id == call_id for one in events)


def test_a_crash_and_a_restart_cost_no_session_its_life_its_limits_or_its_daemon(alive: Alive) -> None:
    before, first = alive.limits(), int(shown("MainPID"))
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: int(shown("MainPID")) not in (0, first), 120)
    await_daemon()
    systemctl("restart", UNIT)
    alive.assert_alive()
    assert alive.limits() == before
    with OperatorClient() as operator:
        (session,) = [each for each in operator.sessions() if each.name == SESSION]
        (call,) = operator.calls(SESSION)
        assert (call.pid, call.state) == (alive.call.pid, CallState.RUNNING)
        assert (session.budget.memory_max_bytes, call.limits.pids_max) == (200 * MIB, 10)
        wait_until(lambda: adoptions(operator, call.id) == 2, 60)
        again = [str(LAUNCHER), "run", "--session-dir", session.socket_dir, "--", "true"]
        assert subprocess.run(again, check=False).returncode == 0
        alive.call.terminate()
        alive.call.wait(60)
        wait_until(lambda: call.id in {each.report.call_id for each in operator.history()}, 60)
        (entry,) = [each for each in operator.history() if each.report.call_id == call.id]
        assert (entry.report.verdict, entry.report.signal) == (Verdict.SIGNAL, signal.SIGTERM)
        assert entry.report.usage.memory_peak_bytes


def test_a_daemon_that_hangs_is_noticed_by_the_watchdog_and_replaced(tmp_path: Path) -> None:
    drop_in = Path("/run/systemd/system", f"{UNIT}.d", "watchdog.conf")
    drop_in.parent.mkdir(parents=True, exist_ok=True)
    drop_in.write_text("[Service]\nWatchdogSec=3\nTimeoutAbortSec=1\n")
    try:
        systemctl("daemon-reload")
        systemctl("restart", UNIT)
        await_daemon()
        hung = int(shown("MainPID"))
        assert hung, "0 would stop the tests"
        os.kill(hung, signal.SIGSTOP)
        wait_until(lambda: int(shown("MainPID")) not in (0, hung), 120)
        await_daemon()
    finally:
        drop_in.unlink()
        systemctl("daemon-reload")
        systemctl("restart", UNIT)


def test_a_wrong_configuration_is_reported_once_and_not_retried() -> None:
    configuration = Path("/etc/agentcgroup/agentcgroup.toml")
    good = configuration.read_text()
    try:
        configuration.write_text(good.replace("sessions_max = 256", "session_max = 256"))
        ran = subprocess.run(["systemctl", "restart", UNIT], capture_output=True, text=True, check=False)
        assert ran.returncode != 0
        assert shown("ActiveState") == "failed"
        assert shown("ExecMainStatus") == "2"
        assert shown("NRestarts") == "0"
        log = subprocess.run(
            ["journalctl", "-u", UNIT, "-n", "20", "-o", "cat"], capture_output=True, text=True, check=True
        ).stdout
        assert "did you mean 'sessions_max'?" in log
    finally:
        configuration.write_text(good)
        systemctl("reset-failed", UNIT)
        systemctl("start", UNIT)


def test_directories_of_mounted_containers_survive_a_stop() -> None:
    place = Path("/run/agentcgroup/containers/kept")
    place.mkdir(parents=True, exist_ok=True)
    inode = place.stat().st_ino
    systemctl("stop", UNIT)
    systemctl("start", UNIT)
    assert place.stat().st_ino == inode
    assert place.parent.stat().st_mode & 0o777 == 0o700
    place.rmdir()
