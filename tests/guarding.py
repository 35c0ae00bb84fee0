"""Two sessions under one limit, with a call in each, and the guard between them: for tests on a kernel that can hold.

As a program, `python -m tests.guarding IDS...` owns scheduler and guard over such cgroups until its input ends, when it
closes them, or until it is killed; it prints "guarding", and "held" when somebody has been.
"""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from agentcgroup.bpf.memory import Growth, GuardNumbers, MemoryProgram
from agentcgroup.bpf.scheduler import CpuScheduler, SchedulerMode
from agentcgroup.bpf.shared_maps import HOLDS, SharedMaps
from agentcgroup.cgroups import files
from agentcgroup.cgroups.cgroup import Cgroup
from agentcgroup.cgroups.scratch import scratch_cgroup
from tests.growing import MIB
from tests.running import wait_until

SHARED_MIB: Final = 160
PROMISED_MIB: Final = 120
MARGIN_MIB: Final = 8
HIGH, LOW = 2, 0
# Longer than any test.
FOREVER_NS: Final = 3_600_000_000_000


@contextlib.contextmanager
def tight_cgroups() -> Iterator[tuple[Cgroup, Cgroup, Cgroup, Cgroup, Cgroup]]:
    """The shared one, the sessions high and low, and the call of each."""
    with scratch_cgroup("memory", deadline_s=60) as shared:
        shared.write(files.MEMORY_MAX, SHARED_MIB * MIB)
        shared.write(files.MEMORY_SWAP_MAX, 0)
        with shared.create_child("high") as high, shared.create_child("low") as low:
            for cgroup in (high, low):
                cgroup.enable_controllers(frozenset({"memory"}))
            with high.create_child("call") as high_call, low.create_child("call") as low_call:
                yield shared, high, low, high_call, low_call


def guard(program: MemoryProgram, ids: Sequence[int]) -> None:
    """`ids`: of tight_cgroups, in that order."""
    for cgroup_id in ids:
        program.open_account(cgroup_id)
    program.guard(ids[1], HIGH, PROMISED_MIB * MIB)
    program.guard(ids[2], LOW, 0)


def numbers(shared_id: int, hold_max_ns: int, hold_total_ns: int = FOREVER_NS) -> GuardNumbers:
    """Sessions are active until the end of the test."""
    return GuardNumbers(
        shared_id,
        margin_bytes=MARGIN_MIB * MIB,
        active_ns=FOREVER_NS,
        hold_max_ns=hold_max_ns,
        hold_total_ns=hold_total_ns,
    )


@dataclass
class Ground:
    """Two sessions under one limit, with a call in each, and the guard between them."""

    program: MemoryProgram
    shared: Cgroup
    high: Cgroup
    low: Cgroup
    high_call: Cgroup
    low_call: Cgroup

    def set(self, *, hold_max_ns: int, hold_total_ns: int = FOREVER_NS) -> None:
        self.program.set_numbers(numbers(self.shared.id, hold_max_ns, hold_total_ns))

    def growth(self, cgroup: Cgroup) -> Growth:
        growth = self.program.growth_of(cgroup.id)
        assert growth is not None
        return growth


@contextlib.contextmanager
def guarded_ground(shared: SharedMaps) -> Iterator[Ground]:
    """With short holds, so that a test is short."""
    program = MemoryProgram(shared=shared)
    with tight_cgroups() as cgroups:
        guard(program, [cgroup.id for cgroup in cgroups])
        ground = Ground(program, *cgroups)
        ground.set(hold_max_ns=50_000_000)
        yield ground
        program.close()


def main(ids: Sequence[int]) -> None:
    shared = SharedMaps(HOLDS)
    with CpuScheduler(shared=shared) as scheduler:
        scheduler.attach_scheduler(SchedulerMode.FULL)
        with contextlib.closing(MemoryProgram(shared=shared)) as program:
            guard(program, ids)
            program.set_numbers(numbers(ids[0], hold_max_ns=500_000_000))
            print("guarding", flush=True)
            wait_until(lambda: program.figures().holds > 2, deadline_s=120, what="three holds")
            print("held", flush=True)
            sys.stdin.read()


if __name__ == "__main__":
    main([int(argument) for argument in sys.argv[1:]])
