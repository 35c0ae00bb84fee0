"""ExitWatch against real processes: ends, statuses, parents that do not reap, and thousands at once."""

import asyncio
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field

import pytest

from agentcgroup.daemon.host.exits import (
    ExitSource,
    ExitWatch,
    decode_wait_status,
    probe_exit_source,
    zombie_status,
)
from agentcgroup.daemon.host.proc_connector import ConnectorUnavailable, ProcConnector
from agentcgroup.daemon.model import ExitStatus

UNKNOWN = ExitStatus()


def connector_works() -> bool:
    try:
        ProcConnector().close()
    except ConnectorUnavailable:
        return False
    return True


SOURCES = [
    pytest.param(
        ExitSource.PIDFD_INFO,
        marks=pytest.mark.skipif(
            probe_exit_source() is not ExitSource.PIDFD_INFO,
            reason="this kernel keeps no exit status with a pidfd (6.15)",
        ),
    ),
    # Nothing calls `tell`: what happens when every record was lost.
    pytest.param(
        ExitSource.KERNEL_EVENTS,
        marks=pytest.mark.skipif(
            probe_exit_source() is not ExitSource.PIDFD_INFO,
            reason="without records this kernel tells the status of an unreaped process only (6.15)",
        ),
    ),
    pytest.param(
        ExitSource.PROC_CONNECTOR,
        marks=pytest.mark.skipif(
            not connector_works(), reason="the process connector needs root and the initial namespaces"
        ),
    ),
]


@dataclass
class Ends:
    """What a watch reported, in order."""

    told: list[str] = field(default_factory=list)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    status: "asyncio.Future[ExitStatus]" = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )

    def on_exit(self) -> None:
        self.told.append("exit")
        self.ended.set()

    def on_status(self, status: ExitStatus) -> None:
        self.told.append("status")
        self.status.set_result(status)

    async def wait(self) -> ExitStatus:
        return await asyncio.wait_for(self.status, 60)


Start = Callable[[str], subprocess.Popen[bytes]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts `sh -c SCRIPT`, which first waits for a line on its stdin."""
    running: list[subprocess.Popen[bytes]] = []

    def run(script: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(["sh", "-c", f"read line; {script}"], stdin=subprocess.PIPE)
        running.append(process)
        return process

    yield run
    for process in running:
        process.kill()
        process.wait()
        if process.stdin is not None:
            process.stdin.close()


def go(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.write(b"\n")
    process.stdin.flush()


@pytest.fixture(params=SOURCES)
async def watch(request: pytest.FixtureRequest) -> AsyncIterator[ExitWatch]:
    watch = ExitWatch(source=request.param, reap_wait_s=0.2)
    yield watch
    watch.close()


async def reap(process: subprocess.Popen[bytes]) -> int:
    return await asyncio.to_thread(process.wait)


@pytest.mark.parametrize(
    ("script", "status"),
    [
        ("exit 0", ExitStatus(exit_code=0)),
        ("exit 7", ExitStatus(exit_code=7)),
        ("exit 255", ExitStatus(exit_code=255)),
        ("kill -KILL $$", ExitStatus(signal=signal.SIGKILL)),
        ("kill -TERM $$", ExitStatus(signal=signal.SIGTERM)),
        ("exec sh -c 'exit 9'", ExitStatus(exit_code=9)),
    ],
)
async def test_a_reaped_process_tells_how_it_ended(
    watch: ExitWatch, start: Start, script: str, status: ExitStatus
) -> None:
    process, ends = start(script), Ends()
    pidfd = os.pidfd_open(process.pid)
    watch.watch(pidfd, ends.on_exit, ends.on_status)
    reaper = asyncio.create_task(reap(process))
    go(process)
    assert await ends.wait() == status
    assert ends.told == ["exit", "status"]
    await reaper
    assert len(watch) == 0
    os.close(pidfd)


async def test_a_record_of_the_kernel_is_the_status_though_nobody_reaps(start: Start) -> None:
    process, ends = start("exit 7"), Ends()
    told: list[int] = []

    def drain() -> None:
        # Before the pidfd is looked at, as the record comes before its end.
        told.append(process.pid)
        exits.tell(process.pid, ExitStatus(exit_code=7))

    exits = ExitWatch(reap_wait_s=60)
    exits.use_records(drain)
    pidfd = os.pidfd_open(process.pid)
    exits.watch(pidfd, ends.on_exit, ends.on_status)
    go(process)
    assert await ends.wait() == ExitStatus(exit_code=7)
    assert ends.told == ["exit", "status"] and told
    assert len(exits) == 0
    exits.close()
    os.close(pidfd)


async def test_what_is_told_of_an_unwatched_process_is_nobodys(start: Start) -> None:
    watch = ExitWatch(source=ExitSource.KERNEL_EVENTS)
    watch.tell(start("exit 0").pid, ExitStatus(exit_code=0))
    assert len(watch) == 0
    watch.close()


async def test_a_zombie_that_nobody_reaps_tells_its_status_after_the_bounded_wait(
    watch: ExitWatch, start: Start
) -> None:
    process, ends = start("exit 7"), Ends()
    pidfd = os.pidfd_open(process.pid)
    watch.watch(pidfd, ends.on_exit, ends.on_status)
    go(process)
    assert await ends.wait() == ExitStatus(exit_code=7)
    assert ends.told == ["exit", "status"]
    assert zombie_status(pidfd) == ExitStatus(exit_code=7)
    os.close(pidfd)


async def test_an_unreaped_zombie_does_not_keep_the_loop_busy(start: Start) -> None:
    watch = ExitWatch(reap_wait_s=60)
    process, ends = start("exit 7"), Ends()
    pidfd = os.pidfd_open(process.pid)
    watch.watch(pidfd, ends.on_exit, ends.on_status)
    go(process)
    await asyncio.wait_for(ends.ended.wait(), 60)
    calls = 0
    on_events = watch._on_events

    def count() -> None:
        nonlocal calls
        calls += 1
        on_events()

    asyncio.get_running_loop().add_reader(watch._epoll.fileno(), count)
    await asyncio.sleep(0.05)
    assert calls <= 1
    process.wait()
    assert await ends.wait() in (ExitStatus(exit_code=7), UNKNOWN)
    watch.close()
    os.close(pidfd)


async def test_the_last_thread_decides_not_the_first_one_to_leave(watch: ExitWatch) -> None:
    """The first thread leaves by pthread_exit while another goes on and ends the process with 7."""
    script = (
        "import ctypes, os, sys, threading\n"
        "def late():\n    sys.stdin.readline(); os._exit(7)\n"
        "threading.Thread(target=late).start()\n"
        "print('ready', flush=True)\n"
        "ctypes.CDLL(None).pthread_exit(None)\n"
    )
    process = start_python(script)
    ends = Ends()
    pidfd = os.pidfd_open(process.pid)
    watch.watch(pidfd, ends.on_exit, ends.on_status)
    assert process.stdout is not None and process.stdin is not None
    await asyncio.to_thread(process.stdout.readline)
    await asyncio.wait_for(asyncio.to_thread(wait_for_zombie, process.pid), 60)
    assert ends.told == []
    reaper = asyncio.create_task(reap(process))
    go(process)
    # The connector hears only of the first thread's end and knows that this was not the process's: unknown,
    # not wrong.
    right = ExitStatus(exit_code=7)
    assert await ends.wait() in ((right,) if watch.source is ExitSource.PIDFD_INFO else (right, UNKNOWN))
    assert await reaper == 7
    process.stdin.close()
    process.stdout.close()
    os.close(pidfd)


def start_python(script: str, *arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-S", "-c", script, *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def wait_for_zombie(pid: int) -> None:
    """The first thread's own state, which no event tells: looked at every millisecond, at most 50 s."""
    for _ in range(50_000):
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            if file.read().rpartition(") ")[2][0] == "Z":
                return
        time.sleep(0.001)
    raise TimeoutError(f"the first thread of {pid} did not end")


async def test_a_process_that_is_gone_before_the_watch_is_reported_all_the_same(
    watch: ExitWatch, start: Start
) -> None:
    process, ends = start("exit 7"), Ends()
    pidfd = os.pidfd_open(process.pid)
    go(process)
    process.wait()
    watch.watch(pidfd, ends.on_exit, ends.on_status)
    assert ends.told == [], "no callback comes from within watch()"
    status = await ends.wait()
    assert status == (ExitStatus(exit_code=7) if watch.source is not ExitSource.PROC_CONNECTOR else UNKNOWN)
    assert ends.told == ["exit", "status"]
    os.close(pidfd)


async def test_a_forgotten_watch_says_nothing_and_forgetting_twice_is_no_error(
    watch: ExitWatch, start: Start
) -> None:
    process, other, silent, ends = start("exit 0"), start("exit 3"), Ends(), Ends()
    pidfd, other_pidfd = os.pidfd_open(process.pid), os.pidfd_open(other.pid)
    watch.watch(pidfd, silent.on_exit, silent.on_status)
    watch.watch(other_pidfd, ends.on_exit, ends.on_status)
    watch.forget(pidfd)
    watch.forget(pidfd)
    go(process)
    process.wait()
    reaper = asyncio.create_task(reap(other))
    go(other)
    assert await ends.wait() == ExitStatus(exit_code=3)
    assert silent.told == []
    await reaper
    os.close(pidfd)
    os.close(other_pidfd)


async def test_forgetting_in_on_exit_suppresses_the_status(watch: ExitWatch, start: Start) -> None:
    process, ended = start("exit 0"), asyncio.Event()
    pidfd, statuses = os.pidfd_open(process.pid), list[ExitStatus]()

    def on_exit() -> None:
        watch.forget(pidfd)
        ended.set()

    watch.watch(pidfd, on_exit, statuses.append)
    go(process)
    process.wait()
    await asyncio.wait_for(ended.wait(), 60)
    await asyncio.sleep(0.01)
    assert statuses == [] and len(watch) == 0
    os.close(pidfd)


async def test_a_second_watch_on_one_descriptor_and_a_file_that_is_no_pidfd_are_refused(
    watch: ExitWatch, start: Start
) -> None:
    process = start("exit 0")
    pidfd = os.pidfd_open(process.pid)
    watch.watch(pidfd, lambda: None, lambda status: None)
    with pytest.raises(ValueError, match="watched already"):
        watch.watch(pidfd, lambda: None, lambda status: None)
    null = os.open("/dev/null", os.O_RDONLY)
    with pytest.raises((ValueError, PermissionError)):
        watch.watch(null, lambda: None, lambda status: None)
    os.close(null)
    assert len(watch) == 1
    watch.forget(pidfd)
    os.close(pidfd)


# A small process forks faster than this one; its children wait for its stdin to close, and it reaps them.
MANY = """
import os, sys
count = int(sys.argv[1])
pids = []
for index in range(count):
    pid = os.fork()
    if pid == 0:
        os.read(0, 1)
        os._exit(index % 256)
    pids.append(pid)
print(*pids, flush=True)
for pid in pids:
    os.waitpid(pid, 0)
"""


async def test_thousands_of_watches_end_with_the_right_status_each(watch: ExitWatch) -> None:
    count = 2000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count + 200:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, count + 200), hard))
    parent = start_python(MANY, str(count))
    assert parent.stdin is not None and parent.stdout is not None
    pidfds, ends = [], []
    for pid in map(int, (await asyncio.to_thread(parent.stdout.readline)).split()):
        pidfds.append(os.pidfd_open(pid))
        ends.append(end := Ends())
        watch.watch(pidfds[-1], end.on_exit, end.on_status)
    assert len(watch) == count
    parent.stdin.close()  # they all end now
    await asyncio.gather(*(asyncio.wait_for(end.status, 90) for end in ends))
    assert [end.status.result().exit_code for end in ends] == [index % 256 for index in range(count)]
    assert all(end.told == ["exit", "status"] for end in ends)
    assert len(watch) == 0
    assert await reap(parent) == 0
    parent.stdout.close()
    for pidfd in pidfds:
        os.close(pidfd)


async def test_a_pidfd_closed_while_watched_harms_nobody_else(watch: ExitWatch, start: Start) -> None:
    process, other, ends = start("exit 0"), start("exit 4"), Ends()
    pidfd, other_pidfd = os.pidfd_open(process.pid), os.pidfd_open(other.pid)
    watch.watch(pidfd, lambda: None, lambda status: None)
    watch.watch(other_pidfd, ends.on_exit, ends.on_status)
    os.close(pidfd)
    watch.forget(pidfd)
    reaper = asyncio.create_task(reap(other))
    go(other)
    assert await ends.wait() == ExitStatus(exit_code=4)
    await reaper
    os.close(other_pidfd)


async def test_a_callback_that_raises_does_not_cost_others_their_status(
    watch: ExitWatch, start: Start
) -> None:
    process, other, ends = start("exit 0"), start("exit 4"), Ends()
    failures: list[str] = []
    failed = asyncio.Event()

    def on_failure(_loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        failures.append(str(context["exception"]))
        failed.set()

    asyncio.get_running_loop().set_exception_handler(on_failure)
    pidfds = [os.pidfd_open(process.pid), os.pidfd_open(other.pid)]

    def fail(status: ExitStatus) -> None:
        raise RuntimeError("on_status failed")

    watch.watch(pidfds[0], lambda: None, fail)
    watch.watch(pidfds[1], ends.on_exit, ends.on_status)
    reapers = [asyncio.create_task(reap(each)) for each in (process, other)]
    go(process)
    go(other)
    assert await ends.wait() == ExitStatus(exit_code=4)
    await asyncio.gather(*reapers)
    await asyncio.wait_for(failed.wait(), 60)
    assert len(watch) == 0
    assert failures == ["on_status failed"]
    for pidfd in pidfds:
        os.close(pidfd)


async def test_without_any_source_the_status_is_read_from_the_zombie_or_unknown(start: Start) -> None:
    watch = ExitWatch(source=ExitSource.ZOMBIE, reap_wait_s=0.2)
    process, ends = start("exit 5"), Ends()
    pidfd = os.pidfd_open(process.pid)
    watch.watch(pidfd, ends.on_exit, ends.on_status)
    go(process)
    assert await ends.wait() == ExitStatus(exit_code=5)
    process.wait()
    late = Ends()
    watch.watch(pidfd, late.on_exit, late.on_status)
    assert await late.wait() == UNKNOWN
    watch.close()
    os.close(pidfd)


def test_wait_statuses_are_read_as_wait2_documents_them() -> None:
    assert decode_wait_status(0) == ExitStatus(exit_code=0)
    assert decode_wait_status(7 << 8) == ExitStatus(exit_code=7)
    assert decode_wait_status(9) == ExitStatus(signal=9)
    assert decode_wait_status(0x80 | 11) == ExitStatus(signal=11), "with a core dump"
