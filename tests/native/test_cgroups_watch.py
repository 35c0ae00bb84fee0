"""Watches on cgroups of the running kernel."""

import asyncio
import contextlib
import errno
import os
import select
import subprocess
from collections.abc import Iterator

import pytest

from agentcgroup.cgroups import files
from agentcgroup.cgroups.cgroup import Cgroup
from agentcgroup.cgroups.errors import BadFormat, CgroupError, CgroupGone, InterfaceMissing, NotDelegated
from agentcgroup.cgroups.scratch import scratch_cgroup, why_unavailable
from agentcgroup.cgroups.values import PressureKind
from agentcgroup.cgroups.watch import EventWatch, PsiTrigger, WatchEvent, WatchEventKind

REASON = why_unavailable()
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))

CHANGED, GONE = WatchEventKind.CHANGED, WatchEventKind.GONE


@pytest.fixture
def cgroup() -> Iterator[Cgroup]:
    with scratch_cgroup() as cgroup:
        yield cgroup


@pytest.fixture
def watch() -> Iterator[EventWatch]:
    with EventWatch() as watch:
        yield watch


def next_events(watch: EventWatch, timeout_s: float = 30.0) -> list[WatchEvent]:
    poll = select.poll()
    poll.register(watch.fileno(), select.POLLIN)
    assert poll.poll(timeout_s * 1000), "no event came"
    return watch.read()


@contextlib.contextmanager
def shell_in(cgroup: Cgroup, script: str) -> Iterator[subprocess.Popen[bytes]]:
    """A shell that runs ``script`` once it has been placed."""
    with subprocess.Popen(["sh", "-c", f"read _; {script}"], stdin=subprocess.PIPE) as process:
        cgroup.place(process.pid)
        assert process.stdin is not None
        process.stdin.write(b"\n")
        process.stdin.flush()
        try:
            yield process
        finally:
            process.kill()


def test_a_watch_tells_that_a_cgroup_filled_and_emptied(cgroup: Cgroup, watch: EventWatch) -> None:
    watch_id = watch.add(cgroup, files.CGROUP_EVENTS)
    assert watch.read() == []
    with shell_in(cgroup, "read _") as process:
        assert next_events(watch) == [WatchEvent(CHANGED, watch_id, cgroup.id, files.CGROUP_EVENTS)]
        process.kill()
        process.wait()
        assert next_events(watch) == [WatchEvent(CHANGED, watch_id, cgroup.id, files.CGROUP_EVENTS)]
    assert not cgroup.is_populated()


def test_a_watch_tells_that_its_cgroup_was_removed(cgroup: Cgroup, watch: EventWatch) -> None:
    child = cgroup.create_child("one")
    watch_id = watch.add(child, files.CGROUP_EVENTS)
    child.remove()
    assert next_events(watch) == [WatchEvent(GONE, watch_id, child.id, files.CGROUP_EVENTS)]
    assert len(watch) == 0


def test_of_two_cgroups_of_one_name_only_the_removed_one_is_gone(cgroup: Cgroup, watch: EventWatch) -> None:
    old = cgroup.create_child("one")
    old_id = watch.add(old, files.CGROUP_EVENTS)
    old.remove()
    new = cgroup.create_child("one")
    new_id = watch.add(new, files.CGROUP_EVENTS)
    assert [(event.kind, event.watch_id) for event in next_events(watch)] == [(GONE, old_id)]
    assert new_id != old_id
    new.remove()
    assert [(event.kind, event.watch_id) for event in next_events(watch)] == [(GONE, new_id)]


def test_many_cgroups_share_one_descriptor(cgroup: Cgroup, watch: EventWatch) -> None:
    children = [cgroup.create_child(f"n{number}") for number in range(200)]
    before = len(os.listdir("/proc/self/fd"))
    ids = {watch.add(child, files.CGROUP_EVENTS): child for child in children}
    assert len(os.listdir("/proc/self/fd")) <= before
    for child in children:
        child.remove()
    gone = {event.watch_id for event in next_events(watch)}
    assert gone == set(ids)


def test_an_ended_watch_is_silent_and_its_neighbours_are_not(cgroup: Cgroup, watch: EventWatch) -> None:
    first, second = cgroup.create_child("a"), cgroup.create_child("b")
    first_id = watch.add(first, files.CGROUP_EVENTS)
    second_id = watch.add(second, files.CGROUP_EVENTS)
    watch.remove(first_id)
    watch.remove(first_id)
    first.remove()
    second.remove()
    assert [event.watch_id for event in next_events(watch)] == [second_id]


def test_a_cgroup_that_is_gone_and_a_file_that_is_missing_cannot_be_watched(
    cgroup: Cgroup, watch: EventWatch
) -> None:
    child = cgroup.create_child("one")
    with pytest.raises(InterfaceMissing):
        watch.add(child, files.MEMORY_EVENTS)
    cgroup.open_child("one").remove()
    with pytest.raises(CgroupGone):
        watch.add(child, files.CGROUP_EVENTS)
    assert len(watch) == 0
    assert watch.read() == []


def test_a_full_queue_is_reported_and_hides_no_removal(cgroup: Cgroup, watch: EventWatch) -> None:
    with open("/proc/sys/fs/inotify/max_queued_events", encoding="ascii") as file:
        limit = int(file.read())
    if limit > 20_000:
        pytest.skip(f"fs.inotify.max_queued_events is {limit}: filling that queue takes too long")
    children = [cgroup.create_child(f"n{number}") for number in range(2)]
    ids = [watch.add(child, files.CGROUP_FREEZE) for child in children]
    # Truncation tells a watch of a change as well, and needs no process. Two files in turn, since equal
    # neighbours in the queue are merged.
    paths = [f"{child.path}/cgroup.freeze" for child in children]
    for number in range(limit + 10):
        os.close(os.open(paths[number % 2], os.O_WRONLY | os.O_TRUNC))
    children[0].remove()
    found = watch.read()
    assert WatchEvent(WatchEventKind.OVERFLOW, -1) in found
    assert [event.watch_id for event in found if event.kind is GONE] == [ids[0]]


async def test_the_event_loop_is_woken(cgroup: Cgroup, watch: EventWatch) -> None:
    loop = asyncio.get_running_loop()
    found: asyncio.Queue[WatchEvent] = asyncio.Queue()

    def on_readable() -> None:
        for event in watch.read():
            found.put_nowait(event)

    loop.add_reader(watch.fileno(), on_readable)
    child = cgroup.create_child("one")
    watch_id = watch.add(child, files.CGROUP_EVENTS)
    child.remove()
    event = await asyncio.wait_for(found.get(), 30)
    loop.remove_reader(watch.fileno())
    assert (event.kind, event.watch_id) == (GONE, watch_id)


def pressure_trigger(cgroup: Cgroup, stall_us: int = 100_000, window_us: int = 2_000_000) -> PsiTrigger:
    try:
        return PsiTrigger(cgroup, files.CPU_PRESSURE, PressureKind.SOME, stall_us, window_us)
    except InterfaceMissing:
        pytest.skip("this kernel has no pressure information (CONFIG_PSI, or psi=0)")
    except CgroupError as error:
        if error.errno == errno.EOPNOTSUPP:
            pytest.skip("pressure information is disabled at boot (psi=0)")
        raise


async def test_a_pressure_trigger_wakes_the_event_loop_once_and_does_not_spin(cgroup: Cgroup) -> None:
    loop = asyncio.get_running_loop()
    fired = asyncio.Event()
    calls = 0

    def on_pressure() -> None:
        nonlocal calls
        calls += 1
        fired.set()

    with pressure_trigger(cgroup) as trigger, contextlib.ExitStack() as stack:
        loop.add_reader(trigger.fileno(), on_pressure)
        busy = f"{'while :; do :; done & ' * (2 * (os.cpu_count() or 1))} wait"
        stack.enter_context(shell_in(cgroup, busy))
        await asyncio.wait_for(fired.wait(), 60)
        cgroup.kill()
        loop.remove_reader(trigger.fileno())
    # Once in a window of two seconds; one that spins does so thousands of times.
    assert 1 <= calls < 10


async def test_the_event_loop_is_told_that_the_cgroup_of_a_trigger_was_removed(cgroup: Cgroup) -> None:
    loop = asyncio.get_running_loop()
    child = cgroup.create_child("one")
    ended = asyncio.Event()
    with pressure_trigger(child) as trigger:
        assert not trigger.is_gone()

        def on_readable() -> None:
            assert trigger.is_gone()
            loop.remove_reader(trigger.fileno())
            ended.set()

        loop.add_reader(trigger.fileno(), on_readable)
        child.remove()
        await asyncio.wait_for(ended.wait(), 30)
    assert trigger.is_gone()


def test_a_trigger_without_pressure_stays_silent_and_ends_with_its_cgroup(cgroup: Cgroup) -> None:
    child = cgroup.create_child("one")
    with pressure_trigger(child) as trigger:
        assert trigger.wait(0.05) is False
        child.remove()
        with pytest.raises(CgroupGone):
            trigger.wait(30)
    assert trigger.fileno() == -1
    trigger.close()


@pytest.mark.parametrize(
    ("stall_us", "window_us"),
    [(0, 2_000_000), (3_000_000, 2_000_000), (1, 1), (1, 20_000_000), (-5, 2_000_000)],
)
def test_impossible_times_are_refused_before_the_kernel_is_asked(
    stall_us: int, window_us: int, cgroup: Cgroup
) -> None:
    with pytest.raises(BadFormat, match="is not possible"):
        PsiTrigger(cgroup, files.CPU_PRESSURE, PressureKind.SOME, stall_us, window_us)


def test_a_short_window_takes_a_capability_and_the_refusal_says_so(cgroup: Cgroup) -> None:
    try:
        pressure_trigger(cgroup, window_us=500_000).close()
    except NotDelegated as error:
        assert "CAP_SYS_RESOURCE" in error.reason
