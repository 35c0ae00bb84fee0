"""What the kernel enforces on calls, on a real daemon: each limit, whose it was, and who survives."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentcgroup.cgroups import files
from agentcgroup.cgroups.cgroup import Cgroup
from agentcgroup.client import (
    CallState,
    Client,
    Decision,
    FeedbackKind,
    Level,
    NotFound,
    OperatorClient,
    Report,
    Verdict,
)
from tests.ear import Ear
from tests.running import LAUNCHER, RunningDaemon, running_daemon, wait_until

pytestmark = pytest.mark.kernel

MIB = 1 << 20
# Allocates and touches so many MiB, then sleeps so many seconds.
HOG = "import sys,time; b=bytearray(int(sys.argv[1])<<20); b[::4096]=b'x'*len(b[::4096]); time.sleep(float(sys.argv[2]))"
# Grows by one MiB at a time for ever.
GROW = "b=[]\nwhile True: b.append(b'x'*(1<<20))"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    directory = tmp_path_factory.mktemp("daemon")
    with running_daemon(directory, unenforced="refuse") as running:
        yield running


@pytest.fixture
def session(operator: OperatorClient, request: pytest.FixtureRequest) -> Iterator[str]:
    name = f"k{abs(hash(request.node.name)) % 10**8}"
    operator.create_session(name, memory="800M", agent_memory="100M")
    yield name
    with contextlib.suppress(NotFound):
        operator.remove_session(name)


@pytest.fixture
def ear(daemon: RunningDaemon, session: str) -> Iterator[Ear]:
    with Ear(Client(daemon.session_dir(session))) as listening:
        yield listening


@pytest.fixture
def agent(
    daemon: RunningDaemon, operator: OperatorClient, session: str
) -> Iterator["subprocess.Popen[bytes]"]:
    """An agent runtime of 60 MiB in its leaf."""
    runtime = subprocess.Popen([sys.executable, "-c", HOG, "60", "3600"])
    operator.place_agent(session, runtime.pid)
    yield runtime
    runtime.kill()
    runtime.wait()


def python(
    daemon: RunningDaemon, session: str, code: str, *arguments: str, options: tuple[str, ...] = ()
) -> "subprocess.Popen[str]":
    return daemon.launch(session, sys.executable, "-S", "-c", code, *arguments, options=options)


def ended(ear: Ear, count: int = 1) -> list[Report]:
    wait_until(
        lambda: sum(m.kind is FeedbackKind.ENDED for m in ear.heard) >= count,
        deadline_s=120,
        what=f"{count} ends",
    )
    return [message.report for message in ear.heard if message.report is not None][:count]


def test_the_limits_of_the_answer_stand_in_the_kernels_files(
    daemon: RunningDaemon, operator: OperatorClient, session: str
) -> None:
    options = ("--memory", "64M", "--memory-max", "96M", "--cpu", "0.5", "--weight", "250", "--pids", "77")
    process = daemon.launch(session, "sleep", "1000", options=options)
    wait_until(lambda: operator.calls(session), what="the call")
    (call,) = operator.calls(session)
    with Cgroup.open(daemon.root / session / "calls" / call.id) as cgroup:
        assert cgroup.read(files.MEMORY_MAX) == 96 * MIB
        assert cgroup.read(files.MEMORY_SWAP_MAX) == 0
        assert cgroup.read(files.MEMORY_OOM_GROUP) is True
        assert cgroup.read(files.PIDS_MAX) == 77
        assert cgroup.read(files.CPU_WEIGHT) == 250
        cpu_max = cgroup.read(files.CPU_MAX)
        assert cpu_max is not None and (cpu_max.quota_us, cpu_max.period_us) == (50_000, 100_000)
    with Cgroup.open(daemon.root / session) as cgroup, cgroup.open_child("agent") as leaf:
        assert cgroup.read(files.MEMORY_MAX) == 800 * MIB
        assert leaf.read(files.MEMORY_MIN) == 100 * MIB
    assert not call.limits.not_enforced
    operator.kill_session(session)
    process.wait(60)


def test_a_call_over_its_maximum_dies_alone_and_is_told_why(
    daemon: RunningDaemon, operator: OperatorClient, session: str, agent: "subprocess.Popen[bytes]", ear: Ear
) -> None:
    sibling = python(daemon, session, HOG, "50", "3600")
    wait_until(lambda: operator.calls(session), what="the sibling")
    sibling_id = operator.calls(session)[0].id
    victim = python(daemon, session, GROW, options=("--memory", "100M", "--memory-max", "120M"))
    assert victim.wait(120) == -signal.SIGKILL
    (report,) = ended(ear)
    assert report.verdict is Verdict.MEMORY_LIMIT_CALL
    peak = report.usage.memory_peak_bytes
    assert peak is not None and 100 * MIB < peak <= 120 * MIB
    assert "its own memory limit of 120 MiB" in report.message and "--memory-max 240M" in report.advice
    (message,) = [each for each in ear.heard if each.kind is FeedbackKind.ENDED]
    assert message.level is Level.TIGHT
    assert agent.poll() is None, "the agent runtime outlives its tools"
    assert sibling.poll() is None and operator.call(sibling_id).state is CallState.RUNNING
    operator.kill_session(session)
    sibling.wait(60)


def test_the_whole_tree_of_an_oom_killed_call_goes(daemon: RunningDaemon, session: str, ear: Ear) -> None:
    code = f"import subprocess,sys; subprocess.Popen(['sleep','1000']); exec({GROW!r})"
    python(daemon, session, code, options=("--memory-max", "80M")).wait(120)
    (report,) = ended(ear)
    assert report.verdict is Verdict.MEMORY_LIMIT_CALL
    assert report.usage.oom_kill_events is not None and report.usage.oom_kill_events >= 2
    wait_until(lambda: daemon.call_cgroups() == [], what="their cgroups being gone")


def test_twenty_eight_calls_over_their_limits_at_once_do_not_harm_the_agent(
    daemon: RunningDaemon, session: str, agent: "subprocess.Popen[bytes]", ear: Ear
) -> None:
    options = ("--memory", "20M", "--memory-max", "24M")
    victims = [python(daemon, session, GROW, options=options) for _ in range(28)]
    for victim in victims:
        assert victim.wait(300) == -signal.SIGKILL
    reports = ended(ear, 28)
    assert {report.verdict for report in reports} == {Verdict.MEMORY_LIMIT_CALL}
    warned = {each.call_id for each in ear.heard if each.message.startswith("The call holds")}
    unwarned = {report.call_id for report in reports if "no time to warn" in report.message}
    assert not warned & unwarned
    assert agent.poll() is None
    wait_until(lambda: daemon.call_cgroups() == [], what="their cgroups being gone")


def test_when_the_calls_together_fill_the_session_a_call_goes_and_never_the_agent(
    daemon: RunningDaemon, operator: OperatorClient, session: str, agent: "subprocess.Popen[bytes]", ear: Ear
) -> None:
    other = python(daemon, session, HOG, "100", "3600", options=("--memory", "120M"))
    wait_until(lambda: operator.calls(session), what="the other call")
    (call,) = operator.calls(session)
    wait_until(
        lambda: (operator.call(call.id).usage.memory_current_bytes or 0) > 100 * MIB, what="its memory"
    )
    victim = python(daemon, session, GROW, options=("--memory", "50M"))
    assert victim.wait(120) == -signal.SIGKILL
    # It has 700 MiB as its own limit, which is also that of all calls together.
    (report,) = ended(ear)
    assert report.verdict is Verdict.MEMORY_LIMIT_SESSION
    assert agent.poll() is None and other.poll() is None
    operator.kill_session(session)
    other.wait(60)


# Forks until the kernel refuses, and ends with argv[1] when told.
FORK = """
import os, sys, time
try:
    while True:
        if os.fork() == 0:
            time.sleep(1000)
except BlockingIOError:
    sys.stdin.readline()
    sys.exit(int(sys.argv[1]))
"""


def fork(daemon: RunningDaemon, session: str, exit_code: int, *options: str) -> "subprocess.Popen[str]":
    launcher = daemon.launch_command(
        session, sys.executable, "-S", "-c", FORK, str(exit_code), options=options
    )
    return subprocess.Popen(launcher, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_fork_without_end_is_bounded_and_told_while_it_runs_and_reported(
    daemon: RunningDaemon, session: str, ear: Ear
) -> None:
    process = fork(daemon, session, 1, "--pids", "20")
    warning = ear.wait(lambda each: each.kind is FeedbackKind.WARNING, what="the warning")
    assert "a new process once: it may have 20 processes" in warning.message
    assert f"agentcg call set {warning.call_id} --pids 40" in warning.advice
    _, stderr = process.communicate("\n", timeout=60)
    assert process.returncode == 1
    report = ear.report(warning.call_id)
    assert report.verdict is Verdict.PIDS_LIMIT
    assert report.usage.pids_max_events == 1 and report.leftover_processes == 19
    assert "--pids 40" in report.advice
    assert f"agentcg: call {warning.call_id}: " in stderr and "--pids 40" in stderr


def test_at_the_processes_limit_of_the_session_its_agent_is_told(
    daemon: RunningDaemon,
    operator: OperatorClient,
    session: str,
    agent: "subprocess.Popen[bytes]",
    ear: Ear,
) -> None:
    operator.update_session(session, pids=20)
    process = fork(daemon, session, 3)
    warning = ear.wait(lambda each: each.kind is FeedbackKind.WARNING, what="the warning")
    assert not warning.call_id and "may have 20 processes and threads together" in warning.message
    assert agent.poll() is None
    _, stderr = process.communicate("\n", timeout=60)
    assert process.returncode == 3
    end = ear.wait(lambda each: each.kind is FeedbackKind.ENDED, what="the end")
    assert end.report is not None and end.report.verdict is Verdict.EXIT_CODE
    assert not end.report.usage.pids_max_events, "it was not the call's own limit"
    assert "limit of 20 processes and threads of the whole session" in end.message
    assert end.message in stderr


def test_a_cpu_cap_holds(daemon: RunningDaemon, session: str, ear: Ear) -> None:
    process = python(daemon, session, "while True: pass", options=("--cpu", "0.2", "--timeout", "5s"))
    process.wait(60)
    (report,) = ended(ear)
    assert report.usage.cpu_usage_us is not None
    # Without the cap it would be all of it. The pause of an emulator counts as used by whom it comes upon.
    assert report.usage.cpu_usage_us / 1000 < 0.5 * report.duration_ms
    assert report.usage.cpu_throttled_us


def test_a_throttled_call_is_told_so_and_then_stopped(daemon: RunningDaemon, session: str, ear: Ear) -> None:
    options = (
        "--memory",
        "60M",
        "--memory-max",
        "400M",
        "--on-exceed",
        "throttle",
        "--throttle-limit",
        "2s",
    )
    process = python(daemon, session, GROW, options=options)
    told = ear.wait(lambda each: each.kind is FeedbackKind.THROTTLED, what="that it is throttled")
    assert told.level is Level.CRITICAL and told.advice
    assert process.wait(120) == -signal.SIGKILL
    (report,) = ended(ear)
    assert report.verdict is Verdict.THROTTLE_LIMIT
    assert report.usage.memory_high_events


def test_a_running_call_is_given_more_and_never_less_than_it_uses(
    daemon: RunningDaemon, operator: OperatorClient, session: str
) -> None:
    process = python(
        daemon, session, HOG, "100", "3600", options=("--memory", "120M", "--memory-max", "150M")
    )
    wait_until(lambda: operator.calls(session), what="the call")
    (call,) = operator.calls(session)

    def uses_it() -> bool:
        current = operator.call(call.id).usage.memory_current_bytes
        return current is not None and current > 100 * MIB

    wait_until(uses_it, what="the allocation")
    with Client(daemon.session_dir(session)) as client:
        assert client.adjust(call.id, memory="50M", memory_max="60M").decision is Decision.REFUSED
        assert client.adjust(call.id, memory_max="300M").decision is Decision.GRANTED
    with Cgroup.open(daemon.root / session / "calls" / call.id) as cgroup:
        assert cgroup.read(files.MEMORY_MAX) == 300 * MIB
    operator.kill_session(session)
    process.wait(60)


def test_an_oom_of_a_nested_call_leaves_the_outer_one(daemon: RunningDaemon, session: str, ear: Ear) -> None:
    inner = f'{LAUNCHER} run --session-dir {daemon.session_dir(session)} --memory-max 60M -- {sys.executable} -S -c "{GROW}"'
    process = daemon.launch(
        session, "sh", "-c", f"{inner}; echo inner $?; exit 7", options=("--memory", "200M")
    )
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 7 and "inner 137" in out
    inner_report, outer_report = ended(ear, 2)
    assert inner_report.verdict is Verdict.MEMORY_LIMIT_CALL
    assert outer_report.verdict is Verdict.EXIT_CODE, "it failed by itself, at no limit of session or host"


def test_a_frozen_call_stands_still(daemon: RunningDaemon, operator: OperatorClient, session: str) -> None:
    process = python(daemon, session, "while True: pass")
    wait_until(lambda: operator.calls(session), what="the call")
    (call,) = operator.calls(session)
    operator.freeze_call(call.id)
    with Cgroup.open(daemon.root / session / "calls" / call.id) as cgroup:

        def is_frozen() -> bool:
            events = cgroup.read(files.CGROUP_EVENTS)
            return events is not None and events.frozen is True

        wait_until(is_frozen, what="the freezing")
        before = operator.call(call.id).usage.cpu_usage_us
        after = operator.call(call.id).usage.cpu_usage_us
        assert before == after
    operator.kill_session(session)
    process.wait(60)


def test_a_tool_is_the_oom_killers_first_choice(daemon: RunningDaemon, session: str) -> None:
    process = daemon.launch(session, "cat", "/proc/self/oom_score_adj")
    out, _ = process.communicate(timeout=60)
    assert int(out) > 0
    own = int(Path(f"/proc/{daemon.pid}/oom_score_adj").read_text())
    assert own < int(out), "the daemon is not"


def test_an_unprivileged_agent_runs_its_tools_but_cannot_touch_its_limits(daemon: RunningDaemon) -> None:
    script = (
        "id -u; $AGENTCGROUP_LAUNCHER run --memory 50M -- id -u;"
        f" echo max > {daemon.root}/unpriv/memory.max; echo status $?"
    )
    done = subprocess.run(
        [
            str(LAUNCHER),
            "session",
            "run",
            "unpriv",
            "--memory",
            "300M",
            "--user",
            "nobody",
            "--",
            "sh",
            "-c",
            script,
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | {"AGENTCGROUP_OPERATOR_SOCKET": str(daemon.operator_socket)},
    )
    lines = done.stdout.split()
    assert lines[0] == lines[1] == "65534", done.stderr
    assert lines[-1] != "0", "the limit file is not the agent's to write"


def test_nothing_is_left_of_any_of_it(daemon: RunningDaemon, operator: OperatorClient) -> None:
    for session in operator.sessions():
        # The last one may be about to end with its agent.
        with contextlib.suppress(NotFound):
            operator.remove_session(session.name)
    wait_until(lambda: daemon.cgroups() == [], what="every cgroup being gone")
