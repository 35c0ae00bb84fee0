"""A real daemon that is killed, or stopped, and another one after it: on a real cgroup2 mount, limits or not."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentcgroup.cgroups.cgroup import Cgroup
from agentcgroup.client import Call, CallState, Client, OperatorClient, Report, Unreachable, Verdict
from agentcgroup.daemon.host.kept import RECORD
from tests.running import LAUNCHER, RunningDaemon, running_daemon, wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="making cgroups needs root")

# Says with its exit status that it went on to the end.
TELLING = "trap 'kill $!; exit 7' TERM; sleep 1000 & wait"


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[RunningDaemon]:
    with running_daemon(tmp_path, on_stop="keep") as running:
        yield running


def running_calls(operator: OperatorClient, session: str, count: int) -> list[Call]:
    """The session's calls, when so many run."""

    def found() -> list[Call]:
        return [call for call in operator.calls(session) if call.state is CallState.RUNNING]

    wait_until(lambda: len(found()) == count, what=f"{count} running calls")
    return found()


def history_of(operator: OperatorClient, call_id: str) -> Report:
    def found() -> list[Report]:
        return [each.report for each in operator.history() if each.report.call_id == call_id]

    wait_until(found, what=f"the report of {call_id}")
    return found()[0]


def actions(operator: OperatorClient, call_id: str) -> list[str]:
    return [str(event.action) for event in operator.explain(call_id).events]


def crash_and_restart(daemon: RunningDaemon) -> None:
    daemon.crash()
    daemon.start()


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_sessions_and_calls_outlive_the_daemon(daemon: RunningDaemon, how: str) -> None:
    with daemon.operator() as operator:
        session = operator.create_session("s", memory="1G", agent_memory="64M", priority="high")
        agent = subprocess.Popen(["sleep", "1000"])
        operator.place_agent("s", agent.pid)
        staying = daemon.launch("s", "sh", "-c", TELLING, options=("--memory", "100M"))
        leaving = daemon.launch("s", "sleep", "1000")
        frozen = daemon.launch("s", "sleep", "1000")
        calls = {call.pid: call for call in running_calls(operator, "s", 3)}
        assert operator.freeze_call(calls[frozen.pid].id).state is CallState.FROZEN
    directory = daemon.session_dir("s").stat().st_ino
    if how == "killed":
        daemon.crash()
    else:
        assert daemon.stop() == 0
    leaving.kill()
    leaving.wait(30)
    assert (agent.poll(), staying.poll()) == (None, None)
    daemon.start()
    try:
        with daemon.operator() as operator, Client(daemon.session_dir("s")) as client:
            assert daemon.session_dir("s").stat().st_ino == directory
            (taken,) = operator.sessions()
            assert (taken.name, taken.priority, taken.budget) == (
                session.name,
                session.priority,
                session.budget,
            )
            # The one that ended meanwhile: by what the kernel still says, and not by a guess.
            report = history_of(operator, calls[leaving.pid].id)
            assert (report.verdict, report.exit_code, report.signal) == (Verdict.UNKNOWN, None, None)
            assert "while agentcgroupd was away" in report.message
            # The one that goes on.
            now = operator.call(calls[staying.pid].id)
            before = calls[staying.pid]
            assert (now.pid, now.cgroup, now.limits, now.state) == (
                before.pid,
                before.cgroup,
                before.limits,
                before.state,
            )
            assert f"/{now.id}" in Path(f"/proc/{staying.pid}/cgroup").read_text()
            assert client.tree()[0].id in {call.id for call in calls.values()}
            # What an operator froze.
            assert operator.call(calls[frozen.pid].id).state is CallState.FROZEN
            assert operator.kill_call(calls[frozen.pid].id).verdict is Verdict.OPERATOR
            # What is new, at the same path.
            new = daemon.launch("s", "true", from_agent=True)
            assert new.wait(30) == 0
            wait_until(lambda: "adopted" in actions(operator, now.id), what="the decision in the log")
            os.kill(staying.pid, signal.SIGTERM)
            assert staying.wait(30) == 7
            report = history_of(operator, now.id)
            assert (report.verdict, report.exit_code) == (Verdict.EXIT_CODE, 7)
            # Nothing is left in the books of any of them.
            wait_until(lambda: not operator.calls("s"), what="the end of every call")
            assert operator.host().memory_reserved_bytes == 64 << 20
            operator.remove_session("s")
            assert daemon.cgroups() == []
            assert agent.wait(30) == -signal.SIGKILL
    finally:
        for process in (agent, staying, leaving, frozen):
            process.kill()
            process.wait(30)


def test_a_session_that_was_to_end_with_its_agent_ends_when_it_died_meanwhile(daemon: RunningDaemon) -> None:
    agent = subprocess.Popen(
        [str(LAUNCHER), "session", "run", "mortal", "--memory", "256M", "--socket", str(daemon.operator_socket), "--",
         "sh", "-c", f"{LAUNCHER} run -- sleep 1000 & wait"],
    )  # fmt: skip
    with daemon.operator() as operator:
        wait_until(lambda: "mortal" in {session.name for session in operator.sessions()}, what="the session")
        (call,) = running_calls(operator, "mortal", 1)
    daemon.crash()
    with Cgroup.open(daemon.root / "mortal" / "agent") as leaf:
        leaf.kill()
    agent.wait(60)
    daemon.start()
    with daemon.operator() as operator:
        assert history_of(operator, call.id).verdict is Verdict.SESSION_END
        wait_until(lambda: daemon.cgroups() == [], what="the end of the session")
        assert operator.sessions() == []


def test_prepared_calls_that_nobody_took_are_gone_and_one_that_was_taken_is_a_call(
    daemon: RunningDaemon,
) -> None:
    with daemon.operator() as operator:
        operator.create_session("s", memory="1G")
        for _ in range(3):
            assert daemon.launch("s", "true", from_agent=True).wait(30) == 0
        # Not that no call is live: the last one may not have been told of yet, and its cgroup be no standing one.
        wait_until(lambda: len(list(operator.history("s"))) == 3, what="their reports")
    if not daemon.call_cgroups():
        pytest.skip("nothing is prepared on this host")
    os.kill(daemon.pid, signal.SIGSTOP)
    # The thread stands still, too, so the test takes the place of the caller: the daemon never hears of it.
    taken = subprocess.Popen(["sleep", "1000"])
    standing = daemon.call_cgroups()
    with Cgroup.open(daemon.root / standing[0]) as cgroup:
        cgroup.place(taken.pid)
    crash_and_restart(daemon)
    try:
        with daemon.operator() as operator:
            (call,) = running_calls(operator, "s", 1)
            assert (call.pid, call.id) == (taken.pid, os.path.basename(standing[0]))
            assert daemon.call_cgroups() == [standing[0]]
            assert operator.kill_call(call.id).verdict is Verdict.OPERATOR
    finally:
        taken.kill()
        taken.wait(30)


def test_what_cannot_be_understood_is_left_alone_and_named(daemon: RunningDaemon) -> None:
    agents = []
    with daemon.operator() as operator:
        for name in ("strange", "well"):
            operator.create_session(name, memory="256M")
            agents.append(subprocess.Popen(["sleep", "1000"]))
            operator.place_agent(name, agents[-1].pid)
    daemon.crash()
    with Cgroup.open(daemon.root / "strange") as cgroup:
        kept = json.loads(cgroup.get_xattr(RECORD) or b"")
        cgroup.set_xattr(RECORD, json.dumps({**kept, "version": 99}).encode())
    daemon.start()
    try:
        with daemon.operator() as operator:
            assert [session.name for session in operator.sessions()] == ["well"]
        assert agents[0].poll() is None
        log = daemon.log.read_text()
        assert "session strange of an earlier daemon is left alone" in log and "version 99" in log
    finally:
        for agent in agents:
            agent.kill()
            agent.wait(30)


def test_an_interrupt_ends_sessions_whatever_a_stop_does(daemon: RunningDaemon) -> None:
    with daemon.operator() as operator:
        operator.create_session("s", memory="256M")
        call = daemon.launch("s", "sleep", "1000")
        running_calls(operator, "s", 1)
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGINT)
    assert daemon.process.wait(60) == 0
    assert call.wait(30) == -signal.SIGKILL
    assert daemon.cgroups() == []
    with pytest.raises(Unreachable), Client(daemon.session_dir("s")) as client:
        client.limits()
