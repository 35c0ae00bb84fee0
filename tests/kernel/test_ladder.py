"""The ladder on real limits: the warning before the kill, extension, release, freezing, and the end at the deadline."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentcgroup.cgroups import files
from agentcgroup.cgroups.cgroup import Cgroup
from agentcgroup.cgroups.values import MAX
from agentcgroup.client import CallState, Client, Decision, FeedbackKind, Rung, Verdict
from tests.ear import Ear
from tests.running import RunningDaemon, running_daemon, wait_until

pytestmark = pytest.mark.kernel

MIB = 1 << 20
# Takes argv[1] MiB in steps of four, each after a pause of argv[2] s, tells when it has them, and ends when told.
HOLD = """
import sys, time
held = []
for _ in range(int(sys.argv[1]) // 4):
    held.append(b"x" * (4 << 20))
    time.sleep(float(sys.argv[2]))
print("there", flush=True)
sys.stdin.readline()
"""
# Reads files of argv[1] MiB in all, which fills the page cache and holds nothing.
READ = """
import os, sys
left = int(sys.argv[1]) << 20
for directory, _, names in os.walk("/usr"):
    for name in names:
        path = os.path.join(directory, name)
        if os.path.isfile(path) and left > 0:
            with open(path, "rb") as file:
                while data := file.read(1 << 20):
                    left -= len(data)
"""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    limits = '[call]\nthrottle_limit = "2s"\nfreeze_limit = "60s"\n'
    with running_daemon(tmp_path_factory.mktemp("ladder"), limits, unenforced="refuse") as running:
        with running.operator() as operator:
            operator.create_session("climb", memory="600M", agent_memory="64M")
        yield running


@pytest.fixture
def ear(daemon: RunningDaemon) -> Iterator[Ear]:
    with Ear(Client(daemon.session_dir("climb"))) as listening:
        yield listening
    with daemon.operator() as operator:
        operator.kill_session("climb")


def hold(daemon: RunningDaemon, mib: int, *options: str, pause_s: float = 0.0) -> "subprocess.Popen[str]":
    launcher = daemon.launch_command(
        "climb", sys.executable, "-S", "-c", HOLD, str(mib), str(pause_s), options=options
    )
    return subprocess.Popen(
        launcher, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def is_there(process: "subprocess.Popen[str]") -> None:
    assert process.stdout is not None and process.stdout.readline() == "there\n"


def goes_well(process: "subprocess.Popen[str]") -> None:
    process.communicate("\n", timeout=60)
    assert process.returncode == 0


def heard(ear: Ear, kind: FeedbackKind, what: str) -> str:
    """The call that the first message of `kind` is about."""
    return ear.wait(lambda each: each.kind is kind, what=what, deadline_s=120).call_id


def test_a_call_is_warned_before_the_kernel_kills_it_at_its_maximum(daemon: RunningDaemon, ear: Ear) -> None:
    process = hold(daemon, 400, "--memory", "40M", "--memory-max", "96M", pause_s=0.01)
    assert process.wait(120) == -signal.SIGKILL
    call_id = heard(ear, FeedbackKind.ENDED, "the end")
    kinds = [each.kind for each in ear.heard if each.call_id == call_id]
    assert kinds == [FeedbackKind.STARTED, FeedbackKind.WARNING, FeedbackKind.ENDED], (
        "one warning, and before the end"
    )
    (warning,) = [each for each in ear.heard if each.kind is FeedbackKind.WARNING]
    assert warning.ladder is not None and warning.ladder.memory_to_ask_bytes == 192 * MIB
    assert warning.time_to_limit_ms is not None, "the kernel tells how fast it grows"
    assert ear.report(call_id).verdict is Verdict.MEMORY_LIMIT_CALL


def test_calls_are_warned_before_the_kernel_kills_one_because_their_session_is_full(
    daemon: RunningDaemon, ear: Ear
) -> None:
    # 536 MiB for all calls, and none comes near a limit of its own.
    other = hold(daemon, 200, "--memory", "40M")
    is_there(other)
    process = hold(daemon, 400, "--memory", "40M", pause_s=0.01)
    assert process.wait(120) == -signal.SIGKILL
    call_id = heard(ear, FeedbackKind.ENDED, "the end")
    assert ear.report(call_id).verdict is Verdict.MEMORY_LIMIT_SESSION
    # The other one may have been warned, too: for a moment it looked as if it still grew.
    told = [each for each in ear.heard if each.call_id == call_id]
    assert [each.kind for each in told] == [FeedbackKind.STARTED, FeedbackKind.WARNING, FeedbackKind.ENDED]
    warning = told[1]
    assert "of this session" in warning.message and "536 MiB" in warning.message
    assert warning.time_to_limit_ms is not None, "the kernel tells how fast it grows"
    goes_well(other)


def test_a_call_near_its_maximum_is_not_slowed_down_and_ends_well(daemon: RunningDaemon, ear: Ear) -> None:
    process = hold(daemon, 300, "--memory", "40M", "--memory-max", "320M")
    is_there(process)
    warning = ear.wait(lambda each: each.kind is FeedbackKind.WARNING, what="the warning", deadline_s=60)
    with Cgroup.open(daemon.root / "climb" / "calls" / warning.call_id) as cgroup:
        wait_until(lambda: cgroup.read(files.MEMORY_HIGH) == MAX, what="the lifting of memory.high")
    goes_well(process)


def test_filling_the_page_cache_is_no_cause_for_a_warning(daemon: RunningDaemon, ear: Ear) -> None:
    # What is in the cache already is not charged to who reads it.
    Path("/proc/sys/vm/drop_caches").write_text("1\n")
    process = daemon.launch(
        "climb", sys.executable, "-S", "-c", READ, "150", options=("--memory-max", "48M")
    )
    assert process.wait(120) == 0
    call_id = heard(ear, FeedbackKind.ENDED, "the end")
    assert ear.report(call_id).usage.memory_high_events, "it did reach its soft limit"
    kinds = [each.kind for each in ear.heard if each.call_id == call_id]
    assert kinds == [FeedbackKind.STARTED, FeedbackKind.ENDED]


def test_an_extended_call_gets_what_it_needs_within_its_session(daemon: RunningDaemon, ear: Ear) -> None:
    process = hold(daemon, 240, "--memory", "40M", "--on-exceed", "extend", pause_s=0.005)
    is_there(process)
    with daemon.operator() as operator:
        (call,) = operator.calls("climb")
        (session,) = [each for each in operator.sessions() if each.name == "climb"]
    assert call.limits.memory_bytes is not None and 240 * MIB < call.limits.memory_bytes < 536 * MIB
    assert session.memory_reserved_bytes == call.limits.memory_bytes
    goes_well(process)
    assert ear.report(call.id).verdict is Verdict.OK


def test_a_throttled_call_that_is_given_more_ends_well_and_one_that_is_not_is_stopped(
    daemon: RunningDaemon, ear: Ear
) -> None:
    options = ("--memory", "40M", "--memory-max", "300M", "--on-exceed", "throttle", "--throttle-limit")
    process = hold(daemon, 120, *options, "60s")
    told = ear.wait(lambda each: each.kind is FeedbackKind.THROTTLED, what="the throttling", deadline_s=60)
    assert (
        told.ladder is not None
        and told.ladder.rung is Rung.THROTTLED
        and told.ladder.deadline_at is not None
    )
    with Client(daemon.session_dir("climb")) as client:
        assert client.adjust(told.call_id, memory="160M").decision is Decision.GRANTED
    is_there(process)
    goes_well(process)
    stopped = hold(daemon, 400, *options, "1s")
    assert stopped.wait(60) == -signal.SIGKILL
    end = ear.wait(
        lambda each: each.report is not None and each.call_id != told.call_id, what="its end", deadline_s=60
    )
    assert end.report is not None and end.report.verdict is Verdict.THROTTLE_LIMIT


def test_a_call_without_room_is_frozen_and_goes_on_when_another_ends(
    daemon: RunningDaemon, ear: Ear
) -> None:
    other = hold(daemon, 8, "--memory", "460M")
    is_there(other)
    process = hold(daemon, 160, "--memory", "40M", "--on-exceed", "extend", pause_s=0.005)
    frozen = ear.wait(lambda each: each.kind is FeedbackKind.FROZEN, what="the freezing", deadline_s=120)
    with daemon.operator() as operator:
        assert operator.call(frozen.call_id).state is CallState.FROZEN
    goes_well(other)
    is_there(process)
    goes_well(process)
    kinds = [each.kind for each in ear.heard if each.call_id == frozen.call_id]
    clamped, stopped = kinds.index(FeedbackKind.THROTTLED), kinds.index(FeedbackKind.FROZEN)
    assert clamped < stopped and FeedbackKind.ADJUSTED in kinds[stopped:], kinds
    assert ear.report(frozen.call_id).verdict is Verdict.OK


def test_an_agent_runtime_beyond_its_share_hears_of_it_when_its_session_is_full(
    daemon: RunningDaemon,
) -> None:
    Path("/proc/sys/vm/drop_caches").write_text("1\n")
    # Holds 40 MiB, then fills the rest with page cache, which meets the session's limit and harms nobody.
    code = f"{HOLD}\n{READ.replace('argv[1]', 'argv[3]')}\nsys.stdin.readline()"
    with daemon.operator() as operator:
        operator.create_session("outgrown", memory="90M", agent_memory="24M")
        with Ear(Client(daemon.session_dir("outgrown"))) as ear:
            runtime = subprocess.Popen(
                [
                    "sh",
                    "-c",
                    'read _ && exec "$@"',
                    "sh",
                    sys.executable,
                    "-S",
                    "-c",
                    code,
                    "40",
                    "0",
                    "80",
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            operator.place_agent("outgrown", runtime.pid)
            assert runtime.stdin is not None
            print("go", file=runtime.stdin, flush=True)
            is_there(runtime)
            print("fill", file=runtime.stdin, flush=True)
            warning = ear.wait(
                lambda each: each.kind is FeedbackKind.WARNING, what="the warning", deadline_s=120
            )
            assert not warning.call_id and "more than the 24 MiB set aside for it" in warning.message
            assert "agentcg session set outgrown --agent-memory 48M" in warning.advice
            goes_well(runtime)
        operator.remove_session("outgrown")
