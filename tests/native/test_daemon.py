"""A real daemon on a real cgroup2 mount, limits or not: boundaries, ends, identities, nothing left behind."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentcgroup.client import (
    CallState,
    Client,
    ClientError,
    Denied,
    FeedbackKind,
    NotFound,
    OperatorClient,
    Report,
    Verdict,
)
from tests.ear import Ear
from tests.processes import is_alive
from tests.running import LAUNCHER, RunningDaemon, running_daemon, wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="making cgroups needs root")


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    with running_daemon(tmp_path_factory.mktemp("daemon")) as running:
        yield running


@pytest.fixture
def session(operator: OperatorClient, request: pytest.FixtureRequest) -> Iterator[str]:
    name = f"s{abs(hash(request.node.name)) % 10**8}"
    operator.create_session(name, memory="1G")
    yield name
    with contextlib.suppress(NotFound):
        operator.remove_session(name)


@pytest.fixture
def ear(daemon: RunningDaemon, session: str) -> Iterator[Ear]:
    with Ear(Client(daemon.session_dir(session))) as listening:
        yield listening


def ended(ear: Ear, count: int = 1) -> list[Report]:
    """The reports of the first `count` calls to end."""
    wait_until(lambda: sum(m.kind is FeedbackKind.ENDED for m in ear.heard) >= count, what=f"{count} ends")
    return [message.report for message in ear.heard if message.report is not None][:count]


def run(
    daemon: RunningDaemon, session: str, *command: str, options: tuple[str, ...] = ()
) -> tuple[int, str, str]:
    process = daemon.launch(session, *command, options=options)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_the_tools_first_instruction_runs_in_its_call(daemon: RunningDaemon, session: str) -> None:
    status, out, err = run(daemon, session, "cat", "/proc/self/cgroup")
    assert status == 0, err
    path = next(line for line in out.splitlines() if line.startswith("0::"))
    assert f"/{daemon.name}/{session}/calls/c-" in path


def test_pid_output_and_exit_status_are_the_tools_own(daemon: RunningDaemon, session: str, ear: Ear) -> None:
    process = daemon.launch(session, "sh", "-c", "echo $$; echo oops >&2; exit 7")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, int(out)) == (7, process.pid)
    assert "oops" in err
    (report,) = ended(ear)
    assert (report.verdict, report.exit_code, report.leftover_processes) == (Verdict.EXIT_CODE, 7, 0)


def test_a_signal_to_the_call_is_a_signal_to_the_tool(daemon: RunningDaemon, session: str, ear: Ear) -> None:
    process = daemon.launch(session, "sleep", "100")
    ear.wait(lambda message: message.kind is FeedbackKind.STARTED, what="the start")
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == -signal.SIGTERM
    (report,) = ended(ear)
    assert (report.verdict, report.signal) == (Verdict.SIGNAL, signal.SIGTERM)


def test_the_tool_learns_its_limits_from_its_environment(daemon: RunningDaemon, session: str) -> None:
    _, out, _ = run(
        daemon, session, "env", options=("--memory", "100M", "--memory-max", "200M", "--cpu", "0.5")
    )
    environment = dict(line.split("=", 1) for line in out.splitlines() if "=" in line)
    assert environment["AGENTCGROUP_MEMORY_MAX_BYTES"] == str(200 << 20)
    assert environment["AGENTCGROUP_CPU_MILLI"] == "500"
    assert environment["AGENTCGROUP_SESSION"] == session
    told = run(
        daemon, session, str(LAUNCHER), "limits", "--json", options=("--memory-max", "200M", "--cpu", "0.5")
    )
    limits = json.loads(told[1])
    assert (limits["cpu_available_milli"], limits["memory_max_bytes"]) == (500, 200 << 20), told
    # GNU nproc heeds OMP_NUM_THREADS, so a make -j$(nproc) fits the call.
    assert run(daemon, session, "nproc", options=("--cpu", "0.5"))[1] == "1\n"


def test_a_tool_that_is_stopped_says_why_on_its_standard_error(daemon: RunningDaemon, session: str) -> None:
    status, _, err = run(
        daemon, session, "sh", "-c", "echo own >&2; sleep 1000", options=("--quiet", "--timeout", "1s")
    )
    assert status == -signal.SIGKILL
    own, last = err.splitlines()
    assert own == "own" and last.startswith("agentcg: call c-") and "Stopped at its deadline of 1 s" in last


def test_a_tool_that_ends_well_has_its_standard_error_to_itself(daemon: RunningDaemon, session: str) -> None:
    assert run(daemon, session, "sh", "-c", "echo own >&2; exit 3", options=("--quiet",))[2] == "own\n"


def test_what_a_call_leaves_behind_is_killed_and_counted(
    daemon: RunningDaemon, session: str, ear: Ear
) -> None:
    status, out, _ = run(daemon, session, "sh", "-c", "sleep 1000 >/dev/null 2>&1 & echo $!")
    assert status == 0
    (report,) = ended(ear)
    assert (report.verdict, report.leftover_processes) == (Verdict.OK, 1)
    assert "left behind" in report.message
    assert not is_alive(int(out))
    assert daemon.call_cgroups() == []


def test_a_process_that_fled_its_process_group_is_killed_too(
    daemon: RunningDaemon, session: str, ear: Ear, tmp_path: Path
) -> None:
    mark = tmp_path / "pid"
    flee = f"setsid --fork sh -c 'echo $$ > {mark}; exec sleep 1000'; while [ ! -s {mark} ]; do sleep 0.01; done"
    status, _, _ = run(daemon, session, "sh", "-c", flee)
    assert status == 0
    (report,) = ended(ear)
    assert report.leftover_processes == 1
    wait_until(lambda: not is_alive(int(mark.read_text())), what="its end")


def test_a_call_past_its_deadline_is_stopped(daemon: RunningDaemon, session: str, ear: Ear) -> None:
    status, _, _ = run(daemon, session, "sleep", "100", options=("--timeout", "300ms"))
    assert status == -signal.SIGKILL
    (report,) = ended(ear)
    assert report.verdict is Verdict.DEADLINE
    assert "--timeout" in report.advice


def test_a_killed_launcher_leaves_nothing(daemon: RunningDaemon, session: str, ear: Ear) -> None:
    process = daemon.launch(session, "sh", "-c", "sleep 1000 & sleep 1000")
    ear.wait(lambda message: message.kind is FeedbackKind.STARTED, what="the start")
    process.kill()
    process.wait(30)
    (report,) = ended(ear)
    assert report.verdict is Verdict.SIGNAL
    assert daemon.call_cgroups() == []


def test_a_call_in_a_call_is_nested_and_ends_with_it(daemon: RunningDaemon, session: str, ear: Ear) -> None:
    inner = f"{LAUNCHER} run --session-dir {daemon.session_dir(session)} -- cat /proc/self/cgroup"
    status, out, err = run(daemon, session, "sh", "-c", inner)
    assert status == 0, err
    path = next(line for line in out.splitlines() if line.startswith("0::"))
    assert path.count("/c-") == 2, path
    reports = ended(ear, 2)
    assert [report.verdict for report in reports] == [Verdict.OK, Verdict.OK]
    assert daemon.call_cgroups() == []


def test_when_the_outer_call_ends_the_nested_one_is_told_why(
    daemon: RunningDaemon, session: str, ear: Ear, tmp_path: Path
) -> None:
    mark = tmp_path / "runs"
    nested = (
        f"{LAUNCHER} run --session-dir {daemon.session_dir(session)} -- sh -c '>{mark}; exec sleep 1000'"
    )
    run(daemon, session, "sh", "-c", f"{nested} & while [ ! -e {mark} ]; do sleep 0.02; done")
    verdicts = {report.verdict for report in ended(ear, 2)}
    assert verdicts == {Verdict.OK, Verdict.PARENT_END}


def test_the_sdk_runs_a_command_in_a_call(daemon: RunningDaemon, session: str) -> None:
    with Client(daemon.session_dir(session)) as client:
        with client.call(memory="64M", timeout="30s") as call:
            done = call.run([sys.executable, "-c", "print('hello')"], capture_output=True, text=True)
        assert done.stdout == "hello\n"
        assert call.report.verdict is Verdict.OK
        assert call.report.usage.cpu_usage_us is None or call.report.usage.cpu_usage_us > 0


def test_a_process_of_the_agents_own_can_be_moved_into_a_call(
    daemon: RunningDaemon, operator: OperatorClient, session: str
) -> None:
    sleeper = subprocess.Popen(["sleep", "1000"])
    try:
        operator.place_agent(session, sleeper.pid)
        with Client(daemon.session_dir(session)) as client:
            answer = client.declare(memory="32M")
            call = client.begin(answer.call_id, sleeper.pid)
            assert call.state is CallState.RUNNING and call.pid == sleeper.pid
            report = client.finish(answer.call_id, 0)
        assert report.verdict is Verdict.OK
        assert sleeper.wait(30) == -signal.SIGKILL
    finally:
        sleeper.kill()


def test_a_process_outside_the_session_is_not_to_be_placed(daemon: RunningDaemon, session: str) -> None:
    sleeper = subprocess.Popen(["sleep", "1000"])
    try:
        with Client(daemon.session_dir(session)) as client:
            answer = client.declare(memory="32M")
            with pytest.raises(Denied):
                client.begin(answer.call_id, sleeper.pid)
    finally:
        sleeper.kill()
        sleeper.wait()


@pytest.mark.parametrize("pid", [-1, 0, 1, 2, 2**31 - 1, 4194304])
def test_a_pid_that_cannot_be_meant_is_refused(daemon: RunningDaemon, session: str, pid: int) -> None:
    with Client(daemon.session_dir(session)) as client:
        answer = client.declare(memory="32M")
        with pytest.raises(ClientError) as caught:
            client.begin(answer.call_id, pid)
        assert caught.value.cause
        assert client.limits().session == session, "the daemon is unharmed"


def test_one_session_cannot_see_or_touch_another(
    daemon: RunningDaemon, operator: OperatorClient, session: str
) -> None:
    operator.create_session("other", memory="512M")
    process = daemon.launch("other", "sleep", "1000")
    try:
        wait_until(lambda: operator.calls("other"), what="the other session's call")
        (call,) = operator.calls("other")
        with Client(daemon.session_dir(session)) as client:
            for attempt in (
                client.get,
                client.finish,
                client.ticket,
                lambda i: client.adjust(i, memory="1M"),
            ):
                with pytest.raises(NotFound):
                    attempt(call.id)
            assert all(each.session == session for each in client.tree())
        # A process of one session at the other's launch socket.
        inner = f"{LAUNCHER} run --session-dir {daemon.session_dir(session)} -- true"
        status, _, err = run(daemon, "other", "sh", "-c", inner)
        assert status == 2 and "another session" in err
        assert operator.call(call.id).state is CallState.RUNNING
    finally:
        operator.remove_session("other")
        assert process.wait(30) == -signal.SIGKILL


def test_an_operator_freezes_thaws_and_kills_one_call(
    daemon: RunningDaemon, operator: OperatorClient, session: str, ear: Ear
) -> None:
    processes = [daemon.launch(session, "sleep", "1000") for _ in range(2)]
    wait_until(lambda: len(operator.calls(session)) == 2, what="both calls")
    victim, other = operator.calls(session)
    assert operator.freeze_call(victim.id, reason="a look").state is CallState.FROZEN
    assert operator.thaw_call(victim.id).state is CallState.RUNNING
    report = operator.kill_call(victim.id, reason="enough")
    assert report.verdict is Verdict.OPERATOR and "enough" in report.message
    assert operator.call(other.id).state is CallState.RUNNING
    for kind in (FeedbackKind.FROZEN, FeedbackKind.THAWED):
        ear.wait(lambda message, kind=kind: (message.call_id, message.kind) == (victim.id, kind), what=kind)  # type: ignore[misc]
    operator.kill_session(session)
    for process in processes:
        process.wait(30)


def test_a_ticket_is_good_once(daemon: RunningDaemon, session: str) -> None:
    with Client(daemon.session_dir(session)) as client:
        ticket = client.ticket(client.declare(memory="32M").call_id)
    assert run(daemon, session, "true", options=("--ticket", ticket))[0] == 0
    status, _, err = run(daemon, session, "true", options=("--ticket", ticket))
    assert status == 2 and "ticket" in err


def test_a_hundred_calls_at_once_all_come_and_go(
    daemon: RunningDaemon, operator: OperatorClient, session: str
) -> None:
    processes = [daemon.launch(session, "sleep", "1000", options=("--memory", "1M")) for _ in range(100)]
    wait_until(lambda: len(operator.calls(session)) == 100, deadline_s=90, what="a hundred calls")
    assert len({call.cgroup for call in operator.calls(session)}) == 100
    assert operator.kill_session(session) == 100
    for process in processes:
        process.wait(30)
    wait_until(lambda: daemon.call_cgroups() == [], what="no cgroup of a call")
    wait_until(lambda: operator.session(session).calls_ended == 100, what="a hundred ends")


def test_a_refused_intent_says_why_and_starts_nothing(
    daemon: RunningDaemon, session: str, tmp_path: Path
) -> None:
    mark = tmp_path / "ran"
    status, _, err = run(daemon, session, "touch", str(mark), options=("--memory", "100G"))
    assert status == 120
    assert "Refused" in err and "at most" in err
    assert not mark.exists()
    _, _, line = run(daemon, session, "touch", str(mark), options=("--memory", "100G", "--json"))
    answer = json.loads(line)
    assert (answer["decision"], answer["reason"], answer["exit_status"]) == (
        "refused",
        "session_memory",
        120,
    )


@pytest.mark.parametrize(
    "options",
    [("--memory", "0"), ("--memory", "-1"), ("--memory", "lots"), ("--pids", "0"), ("--cpu", "nan"), ("--class", "fast"),
     ("--memory", "2G", "--memory-max", "1G"), ("--timeout", "0")],
)  # fmt: skip
def test_a_malformed_intent_is_named_and_starts_nothing(
    daemon: RunningDaemon, session: str, options: tuple[str, ...], tmp_path: Path
) -> None:
    mark = tmp_path / "ran"
    status, _, err = run(daemon, session, "touch", str(mark), options=options)
    assert status == 2, err
    assert err.strip() and not mark.exists()


def test_garbage_at_the_launch_socket_is_answered_and_harms_nothing(
    daemon: RunningDaemon, session: str
) -> None:
    for packet in (
        b"\0",
        b"x" * 20000,
        b"agentcgroup-launch/9\0",
        b"agentcgroup-launch/1\0op=end\0",
        os.urandom(500),
    ):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.settimeout(30)
            connection.connect(str(daemon.session_dir(session) / "launch.sock"))
            connection.send(packet)
            assert b"status=invalid" in connection.recv(20000)
    assert run(daemon, session, "true")[0] == 0


def test_a_second_daemon_does_not_start(daemon: RunningDaemon) -> None:
    second = subprocess.run(
        [sys.executable, "-P", "-m", "agentcgroup.daemon", "-c", str(daemon.config)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert second.returncode == 3
    assert f"process {daemon.pid}" in second.stderr
    with daemon.operator() as operator:
        assert operator.host().version, "the first is unharmed"


def test_an_agent_started_by_the_command_line_lives_in_its_leaf_and_its_session_ends_with_it(
    daemon: RunningDaemon, operator: OperatorClient
) -> None:
    script = "cat /proc/self/cgroup; $AGENTCGROUP_LAUNCHER run -- cat /proc/self/cgroup; exit 5"
    done = subprocess.run(
        [str(LAUNCHER), "session", "run", "solo", "--memory", "512M", "--", "sh", "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | {"AGENTCGROUP_OPERATOR_SOCKET": str(daemon.operator_socket)},
    )
    assert done.returncode == 5, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("0::")]
    assert lines[0].endswith("/solo/agent")
    assert "/solo/calls/c-" in lines[1]
    wait_until(
        lambda: "solo" not in [each.name for each in operator.sessions()], what="the end of the session"
    )
    assert not any(path.startswith("solo") for path in daemon.cgroups())


def test_history_and_json_for_machines(
    daemon: RunningDaemon, operator: OperatorClient, session: str, ear: Ear
) -> None:
    run(daemon, session, "sh", "-c", "exit 3", options=("--label", "task=t1"))
    (report,) = ended(ear)
    wait_until(lambda: list(operator.history(session)), what="the history's entry")
    done = subprocess.run(
        [str(LAUNCHER), "history", "--session", session, "--json"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env=os.environ | {"AGENTCGROUP_OPERATOR_SOCKET": str(daemon.operator_socket)},
    )
    assert report.call_id in done.stdout
    assert json.loads(done.stdout.splitlines()[0] if done.stdout.count("\n{") else done.stdout)


def test_a_stopped_daemon_leaves_nothing(tmp_path: Path) -> None:
    with running_daemon(tmp_path) as daemon:
        with daemon.operator() as operator:
            operator.create_session("last", memory="256M")
            process = daemon.launch("last", "sleep", "1000")
            wait_until(
                lambda: [c for c in operator.calls() if c.state is CallState.RUNNING], what="the call"
            )
        assert daemon.stop() == 0
        assert process.wait(30) == -signal.SIGKILL
        assert daemon.cgroups() == []
        assert not daemon.operator_socket.exists()


def test_a_dry_run_answers_and_changes_nothing(tmp_path: Path) -> None:
    with running_daemon(tmp_path) as daemon:
        daemon.stop()
        daemon.config.write_text(daemon.config.read_text().replace("[daemon]", "[daemon]\ndry_run = true"))
        daemon.log.write_text("")
        daemon.start()
        with daemon.operator() as operator:
            operator.create_session("dry", memory="256M")
            assert operator.host().dry_run
        status, out, err = run(daemon, "dry", "cat", "/proc/self/cgroup")
        assert status == 0, err
        assert "/calls/" not in out and daemon.cgroups() == []
        wait_until(lambda: "would make the cgroup of call" in daemon.log.read_text(), what="the words")
