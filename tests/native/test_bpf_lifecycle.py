"""The lifecycle programs on this kernel: real processes in real cgroups, seen, counted, lost and left alone."""

import contextlib
import errno
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import pytest

from agentcgroup.bpf import features, libbpf
from agentcgroup.bpf.abi import ARGUMENTS_BYTES, EventKind
from agentcgroup.bpf.libbpf import BpfError
from agentcgroup.bpf.lifecycle import LOSSES, Books, Lifecycle
from agentcgroup.bpf.records import Arrival, Exec, Exit, Fork, Record
from agentcgroup.cgroups.cgroup import Cgroup
from agentcgroup.cgroups.scratch import scratch_cgroup
from agentcgroup.cgroups.spawn import spawn
from agentcgroup.client import Verdict
from tests import bpf_objects
from tests.running import running_daemon, wait_until

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="making cgroups and loading programs needs root"),
    pytest.mark.skipif(
        not features.tracing().is_available, reason=f"no tracing programs here: {features.tracing().detail}"
    ),
]

_R = TypeVar("_R", bound=Record)


@dataclass
class Seen:
    """The programs, attached, and what they told."""

    lifecycle: Lifecycle
    records: list[Record] = field(default_factory=list)

    def drained(self) -> list[Record]:
        while self.lifecycle.drain():
            pass
        return self.records

    def of(self, kind: type[_R]) -> list[_R]:
        return [record for record in self.drained() if isinstance(record, kind)]

    def books(self, cgroup: Cgroup) -> Books:
        books = self.lifecycle.read_account(cgroup.id)
        assert books is not None
        return books


@contextlib.contextmanager
def watching(*accounts: Cgroup, **settings: object) -> Iterator[Seen]:
    records: list[Record] = []
    lifecycle = Lifecycle(records.append, **settings)  # type: ignore[arg-type]
    try:
        for cgroup in accounts:
            lifecycle.open_account(cgroup.id)
        yield Seen(lifecycle, records)
    finally:
        lifecycle.close()


@pytest.fixture
def cgroup() -> Iterator[Cgroup]:
    with scratch_cgroup() as made:
        yield made


def run_in(cgroup: Cgroup, script: str, *arguments: str) -> "subprocess.Popen[bytes]":
    """A shell that places itself into `cgroup` and then becomes what `script` says."""
    command = ["sh", "-c", f"echo $$ > {cgroup.path}/cgroup.procs; {script}", "sh", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    process.wait(30)
    return process


def test_a_process_is_seen_to_arrive_fork_exec_and_end(cgroup: Cgroup) -> None:
    with watching(cgroup) as seen:
        shell = run_in(cgroup, '/bin/echo "two words" x; exit 7')
        (arrival,) = seen.of(Arrival)
        (fork,) = seen.of(Fork)
        (program,) = seen.of(Exec)
        child_end, shell_end = seen.of(Exit)
    assert (arrival.pid, arrival.previous_account_id, arrival.command) == (shell.pid, None, "sh")
    assert (fork.parent_pid, fork.is_born_inside) == (shell.pid, True)
    assert program.pid == fork.pid and program.command == "echo"
    assert program.arguments == (b"/bin/echo", b"two words", b"x")
    assert (child_end.pid, child_end.wait_status, child_end.is_child) == (fork.pid, 0, True)
    assert (shell_end.pid, shell_end.wait_status, shell_end.is_child) == (shell.pid, 7 << 8, False)
    assert {record.account_id for record in seen.records} == {cgroup.id}
    assert {record.cgroup_id for record in seen.records} == {cgroup.id}
    times = [record.at_ns for record in seen.records]
    assert times == sorted(times)


def test_the_books_count_what_happened_and_last_until_they_are_closed(cgroup: Cgroup) -> None:
    with watching(cgroup, kinds=()) as seen:
        run_in(cgroup, "/bin/true; /bin/true; (/bin/true)")
        assert seen.drained() == [], "no kind of record was asked for"
        books = seen.lifecycle.close_account(cgroup.id)
        assert seen.lifecycle.close_account(cgroup.id) is None
    assert books is not None
    assert (books.forks, books.arrivals, books.execs, books.exits) == (3, 1, 3, 4)
    assert books.longest_child_ns > 0
    assert books.oom_victims == 0 and books.first_victim is None


def test_the_longest_child_lived_as_long_as_it_slept(cgroup: Cgroup) -> None:
    with watching(cgroup) as seen:
        run_in(cgroup, "/bin/true; /bin/sleep 0.2; /bin/true")
        assert seen.books(cgroup).longest_child_ns >= 200_000_000
        assert seen.books(cgroup).longest_child_ns == max(
            end.lifetime_ns for end in seen.of(Exit) if end.is_child
        )


def test_threads_are_no_processes(cgroup: Cgroup) -> None:
    code = "import threading\nfor _ in range(20): t = threading.Thread(target=int); t.start(); t.join()"
    with watching(cgroup) as seen:
        shell = run_in(cgroup, f'exec {sys.executable} -c "$1"', code)
        assert (seen.books(cgroup).forks, seen.books(cgroup).exits) == (0, 1)
        assert [end.pid for end in seen.of(Exit)] == [shell.pid]


def test_a_process_whose_first_thread_ends_first_ends_once_with_its_status(cgroup: Cgroup) -> None:
    # The first thread leaves by pthread_exit; the last one ends the process.
    code = (
        "import ctypes,os,threading,time\n"
        "threading.Thread(target=lambda: (time.sleep(0.1), os._exit(5))).start()\n"
        "ctypes.CDLL(None).pthread_exit(None)\n"
    )
    with watching(cgroup) as seen:
        shell = run_in(cgroup, f'exec {sys.executable} -c "$1"', code)
        assert [(end.pid, end.wait_status) for end in seen.of(Exit)] == [(shell.pid, 5 << 8)]
    assert shell.returncode == 5


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_signal_is_the_status(cgroup: Cgroup, number: signal.Signals) -> None:
    with watching(cgroup) as seen:
        run_in(cgroup, f"kill -{int(number)} $$")
        (end,) = seen.of(Exit)
    assert os.WIFSIGNALED(end.wait_status) and os.WTERMSIG(end.wait_status) == number


def test_an_exec_by_a_second_thread_is_still_the_same_process(cgroup: Cgroup) -> None:
    code = (
        "import os,threading\n"
        "threading.Thread(target=lambda: os.execv('/bin/true', ['true', 'again'])).start()\n"
        "threading.Event().wait()\n"
    )
    with watching(cgroup) as seen:
        shell = run_in(cgroup, f'exec {sys.executable} -c "$1"', code)
        assert seen.of(Exec)[-1].arguments == (b"true", b"again")
        assert [(end.pid, end.wait_status) for end in seen.of(Exit)] == [(shell.pid, 0)]


def test_a_long_argument_list_is_cut_and_says_how_long_it_was(cgroup: Cgroup) -> None:
    with watching(cgroup) as seen:
        run_in(cgroup, 'exec /bin/true "$1"', "x" * 100_000)
        (program,) = seen.of(Exec)
    assert sum(len(argument) + 1 for argument in program.arguments) - 1 == ARGUMENTS_BYTES
    assert program.arguments[0] == b"/bin/true"
    assert program.arguments_bytes == len("/bin/true") + 1 + 100_000 + 1


def test_processes_outside_every_account_are_nobodys_business(cgroup: Cgroup) -> None:
    with scratch_cgroup() as other, watching(cgroup) as seen:
        run_in(other, "/bin/true; /bin/true")
        subprocess.run(["/bin/true"], check=True)
        assert seen.drained() == []
        assert seen.books(cgroup).forks == 0


def test_the_books_of_an_outer_account_include_the_inner_ones(cgroup: Cgroup) -> None:
    with cgroup.create_child("inner") as inner, watching(cgroup, inner) as seen:
        run_in(inner, "/bin/true; /bin/true")
        run_in(cgroup, "/bin/true; :")
        assert (seen.books(inner).forks, seen.books(inner).arrivals) == (2, 1)
        assert (seen.books(cgroup).forks, seen.books(cgroup).arrivals) == (3, 2)
        assert {record.account_id for record in seen.drained()} == {inner.id, cgroup.id}


def test_who_comes_from_an_outer_account_does_not_arrive_in_it_again(cgroup: Cgroup) -> None:
    with cgroup.create_child("inner") as inner, watching(cgroup, inner) as seen:
        run_in(cgroup, f"echo $$ > {inner.path}/cgroup.procs; /bin/true")
        assert (seen.books(cgroup).arrivals, seen.books(inner).arrivals) == (1, 1)
        first, second = seen.of(Arrival)
        assert (first.account_id, first.previous_account_id) == (cgroup.id, None)
        assert (second.account_id, second.previous_account_id) == (inner.id, cgroup.id)


def test_a_move_within_an_account_is_no_arrival(cgroup: Cgroup) -> None:
    with cgroup.create_child("self") as leaf, watching(cgroup) as seen:
        run_in(cgroup, f"echo $$ > {leaf.path}/cgroup.procs; /bin/true")
        assert seen.books(cgroup).arrivals == 1
        assert len(seen.of(Arrival)) == 1
        assert seen.of(Exit)[-1].cgroup_id == leaf.id


def test_a_process_born_into_an_account_has_arrived_there(cgroup: Cgroup) -> None:
    with watching(cgroup) as seen:
        with spawn(cgroup, ["/bin/true"], env={}) as born:
            assert born.wait(30) == 0
        assert (seen.books(cgroup).forks, seen.books(cgroup).arrivals) == (0, 1)
        (fork,) = seen.of(Fork)
        assert fork.pid == born.pid and not fork.is_born_inside
        (end,) = seen.of(Exit)
        assert not end.is_child


def test_of_ends_only_those_of_main_processes_are_told_when_asked_for(cgroup: Cgroup) -> None:
    with watching(cgroup, kinds=(EventKind.EXIT,), with_children=False) as seen:
        shell = run_in(cgroup, "/bin/true; /bin/true; exit 3")
        (end,) = seen.drained()
        assert isinstance(end, Exit) and (end.pid, end.wait_status) == (shell.pid, 3 << 8)
        assert seen.books(cgroup).exits == 3


def test_what_does_not_fit_into_the_ring_is_counted_by_kind(cgroup: Cgroup) -> None:
    count = 200
    with watching(cgroup, ring_bytes=os.sysconf("SC_PAGE_SIZE")) as seen:
        run_in(cgroup, f"i=0; while [ $i -lt {count} ]; do /bin/true; i=$((i+1)); done")
        lost = seen.lifecycle.lost()
        arrived = {kind: len(seen.of(kind)) for kind in (Fork, Exec, Exit)}
        books = seen.books(cgroup)
    assert tuple(lost) == LOSSES
    assert lost["fork"] > 0 and lost["exec"] > 0 and lost["exit"] > 0
    assert arrived[Fork] + lost["fork"] == books.forks == count
    assert arrived[Exec] + lost["exec"] == books.execs == count
    assert arrived[Exit] + lost["exit"] == books.exits == count + 1
    assert lost["home"] == lost["arguments"] == lost["depth"] == 0


def test_the_descriptor_is_readable_as_long_as_records_wait(cgroup: Cgroup) -> None:
    with watching(cgroup) as seen:
        assert select.select([seen.lifecycle], [], [], 0)[0] == []
        run_in(cgroup, "/bin/true; /bin/true")
        readable, _, _ = select.select([seen.lifecycle], [], [], 10)
        assert readable == [seen.lifecycle]
        assert seen.lifecycle.drain(at_most=2) == 2 and len(seen.records) == 2
        assert select.select([seen.lifecycle], [], [], 0)[0], "the rest keeps it readable"
        seen.drained()
        assert select.select([seen.lifecycle], [], [], 0)[0] == []


def test_a_record_that_cannot_be_handled_does_not_hold_up_the_next_ones(
    cgroup: Cgroup, caplog: pytest.LogCaptureFixture
) -> None:
    handled = []

    def receive(record: Record) -> None:
        if isinstance(record, Fork):
            raise RuntimeError("of all things, a fork")
        handled.append(record)

    lifecycle = Lifecycle(receive)
    lifecycle.open_account(cgroup.id)
    try:
        run_in(cgroup, "/bin/true; :")
        lifecycle.drain()
    finally:
        lifecycle.close()
    assert [type(record) for record in handled] == [Arrival, Exec, Exit, Exit]
    assert "of all things, a fork" in caplog.text


def test_closed_programs_say_so_and_close_twice(cgroup: Cgroup) -> None:
    with watching(cgroup) as seen:
        seen.lifecycle.close()
        seen.lifecycle.close()
        with pytest.raises(ValueError, match="closed"):
            seen.lifecycle.drain()
        assert seen.lifecycle.attached == ()


def test_a_cgroup_deeper_than_is_walked_is_counted_as_a_loss(cgroup: Cgroup) -> None:
    with contextlib.ExitStack() as stack:
        deepest = cgroup
        for number in range(40):
            deepest = stack.enter_context(deepest.create_child(f"d{number}"))
        with watching(cgroup) as seen:
            run_in(deepest, "/bin/true")
            assert seen.drained() == []
            assert seen.lifecycle.lost()["depth"] > 0


def test_there_are_no_more_accounts_than_there_is_room_for(cgroup: Cgroup) -> None:
    with watching(cgroup, accounts_max=1) as seen, pytest.raises(BpfError, match="E2BIG"):
        seen.lifecycle.open_account(cgroup.id + 1)


def test_an_account_is_opened_once(cgroup: Cgroup) -> None:
    with watching(cgroup) as seen, pytest.raises(BpfError, match="EEXIST"):
        seen.lifecycle.open_account(cgroup.id)


def test_closing_leaves_no_program_map_or_link(cgroup: Cgroup) -> None:
    before = bpf_objects.of_process(os.getpid())
    with watching(cgroup) as seen:
        run_in(cgroup, "/bin/true")
        ours = bpf_objects.of_process(os.getpid()) - before
        kinds = {kind for kind, _ in ours}
        assert kinds == {"prog", "map", "link"} and ours <= bpf_objects.in_kernel()
        seen.lifecycle.close()
        assert bpf_objects.of_process(os.getpid()) == before
    # The kernel frees a program after a grace period.
    wait_until(lambda: not (ours & bpf_objects.in_kernel()), what="every object of ours being gone")


def test_a_killed_daemon_leaves_no_program_map_or_link(tmp_path: Path) -> None:
    with running_daemon(tmp_path) as daemon:
        ours = bpf_objects.of_process(daemon.pid)
        assert {kind for kind, _ in ours} == {"prog", "map", "link"}
        assert daemon.process is not None
        daemon.process.kill()
        daemon.process.wait(30)
        wait_until(lambda: not (ours & bpf_objects.in_kernel()), what="every object being gone")


def test_a_report_carries_processes_forks_and_the_longest_child(tmp_path: Path) -> None:
    with running_daemon(tmp_path, '[bpf]\nenabled = "on"\n') as daemon, daemon.operator() as operator:
        operator.create_session("books", memory="1G")
        tool = daemon.launch("books", "sh", "-c", "/bin/true; /bin/sleep 0.1; exit 3")
        assert tool.wait(30) == 3
        wait_until(lambda: len(list(operator.history())) == 1, what="the call being in the history")
        (entry,) = operator.history()
        usage = entry.report.usage
        assert entry.report.verdict is Verdict.EXIT_CODE and entry.report.exit_code == 3
        assert (usage.processes, usage.forks) == (3, 2)
        assert usage.longest_child_us is not None and usage.longest_child_us >= 100_000
        (session,) = operator.sessions()
        assert session.usage.forks == 2


def test_without_programs_everything_works_and_says_what_is_missing(tmp_path: Path) -> None:
    with running_daemon(tmp_path, '[bpf]\nenabled = "off"\n') as daemon, daemon.operator() as operator:
        assert bpf_objects.of_process(daemon.pid) == set()
        operator.create_session("plain", memory="1G")
        assert daemon.launch("plain", "sh", "-c", "exit 3").wait(30) == 3
        wait_until(lambda: len(list(operator.history())) == 1, what="the call being in the history")
        (entry,) = operator.history()
        assert entry.report.exit_code == 3
        assert entry.report.usage.processes is None and entry.report.usage.memory_throttled_us is None
        rows = {row.name: row for row in operator.host().capabilities}
        assert not rows["bpf_tracing"].available and "switched off" in rows["bpf_tracing"].detail
        assert rows["bpf_tracing"].cost


def test_a_kernel_that_refuses_task_work_has_all_the_rest(
    cgroup: Cgroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[str] = []

    def refuse_once(handle: libbpf.Handle, name: str) -> None:
        loads.append(name)
        if len(loads) == 1:
            raise BpfError("loading: another signature", errno.EINVAL)
        load(handle, name)

    load = libbpf.load
    monkeypatch.setattr(libbpf, "load", refuse_once)
    with contextlib.closing(Lifecycle(lambda record: None)) as lifecycle:
        assert loads == ["lifecycle.bpf.o"] * 2
        assert any("another signature" in unseen for unseen in lifecycle.unseen)
        lifecycle.open_account(cgroup.id)
        subprocess.run(["true"], check=True, preexec_fn=lambda: cgroup.place(os.getpid()))
        books = lifecycle.read_account(cgroup.id)
        assert books is not None and books.execs == 1
