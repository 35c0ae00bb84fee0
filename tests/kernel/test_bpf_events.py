"""What BPF programs tell of memory, on a kernel that takes them all: who was killed and for whom, and time held back."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from agentcgroup.bpf.lifecycle import Lifecycle
from agentcgroup.bpf.records import OomVictim, Record, Throttle
from agentcgroup.cgroups import files
from agentcgroup.cgroups.cgroup import Cgroup
from agentcgroup.cgroups.scratch import scratch_cgroup
from agentcgroup.client import Report, Verdict
from tests.running import RunningDaemon, running_daemon, wait_until

pytestmark = pytest.mark.kernel

MIB = 1 << 20
GROW = "b=[]\nwhile True: b.append(b'x'*(1<<20))"
# Touches so many MiB, a page at a time.
TOUCH = "import sys; b=bytearray(int(sys.argv[1])<<20)\nfor i in range(0,len(b),4096): b[i]=1"


@pytest.fixture
def memory_cgroup() -> Iterator[Cgroup]:
    with scratch_cgroup("memory", deadline_s=60) as root, root.create_child("limited") as limited:
        limited.write(files.MEMORY_SWAP_MAX, 0)
        yield limited


def run_in(cgroup: Cgroup, code: str, *arguments: str) -> "subprocess.Popen[bytes]":
    script = f'echo $$ > {cgroup.path}/cgroup.procs; exec {sys.executable} -c "$@"'
    process = subprocess.Popen(["sh", "-c", script, "sh", code, *arguments])
    process.wait(120)
    return process


@pytest.fixture
def seen() -> Iterator[tuple[Lifecycle, list[Record]]]:
    records: list[Record] = []
    lifecycle = Lifecycle(records.append)
    yield lifecycle, records
    lifecycle.close()


def drained(lifecycle: Lifecycle) -> None:
    while lifecycle.drain():
        pass


def test_every_program_is_attached_on_this_kernel(seen: tuple[Lifecycle, list[Record]]) -> None:
    assert seen[0].unseen == ()


def test_an_oom_kill_tells_victim_trigger_size_and_whose_limit_it_was(
    memory_cgroup: Cgroup, seen: tuple[Lifecycle, list[Record]]
) -> None:
    lifecycle, records = seen
    memory_cgroup.write(files.MEMORY_MAX, 40 * MIB)
    lifecycle.open_account(memory_cgroup.id)
    process = run_in(memory_cgroup, GROW)
    assert process.returncode == -signal.SIGKILL
    drained(lifecycle)
    (victim,) = [record for record in records if isinstance(record, OomVictim)]
    assert victim.pid == victim.trigger_pid == process.pid
    assert victim.command == victim.trigger_command
    assert victim.limit_cgroup_id == memory_cgroup.id == victim.account_id
    assert victim.anonymous_bytes is not None and 20 * MIB < victim.anonymous_bytes <= 40 * MIB
    books = lifecycle.close_account(memory_cgroup.id)
    assert books is not None and books.oom_victims == 1 and books.first_victim is not None
    assert books.first_victim.pid == process.pid
    assert books.first_victim.limit_cgroup_id == memory_cgroup.id


def test_an_oom_of_the_level_above_names_that_level(
    memory_cgroup: Cgroup, seen: tuple[Lifecycle, list[Record]]
) -> None:
    lifecycle, _ = seen
    above_id = os.stat(os.path.dirname(memory_cgroup.path)).st_ino
    with Cgroup.open(os.path.dirname(memory_cgroup.path)) as above:
        above.write(files.MEMORY_MAX, 40 * MIB)
        above.write(files.MEMORY_SWAP_MAX, 0)
    lifecycle.open_account(memory_cgroup.id)
    run_in(memory_cgroup, GROW)
    books = lifecycle.close_account(memory_cgroup.id)
    assert books is not None and books.first_victim is not None
    assert books.first_victim.limit_cgroup_id == above_id


def test_time_in_memory_high_throttling_is_added_up(
    memory_cgroup: Cgroup, seen: tuple[Lifecycle, list[Record]]
) -> None:
    lifecycle, records = seen
    lifecycle.open_account(memory_cgroup.id)
    run_in(memory_cgroup, TOUCH, "20")
    calm = lifecycle.read_account(memory_cgroup.id)
    assert calm is not None and (calm.throttles, calm.throttled_ns) == (0, 0)
    memory_cgroup.write(files.MEMORY_HIGH, 16 * MIB)
    run_in(memory_cgroup, TOUCH, "14")
    drained(lifecycle)
    books = lifecycle.close_account(memory_cgroup.id)
    throttles = [record.duration_ns for record in records if isinstance(record, Throttle)]
    assert books is not None and books.throttles == len(throttles) > 0
    assert books.throttled_ns == sum(throttles) > 0


# ---- by the daemon


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    directory = tmp_path_factory.mktemp("daemon")
    with running_daemon(directory, '[bpf]\nenabled = "on"\n', unenforced="refuse") as running:
        with running.operator() as operator:
            operator.create_session("bpf", memory="800M", agent_memory="100M")
        yield running


def report_of(daemon: RunningDaemon, code: str, *arguments: str, options: tuple[str, ...]) -> Report:
    """Runs Python code as a call and returns its report."""
    with daemon.operator() as operator:
        before = len(list(operator.history()))
        tool = daemon.launch("bpf", sys.executable, "-c", code, *arguments, options=options)
        tool.communicate(timeout=120)
        wait_until(lambda: len(list(operator.history())) > before, what="the call being in the history")
        return next(iter(operator.history())).report


def test_the_verdict_on_an_oom_kill_names_the_victim_and_the_trigger(daemon: RunningDaemon) -> None:
    report = report_of(
        daemon, f"import os; print(os.getpid()); exec({GROW!r})", options=("--memory-max", "80M")
    )
    assert report.verdict is Verdict.MEMORY_LIMIT_CALL
    assert "The victim was python" in report.message and "which asked for more" in report.message
    assert "MiB of its own" in report.message


def test_of_a_tree_that_is_killed_as_one_the_others_are_counted(daemon: RunningDaemon) -> None:
    code = f"import subprocess; subprocess.Popen(['sleep','1000']); exec({GROW!r})"
    report = report_of(daemon, code, options=("--memory-max", "80M"))
    assert report.verdict is Verdict.MEMORY_LIMIT_CALL
    assert "1 other went with it" in report.message
    assert (report.usage.processes, report.usage.forks) == (2, 1)


def test_a_report_carries_the_time_that_memory_high_took(daemon: RunningDaemon) -> None:
    options = (
        "--memory",
        "30M",
        "--memory-max",
        "200M",
        "--on-exceed",
        "throttle",
        "--throttle-limit",
        "5s",
    )
    report = report_of(daemon, TOUCH, "48", options=options)
    # Kernels hold back for different times, some for longer than the limit.
    assert report.verdict in (Verdict.OK, Verdict.THROTTLE_LIMIT)
    assert report.usage.memory_high_events and report.usage.memory_throttled_us
    with daemon.operator() as operator:
        usage = operator.session("bpf").usage
    assert usage.memory_throttled_us is not None
    assert usage.memory_throttled_us >= report.usage.memory_throttled_us


def test_a_calm_call_was_not_held_back(daemon: RunningDaemon) -> None:
    report = report_of(daemon, "pass", options=())
    assert report.verdict is Verdict.OK
    assert report.usage.memory_throttled_us == 0
