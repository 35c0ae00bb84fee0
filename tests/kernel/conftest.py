"""What cannot be tried on a kernel is not collected there: in the guest a skip is a failure. And the scheduler, attached."""

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agentcgroup.bpf import features
from agentcgroup.bpf.scheduler import CpuScheduler, SchedulerMode
from agentcgroup.cgroups.scratch import scratch_cgroup

# Without sched_ext, what is left to test is that we say so: test_scheduler_tiers.py.
collect_ignore = (
    []
    if features.sched_ext().is_available
    else [
        "test_scheduler.py",
        "test_scheduler_churn.py",
        "test_scheduler_daemon.py",
        "test_scheduler_hotplug.py",
        "test_scheduler_lifecycle.py",
        "test_memory_guard.py",
        "test_memory_guard_modes.py",
    ]
)


# What the kernel says when something in it is wrong; also of a scheduler that it throws off.
_ALARM = re.compile(r"WARNING:|BUG:|Oops|detected stalls|hung task|lockup|sched_ext: .*(errored|exited)")


@contextlib.contextmanager
def kernel_alarms() -> Iterator[Callable[[], list[str]]]:
    """The kernel's messages from now on that should not be there."""
    descriptor = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    os.lseek(descriptor, 0, os.SEEK_END)

    def alarms() -> list[str]:
        found: list[str] = []
        while True:
            try:
                record = os.read(descriptor, 8192).decode(errors="replace")
            except BlockingIOError:
                return found
            except BrokenPipeError:
                # Overwritten before they were read; the next read begins after them.
                continue
            if _ALARM.search(record):
                found.append(record)

    try:
        yield alarms
    finally:
        os.close(descriptor)


@pytest.fixture
def ground() -> Iterator[Path]:
    with scratch_cgroup("cpu", deadline_s=60) as cgroup:
        yield Path(cgroup.path)


class Loaded:
    """One scheduler for all tests of a module, as long as it is not thrown off: the verifier takes seconds."""

    def __init__(self) -> None:
        self._current: CpuScheduler | None = None

    def current(self) -> CpuScheduler:
        if self._current is None:
            self._current = CpuScheduler()
            self._current.attach_scheduler(SchedulerMode.FULL)
        return self._current

    def close(self) -> None:
        if self._current is not None:
            self._current.close()
        self._current = None


@pytest.fixture(scope="module")
def loaded() -> Iterator[Loaded]:
    loaded = Loaded()
    yield loaded
    loaded.close()


@pytest.fixture
def scheduler(loaded: Loaded) -> Iterator[CpuScheduler]:
    """Attached all the time, without a word from the kernel."""
    with kernel_alarms() as alarms:
        scheduler = loaded.current()
        yield scheduler
        ejected = scheduler.end()
        if ejected is not None:
            loaded.close()
        assert ejected is None, f"ejected: {ejected}"
        assert alarms() == []
