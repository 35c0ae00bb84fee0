"""What the controllers do to processes, and what their counters and events say about it."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from agentcgroup.cgroups import files
from agentcgroup.cgroups.cgroup import Cgroup
from agentcgroup.cgroups.errors import SpawnFailed
from agentcgroup.cgroups.scratch import scratch_cgroup
from agentcgroup.cgroups.spawn import spawn
from agentcgroup.cgroups.testing import NEW_CGROUP
from agentcgroup.cgroups.values import (
    MAX,
    Controller,
    CpuMax,
    DeviceNumber,
    IoMax,
    PressureKind,
)
from agentcgroup.cgroups.watch import EventWatch, PsiTrigger, WatchEvent, WatchEventKind
from tests.running import wait_until

pytestmark = pytest.mark.kernel

MIB = 1 << 20
ENV = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
# Touches so many MiB and says so, then waits for its stdin to end.
HOLD = """
import sys
held = bytearray(int(sys.argv[1]) << 20)
held[::4096] = b"x" * len(held[::4096])
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def parent() -> Iterator[Cgroup]:
    with scratch_cgroup(*Controller) as cgroup:
        yield cgroup


@pytest.fixture
def cgroup(parent: Cgroup, request: pytest.FixtureRequest) -> Iterator[Cgroup]:
    name = f"test-{abs(hash(request.node.name)) % 10**8}"
    with parent.create_child(name) as cgroup:
        yield cgroup
        with parent.open_child(name) as leftover:
            leftover.remove_tree(deadline_s=30)


@pytest.fixture
def processes() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def start(cgroup: Cgroup, processes: ExitStack, *argv: str) -> "subprocess.Popen[str]":
    """A process that is in the cgroup before it executes ``argv``, with pipes.

    Killed at the end of the test.
    """
    entered = ["sh", "-c", 'read _ && exec "$@"', "sh", *argv]
    process = subprocess.Popen(entered, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def end() -> None:
        process.kill()
        process.communicate()

    processes.callback(end)
    cgroup.place(process.pid)
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return process


def hold(cgroup: Cgroup, processes: ExitStack, mib: int) -> "subprocess.Popen[str]":
    return start(cgroup, processes, sys.executable, "-S", "-c", HOLD, str(mib))


def line_of(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def test_every_file_of_these_controllers_is_described(cgroup: Cgroup, parent: Cgroup) -> None:
    kinds = {"cgroup", "irq", *Controller}
    with Cgroup.open(os.path.dirname(parent.path)) as root:
        for one in (root, parent, cgroup):
            names = {name for name in os.listdir(one.path) if name.split(".")[0] in kinds and "." in name}
            # What only debugging kernels have is called so.
            undescribed = {name for name in names - set(files.BY_NAME) if ".__DEBUG__" not in name}
            undescribed = {name for name in undescribed if not os.path.isdir(f"{one.path}/{name}")}
            assert undescribed == set()


def test_every_file_that_is_there_can_be_read(cgroup: Cgroup, parent: Cgroup) -> None:
    with Cgroup.open(os.path.dirname(parent.path)) as root:
        for one in (root, parent, cgroup):
            present = set(os.listdir(one.path))
            for file in files.ALL:
                if file.readable:
                    assert (one.read(file) is not None) == (file.name in present), f"{one.path}/{file.name}"


def test_the_fake_tree_has_the_files_and_the_defaults_of_the_kernel(cgroup: Cgroup) -> None:
    # What depends on the release or the configuration of a kernel.
    optional = {
        "cgroup.stat.local", "cpu.uclamp.max", "cpu.uclamp.min", "io.bfq.weight", "io.latency", "io.prio.class",
        "io.weight", "irq.pressure", "memory.numa_stat", "memory.zswap.current", "memory.zswap.max",
        "memory.zswap.writeback", "cpuset.cpus.exclusive", "cpuset.cpus.exclusive.effective",
    }  # fmt: skip
    described = {name for name in os.listdir(cgroup.path) if name in files.BY_NAME}
    assert set(NEW_CGROUP) - optional <= described <= set(NEW_CGROUP)
    same = [file for file in files.ALL if file.writable and file.readable and file.name in described]
    for file in same:
        assert cgroup.read(file) == file.parse(NEW_CGROUP[file.name]), file.name


def test_over_memory_max_the_whole_group_is_killed_and_counted(cgroup: Cgroup, processes: ExitStack) -> None:
    cgroup.write(files.MEMORY_MAX, 64 * MIB)
    cgroup.write(files.MEMORY_SWAP_MAX, 0)
    cgroup.write(files.MEMORY_OOM_GROUP, True)
    with EventWatch() as watch:
        watch_id = watch.add(cgroup, files.MEMORY_EVENTS)
        bystander = start(cgroup, processes, "sleep", "1000")
        culprit = hold(cgroup, processes, 200)
        assert culprit.wait(60) == -signal.SIGKILL
        assert bystander.wait(60) == -signal.SIGKILL
        told: list[WatchEvent] = []

        def is_told() -> bool:
            told.extend(watch.read())
            return bool(told)

        wait_until(is_told, what="an event for memory.events")
    assert {(event.kind, event.watch_id) for event in told} == {(WatchEventKind.CHANGED, watch_id)}
    events = cgroup.read(files.MEMORY_EVENTS)
    assert events is not None
    assert events.oom is not None and events.oom >= 1
    # Two processes; the first victim may be counted again with its group.
    assert events.oom_kill in (2, 3)
    assert events.oom_group_kill == 1
    peak = cgroup.read(files.MEMORY_PEAK)
    assert peak is not None and 60 * MIB < peak <= 64 * MIB


def test_without_group_kill_only_the_largest_process_dies(cgroup: Cgroup, processes: ExitStack) -> None:
    cgroup.write(files.MEMORY_MAX, 64 * MIB)
    cgroup.write(files.MEMORY_SWAP_MAX, 0)
    bystander = start(cgroup, processes, "sleep", "1000")
    assert hold(cgroup, processes, 200).wait(60) == -signal.SIGKILL
    assert bystander.poll() is None
    events = cgroup.read(files.MEMORY_EVENTS_LOCAL)
    assert events is not None
    assert (events.oom_kill, events.oom_group_kill) == (1, 0)


def test_over_memory_high_throttling_is_counted_and_pressure_fires(
    cgroup: Cgroup, processes: ExitStack
) -> None:
    cgroup.write(files.MEMORY_HIGH, 24 * MIB)
    cgroup.write(files.MEMORY_SWAP_MAX, 0)
    with PsiTrigger(cgroup, files.MEMORY_PRESSURE, PressureKind.SOME, 20_000, 500_000) as trigger:
        hold(cgroup, processes, 400)
        assert trigger.wait(60)
    events = cgroup.read(files.MEMORY_EVENTS)
    pressure = cgroup.read(files.MEMORY_PRESSURE)
    assert events is not None and events.high is not None and events.high > 0
    assert events.oom_kill == 0
    assert pressure is not None and pressure.some is not None and pressure.some.total_us >= 20_000


def test_the_peak_outlives_the_spike(cgroup: Cgroup, processes: ExitStack) -> None:
    process = hold(cgroup, processes, 50)
    assert line_of(process) == "held\n"
    process.communicate("")
    assert process.returncode == 0
    current, peak = cgroup.read(files.MEMORY_CURRENT), cgroup.read(files.MEMORY_PEAK)
    assert current is not None and peak is not None
    assert current < 50 * MIB <= peak


def test_page_cache_is_reclaimed_and_what_is_left_over_is_said(cgroup: Cgroup, processes: ExitStack) -> None:
    # Not tmp_path, which may be on a tmpfs: its pages are no cache.
    target = Path(processes.enter_context(tempfile.TemporaryDirectory(dir="/var/tmp"))) / "cached"
    script = f"dd if=/dev/zero of={target} bs=1M count=48 conv=fsync 2>/dev/null; echo written; read _"
    process = start(cgroup, processes, "sh", "-c", script)
    assert line_of(process) == "written\n"
    some = cgroup.reclaim(8 * MIB)
    assert some.is_complete
    assert some.freed_bytes is not None and some.freed_bytes >= 4 * MIB
    too_much = cgroup.reclaim(4096 * MIB)
    assert not too_much.is_complete
    assert too_much.freed_bytes is not None and too_much.freed_bytes >= 16 * MIB


def test_a_limit_below_the_usage_is_set_without_waiting_for_reclaim(
    cgroup: Cgroup, processes: ExitStack
) -> None:
    process = hold(cgroup, processes, 60)
    assert line_of(process) == "held\n"
    cgroup.write(files.MEMORY_SWAP_MAX, 0)
    cgroup.write(files.MEMORY_HIGH, 16 * MIB, nonblocking=True)
    assert cgroup.read(files.MEMORY_HIGH) == 16 * MIB
    assert process.poll() is None


def test_over_pids_max_forks_fail_and_are_counted(cgroup: Cgroup, processes: ExitStack) -> None:
    cgroup.write(files.PIDS_MAX, 3)
    code = (
        "import os, sys\n"
        "try:\n"
        "    for _ in range(5):\n"
        "        if os.fork() == 0: sys.stdin.read(); os._exit(0)\n"
        "except BlockingIOError: print('refused', flush=True); sys.stdin.read()\n"
    )
    with EventWatch() as watch:
        watch.add(cgroup, files.PIDS_EVENTS)
        assert line_of(start(cgroup, processes, sys.executable, "-S", "-c", code)) == "refused\n"
        wait_until(lambda: watch.read() != [], what="an event for pids.events")
    events = cgroup.read(files.PIDS_EVENTS)
    assert events is not None and events.max is not None and events.max >= 1
    assert cgroup.read(files.PIDS_CURRENT) == 3
    assert cgroup.read(files.PIDS_PEAK) == 3
    with pytest.raises(SpawnFailed, match=r"pids\.max") as caught:
        spawn(cgroup, ["true"], env=ENV)
    assert caught.value.step == "clone"


def test_over_cpu_max_throttling_is_counted(cgroup: Cgroup, processes: ExitStack) -> None:
    cgroup.write(files.CPU_MAX, CpuMax(10_000, 100_000))
    start(cgroup, processes, "sh", "-c", "while :; do :; done")

    def is_throttled() -> bool:
        stat = cgroup.read(files.CPU_STAT)
        assert stat is not None and stat.nr_throttled is not None and stat.throttled_usec is not None
        return stat.nr_throttled >= 3 and stat.throttled_usec > 0

    def is_within_quota() -> bool:
        stat = cgroup.read(files.CPU_STAT)
        assert stat is not None and stat.nr_periods is not None and stat.usage_usec is not None
        # A quota of a tenth; a slice that began before the end of a period may be finished after it.
        return stat.usage_usec <= (stat.nr_periods + 2) * 10_000 * 3

    wait_until(is_throttled, deadline_s=60, what="throttling")
    # At once, but for a machine that paused: what it took in the pause is made up for in the periods after it.
    wait_until(is_within_quota, deadline_s=60, what="keeping to the quota")


def test_weight_idle_and_affinity_are_taken(cgroup: Cgroup, processes: ExitStack) -> None:
    cgroup.write(files.CPU_WEIGHT, 250)
    assert cgroup.read(files.CPU_WEIGHT) == 250
    cgroup.write(files.CPU_IDLE, True)
    weight = cgroup.read(files.CPU_WEIGHT)
    assert weight is not None and weight <= 1
    cgroup.write(files.CPUSET_CPUS, frozenset({0}))
    assert cgroup.read(files.CPUSET_CPUS_EFFECTIVE) == frozenset({0})
    process = start(cgroup, processes, "sleep", "1000")
    assert os.sched_getaffinity(process.pid) == {0}


def test_limits_of_a_disk_are_taken_and_removed(cgroup: Cgroup) -> None:
    # The whole disk under /, which is what the kernel limits: a partition has the disk as its parent.
    number = os.stat("/").st_dev
    device = Path(os.path.realpath(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}"))
    disk = device.parent if (device / "partition").exists() else device
    major, minor = (disk / "dev").read_text().split(":")
    where = DeviceNumber(int(major), int(minor))
    cgroup.write(files.IO_MAX, (IoMax(where, wbps=8 * MIB, riops=1000),))
    assert cgroup.read(files.IO_MAX) == (IoMax(where, MAX, 8 * MIB, 1000, MAX),)
    cgroup.write(files.IO_MAX, (IoMax(where, wbps=MAX, riops=MAX),))
    assert cgroup.read(files.IO_MAX) == ()
