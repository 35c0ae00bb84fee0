"""What the kernel programs cost work that has nothing to do with them: a part of the kernel benchmark.

Each round does every kind of work (pages allocated, processes started, context switches) once with nothing attached and
once with each set of programs, in changing order, in a cgroup as deep as a call's and with the accounts that the daemon
keeps: of its root, the session, the call. What counts is the loss of a round against
its own bare block: what disturbs the machine for a while disturbs both. Pages are charged, and the memory program runs,
only where the cgroup has the memory controller.
"""

import contextlib
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from agentcgroup.bpf.libbpf import BpfError
from agentcgroup.bpf.lifecycle import Lifecycle
from agentcgroup.bpf.memory import MemoryProgram
from agentcgroup.bpf.scheduler import CpuScheduler, SchedulerMode
from agentcgroup.cgroups import files
from agentcgroup.cgroups.cgroup import Cgroup
from agentcgroup.cgroups.scratch import scratch_cgroup
from bench import spawning
from bench.bpf_events import DAEMON_KINDS
from bench.figures import percentile
from bench.kernel_part import Figures, Part
from bench.report import Target

ROUNDS: Final = 6
# Bare blocks are made this long: a few scheduler ticks and thousands of steps, but many rounds in a minute.
BLOCK_NS: Final = 250_000_000
# What is tried to find how many steps that is.
FIRST_STEPS: Final = {"alloc": 20_000, "fork": 50, "switch": 1_000}
TARGET_PERCENT: Final = 2.0
# Programs and maps of the block before are freed after it, which would be on the time of this one.
SETTLE_S: Final = 0.2
CONTROLLERS: Final = ("memory", "cpu", "pids")
_RESAMPLES: Final = 2000
# include/uapi/linux/sched.h
_SCHED_EXT: Final = 7

# Gets the cgroups with accounts, outermost first; the work is done in the last.
Attach = Callable[[Sequence[Cgroup], contextlib.ExitStack], None]


@dataclass(frozen=True, slots=True)
class Loss:
    """How much slower a kind of work is with the programs: medians over rounds, with a 95 % interval of the median."""

    bare_per_s: float
    loss_percent: float
    least_percent: float
    most_percent: float
    quartiles_percent: tuple[float, float]


def attach_programs(accounts: Sequence[Cgroup], stack: contextlib.ExitStack) -> None:
    """What the daemon loads by default."""
    lifecycle = Lifecycle(lambda _: None, kinds=DAEMON_KINDS, with_children=False)
    stack.callback(lifecycle.close)
    for cgroup in accounts:
        lifecycle.open_account(cgroup.id)
    try:
        memory = MemoryProgram()
    except BpfError as error:
        print(f"bench.kernel_overhead: without the memory program: {error}", file=sys.stderr)
        return
    stack.callback(memory.close)
    for cgroup in accounts:
        memory.open_account(cgroup.id)


def attach_all(accounts: Sequence[Cgroup], stack: contextlib.ExitStack) -> None:
    """The same and the CPU scheduler for every task of the host."""
    attach_programs(accounts, stack)
    stack.enter_context(CpuScheduler()).attach_scheduler(SchedulerMode.FULL)


def attach_partial(accounts: Sequence[Cgroup], stack: contextlib.ExitStack) -> None:
    """The scheduler alone, for others: what its being there costs whoever it does not schedule."""
    stack.enter_context(CpuScheduler()).attach_scheduler(SchedulerMode.PARTIAL)


def attach_partial_to_work(accounts: Sequence[Cgroup], stack: contextlib.ExitStack) -> None:
    """The scheduler alone, for this process and what it starts: what a call pays in mode partial."""
    attach_partial(accounts, stack)
    os.sched_setscheduler(0, _SCHED_EXT, os.sched_param(0))
    stack.callback(os.sched_setscheduler, 0, os.SCHED_OTHER, os.sched_param(0))


def work_ns(program: Path, kind: str, steps: int, cgroup: Cgroup) -> int:
    """The time of one block of work, done inside `cgroup`."""
    join = f'echo 0 > "{cgroup.path}/cgroup.procs" && exec "$0" "$@"'
    done = subprocess.run(
        ["/bin/sh", "-c", join, str(program), kind, str(steps)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise spawning.BenchError(f"{kind}: status {done.returncode}: {done.stderr}")
    return int(done.stdout)


def loss(bare_ns: Sequence[int], with_ns: Sequence[int], steps: int) -> Loss:
    """Pairs of the same round. A rate loses 1 - bare/with."""
    losses = [100 * (1 - bare / slow) for bare, slow in zip(bare_ns, with_ns, strict=True)]
    chance = random.Random(1)
    medians = sorted(statistics.median(chance.choices(losses, k=len(losses))) for _ in range(_RESAMPLES))
    low, high = medians[int(_RESAMPLES * 0.025)], medians[int(_RESAMPLES * 0.975)]
    scaled = sorted(round(each * 1000) for each in losses)
    middle = statistics.median(losses)
    return Loss(
        bare_per_s=round(steps / statistics.median(bare_ns) * 1e9, 1),
        loss_percent=round(middle, 2),
        least_percent=round(low, 2),
        most_percent=round(high, 2),
        quartiles_percent=(
            round(percentile(scaled, 0.25) / 1000, 2),
            round(percentile(scaled, 0.75) / 1000, 2),
        ),
    )


def compare(
    program: Path, accounts: Sequence[Cgroup], arms: Mapping[str, Attach], rounds: int
) -> dict[str, dict[str, Loss]]:
    """Per arm and kind of work, against the bare blocks of the same rounds."""
    steps, cgroup = {}, accounts[-1]
    for kind, count in FIRST_STEPS.items():
        work_ns(program, kind, count, cgroup)
        steps[kind] = max(10, count * BLOCK_NS // work_ns(program, kind, count, cgroup))
    blocks: dict[str, dict[str, list[int]]] = {arm: {kind: [] for kind in steps} for arm in ("bare", *arms)}
    for number in range(rounds):
        order = list(blocks)
        print(f"overhead: round {number + 1} of {rounds}", flush=True)
        for arm in order[number % len(order) :] + order[: number % len(order)]:
            with contextlib.ExitStack() as stack:
                if arm != "bare":
                    arms[arm](accounts, stack)
                time.sleep(SETTLE_S)
                for kind, count in steps.items():
                    blocks[arm][kind].append(work_ns(program, kind, count, cgroup))
    return {
        arm: {kind: loss(blocks["bare"][kind], blocks[arm][kind], steps[kind]) for kind in steps}
        for arm in arms
    }


def measure(rounds: int) -> Figures:
    """Per arm and kind of work."""
    arms: dict[str, Attach] = {"programs": attach_programs}
    if Path("/sys/kernel/sched_ext/state").exists():
        arms |= {
            "with-scheduler": attach_all,
            "beside-partial": attach_partial,
            "in-partial": attach_partial_to_work,
        }
    with (
        tempfile.TemporaryDirectory() as directory,
        scratch_cgroup(*CONTROLLERS) as root,
        root.create_child("session") as session,
        session.create_child("calls") as calls,
    ):
        for above in (session, calls):
            above.enable_controllers(frozenset(root.read(files.CGROUP_SUBTREE_CONTROL) or ()))
        with calls.create_child("call") as call:
            has_memory = call.read(files.MEMORY_CURRENT) is not None
            program = spawning.build_one("work", Path(directory))
            results = compare(program, (root, session, call), arms, rounds)
    return {
        "memory_controller": has_memory,
        "arms": {arm: {kind: asdict(one) for kind, one in kinds.items()} for arm, kinds in results.items()},
    }


def targets(figures: Figures) -> list[Target]:
    """What the daemon loads by default; the scheduler is the operator's choice, with its price in docs/scheduler.md."""
    return [
        Target(
            f"{kind}: loses",
            f"at most {TARGET_PERCENT:.0f} %",
            one["loss_percent"],
            one["loss_percent"] <= TARGET_PERCENT,
        )
        for kind, one in figures["arms"]["programs"].items()
    ]


def table(figures: Figures) -> str:
    lines = [f"{'attached':15} {'work':7} {'bare, 1/s':>10} {'loses, %':>9}  95 % of the median"]
    lines += [
        f"{arm:15} {kind:7} {one['bare_per_s']:10.0f} {one['loss_percent']:9.2f}  "
        f"{one['least_percent']:.2f} to {one['most_percent']:.2f}"
        for arm, kinds in figures["arms"].items()
        for kind, one in kinds.items()
    ]
    return "\n".join(lines)


PART: Final = Part(
    "overhead",
    "what the programs cost work that has nothing to do with them, in instructions",
    ROUNDS,
    measure,
    targets,
    table,
    is_counted=True,
)
