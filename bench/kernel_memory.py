"""What the memory program is for and what it costs; a part of bench/kernel.py.

A session of high priority takes memory, rests, gives it back and rests, so often; beside it a call of low priority takes
memory without end and begins anew when it is killed; both in a cgroup that has no room for both, without swap. Arms, in
turn, all under our scheduler:

    alone     nobody beside it
    cpu       a neighbour that only computes
    off       the grower, no guard; the kernel kills whom it likes, as among the daemon's calls
    spared    the grower, no guard; the kernel kills the grower first, so that the high session is delayed, not lost
    on        the grower and the guard
    huge      the same, and the grower takes huge pages

With the cpu.weight of WEIGHTS the neighbour has the CPU while the high session rests and hardly any else: `cpu` shows what
that costs, and what another arm costs beyond it is memory. And how long allocation takes with the program attached and
without, in pairs.
"""

import contextlib
import json
import math
import os
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from agentcgroup.bpf.memory import WAIT_STEP_NS, GuardFigures, GuardNumbers, MemoryProgram
from agentcgroup.bpf.scheduler import CpuScheduler, SchedulerMode
from agentcgroup.bpf.shared_maps import HOLDS, SharedMaps
from agentcgroup.cgroups.scratch import scratch_cgroup
from bench.kernel_part import Figures, Part, spread
from bench.report import Target
from bench.spawning import build_one

MIB: Final = 1 << 20
SHARED_MIB: Final = 256
HIGH_MIB: Final = 128
HIGH_ROUNDS: Final = 8
HIGH_PAUSE_MS: Final = 100
PROTECTION_MIB: Final = 160
MARGIN_MIB: Final = 16
WEIGHTS: Final = {"high": 100, "low": 1}
ARMS: Final = ("alone", "cpu", "off", "spared", "on", "huge")
GUARDED: Final = ("on", "huge")
DOES: Final = {"cpu": "spin", "huge": "huge"}
# What the daemon gives to every call; see call.oom_score_adj in its configuration.
OOM_SCORE_ADJ: Final = 500
# time.h; its resolution is a tick. Python does not name it.
CLOCK_MONOTONIC_COARSE: Final = 6
# include/uapi/linux/sched.h
SCHED_EXT: Final = 7


def session(ground: Path, name: str) -> Path:
    """A session's cgroup with one call in it; returns the call's."""
    made = ground / name
    made.mkdir()
    (made / "cgroup.subtree_control").write_text("+cpu +memory")
    (made / "cpu.weight").write_text(str(WEIGHTS.get(name, 100)))
    call = made / "call"
    call.mkdir()
    return call


def start(call: Path, *command: str, oom_score_adj: int = OOM_SCORE_ADJ) -> "subprocess.Popen[str]":
    script = f'echo $$ > {call}/cgroup.procs; echo {oom_score_adj} > /proc/self/oom_score_adj; exec "$@"'
    return subprocess.Popen(("/bin/sh", "-c", script, "sh", *command), stdout=subprocess.PIPE, text=True)


@contextlib.contextmanager
def neighbour(call: Path, grow: str, what: str, oom_score_adj: int) -> Iterator[list[int]]:
    """The low call, for as long as the context lasts; how often it was killed and begun anew."""
    stop, restarts = threading.Event(), [0]
    current = [start(call, grow, what, oom_score_adj=oom_score_adj)]

    def again() -> None:
        while not stop.is_set():
            current[0].wait()
            if not stop.is_set():
                restarts[0] += 1
                current[0] = start(call, grow, what, oom_score_adj=oom_score_adj)

    thread = threading.Thread(target=again)
    thread.start()
    try:
        yield restarts
    finally:
        stop.set()
        while thread.is_alive():
            current[0].kill()
            thread.join(0.05)


def one_arm(arm: str, program: MemoryProgram, grow: str) -> dict[str, Any]:
    """Completion time of the high session's work in a fresh pair of sessions."""
    with scratch_cgroup("memory", "cpu", deadline_s=60) as shared:
        ground = Path(shared.path)
        high, low = session(ground, "high"), session(ground, "low")
        (ground / "memory.max").write_text(str(SHARED_MIB * MIB))
        (ground / "memory.swap.max").write_text("0")
        for cgroup in (high, high.parent):
            (cgroup / "memory.low").write_text(str(PROTECTION_MIB * MIB))
        program.open_account(shared.id)
        for call, rank, protection in ((high, 2, PROTECTION_MIB * MIB), (low, 0, 0)):
            program.open_account(call.stat().st_ino)
            program.open_account(call.parent.stat().st_ino)
            program.guard(call.parent.stat().st_ino, rank, protection)
        numbers = GuardNumbers(shared.id, MARGIN_MIB * MIB)
        # Where nobody is held the waits of the high session are seen all the same.
        program.set_numbers(numbers if arm in GUARDED else replace(numbers, hold_max_ns=0))
        work = start(high, grow, "fixed", str(HIGH_MIB), str(HIGH_ROUNDS), str(HIGH_PAUSE_MS))
        restarts = [0]
        with contextlib.ExitStack() as stack:
            if arm != "alone":
                time.sleep(0.05)
                score = 1000 if arm == "spared" else OOM_SCORE_ADJ
                restarts = stack.enter_context(neighbour(low, grow, DOES.get(arm, "endless"), score))
            said = work.communicate(timeout=120)[0]
            low_id, high_id = low.stat().st_ino, high.parent.stat().st_ino
            growth, stalls = program.growth_of(low_id), program.stalls(high_id)
            peak = int((ground / "memory.peak").read_text())
        assert growth is not None and stalls is not None
        row = {
            "arm": arm,
            # None: it was killed all the same.
            "taken_ms": int(said) / 1e6 if said else None,
            "low_restarts": restarts[0],
            "room_left_mib": (SHARED_MIB * MIB - peak) / MIB,
            "low_mib": growth.usage_bytes / MIB,
            "low_peak_mib_per_s": growth.peak_rate_bytes_per_s / MIB,
            "holds": growth.holds,
            "held_ms": growth.held_ns / 1e6,
            "high_stalls": stalls.count,
            "high_stalled_ms": stalls.total_ns / 1e6,
        }
        for call in (high, low):
            program.forget(call.parent.stat().st_ino)
            for cgroup in (call, call.parent):
                program.close_account(cgroup.stat().st_ino)
        program.close_account(shared.id)
        return row


def wait_ms(figures: GuardFigures, share: float) -> float | None:
    """From the charge that asked to the begin of the hold: below this for `share` of the holds."""
    left = share * sum(figures.waits)
    if not left:
        return None
    for number, count in enumerate(figures.waits):
        left -= count
        if left <= 0:
            return (number + 1) * WAIT_STEP_NS / 1e6
    return None


def median_ms(taken: list[float | None]) -> float | None:
    """One that was killed took longer than any; None: so did half of them."""
    median = statistics.median_high([math.inf if one is None else one for one in taken])
    return None if math.isinf(median) else median


def slower_percent(one_ms: float | None, alone_ms: float | None) -> float | None:
    return None if one_ms is None or not alone_ms else round(100 * (one_ms / alone_ms - 1), 2)


@contextlib.contextmanager
def of_policy(policy: int) -> Iterator[None]:
    """What is started meanwhile inherits it, as the daemon's calls do in mode partial."""
    os.sched_setscheduler(0, policy, os.sched_param(0))
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def protection(grow: str, repetitions: int, mode: SchedulerMode) -> dict[str, Any]:
    """The arms in turn, under our scheduler all of them."""
    rows: list[dict[str, Any]] = []
    with contextlib.ExitStack() as stack:
        shared = SharedMaps(HOLDS)
        stack.callback(shared.close)
        scheduler = stack.enter_context(CpuScheduler(shared=shared))
        scheduler.attach_scheduler(mode)
        if mode is SchedulerMode.PARTIAL:
            stack.enter_context(of_policy(SCHED_EXT))
        program = MemoryProgram(shared=shared)
        stack.callback(program.close)
        for number in range(repetitions):
            first = number % len(ARMS)
            for arm in ARMS[first:] + ARMS[:first]:
                rows.append(one_arm(arm, program, grow))
                print(f"memory, {mode}: {json.dumps(rows[-1])}", flush=True)
        figures = program.figures()
        end, counters = scheduler.end(), dict(scheduler.counters())
    medians = {arm: median_ms([row["taken_ms"] for row in rows if row["arm"] == arm]) for arm in ARMS}
    return {
        "rows": rows,
        "killed": {arm: sum(row["arm"] == arm and row["taken_ms"] is None for row in rows) for arm in ARMS},
        "median_ms": medians,
        "slower_percent": {arm: slower_percent(medians[arm], medians["alone"]) for arm in ARMS},
        "tick_ms": 1000 * time.clock_getres(CLOCK_MONOTONIC_COARSE),
        "breach_to_hold_ms": {name: wait_ms(figures, part) for name, part in (("p50", 0.5), ("p99", 0.99))},
        "waits": list(figures.waits),
        "holds": {"asked": figures.asked, "failed": figures.failed, "released": figures.released},
        "ejected": str(end) if end else None,
        "scheduler": {name: counters[name] for name in counters if name.startswith("holds")},
    }


def overhead(grow: str, pairs: int) -> dict[str, Any]:
    """Allocation with the program attached, in a call with accounts and a guard, and without: pairs of neighbours."""
    added: list[float] = []
    bare_ms: list[float] = []
    with scratch_cgroup("memory", "cpu", deadline_s=60) as shared:
        call = session(Path(shared.path), "session")

        def taken_ns() -> int:
            return int(start(call, grow, "fixed", "64", "2", "0").communicate(timeout=120)[0])

        def attached_ns() -> int:
            program = MemoryProgram()
            program.set_numbers(GuardNumbers(shared.id, margin_bytes=MARGIN_MIB * MIB))
            for cgroup in (call, call.parent, call.parent.parent):
                program.open_account(cgroup.stat().st_ino)
            program.guard(call.parent.stat().st_ino, 0, 0)
            program.guard(1, 2, 0)
            try:
                return taken_ns()
            finally:
                program.close()

        for number in range(pairs):
            if number % 2:
                attached, bare = attached_ns(), taken_ns()
            else:
                bare, attached = taken_ns(), attached_ns()
            added.append(100 * (attached / bare - 1))
            bare_ms.append(bare / 1e6)
    return {
        "pairs": pairs,
        "bare_ms": statistics.median(bare_ms),
        "added_percent": statistics.median(added),
        "quartiles_percent": statistics.quantiles(added, n=4)[::2],
        "each_percent": added,
    }


@contextlib.contextmanager
def quiet_console() -> Iterator[None]:
    """The kernel's reports of kills, pages of text, are kept from a serial line that all would wait for."""
    levels = Path("/proc/sys/kernel/printk")
    before = levels.read_text()
    levels.write_text("1")
    try:
        yield
    finally:
        levels.write_text(before)


def measure(rounds: int) -> Figures:
    """All of it; a round is one repetition of each arm, and two pairs for the overhead."""
    with tempfile.TemporaryDirectory() as directory, quiet_console():
        grow = str(build_one("grow", Path(directory)))
        guarded = {mode.value: protection(grow, rounds, mode) for mode in SchedulerMode}
        return {"protection": guarded, "overhead": overhead(grow, 2 * rounds)}


def targets(figures: Figures) -> list[Target]:
    """Medians over the rounds."""
    added = figures["overhead"]["added_percent"]
    return [
        *(one for mode, guarded in figures["protection"].items() for one in _targets_in(mode, guarded)),
        Target("allocation with the program attached: slower, percent", "<= 2", added, added <= 2),
    ]


def _targets_in(mode: str, guarded: dict[str, Any]) -> list[Target]:
    cpu, off, on, huge = (guarded["slower_percent"][arm] for arm in ("cpu", "off", "on", "huge"))
    lost = sum(guarded["killed"][arm] for arm in GUARDED)
    p99_ms = guarded["breach_to_hold_ms"]["p99"]
    ticks = None if p99_ms is None else p99_ms / guarded["tick_ms"]
    alone = f"{mode}: slower than alone, percent"
    return [
        Target(f"{alone}: beside one that computes", "<= 5", cpu, cpu is not None and cpu <= 5),
        Target(f"{alone}: beside a grower, guarded", "<= 5", on, on is not None and on <= 5),
        Target(f"{alone}: the same with huge pages", "<= 5", huge, huge is not None and huge <= 5),
        Target(f"{alone}: beside a grower, unguarded (None: killed)", "> 5", off, off is None or off > 5),
        Target(f"{mode}: high sessions killed beside a grower, guarded", "0", lost, lost == 0),
        Target(
            f"{mode}: from the breach to the hold at p99, ticks",
            "<= 2",
            ticks,
            ticks is not None and ticks <= 2,
        ),
    ]


def table(figures: Figures) -> str:
    """A line for each arm, and what the guard did."""
    weights = ", ".join(f"{name} {weight}" for name, weight in WEIGHTS.items())
    lines = [f"  {HIGH_MIB} MiB beside a neighbour in {SHARED_MIB} MiB without swap; cpu.weight: {weights}"]
    for mode, guarded in figures["protection"].items():
        lines += [f"  scheduler in mode {mode}", *_lines_of(guarded)]
    lines.append(f"  allocation, attached: {spread(figures['overhead']['each_percent'], 2)} % slower")
    return "\n".join(lines)


def _lines_of(guarded: dict[str, Any]) -> list[str]:
    lines = []
    for arm in ARMS:
        rows = [row for row in guarded["rows"] if row["arm"] == arm]
        taken = [row["taken_ms"] for row in rows if row["taken_ms"] is not None]
        lines.append(
            f"  {arm:8} {spread(taken) if taken else 'none ended':>28} ms, killed {guarded['killed'][arm]}; "
            f"high waited {spread([row['high_stalled_ms'] for row in rows])} ms; "
            f"room left {spread([row['room_left_mib'] for row in rows])} MiB; "
            f"low began anew {spread([float(row['low_restarts']) for row in rows])} times, "
            f"was held {spread([row['held_ms'] for row in rows])} ms"
        )
    holds = guarded["holds"]
    lines.append(
        f"  from the breach to the hold, ms: {guarded['breach_to_hold_ms']}, tick {guarded['tick_ms']}; "
        f"asked {holds['asked']}, begun {sum(guarded['waits'])}"
    )
    return lines


PART: Final = Part(
    "memory", "the guard between sessions, and what the memory program costs", 3, measure, targets, table,
    is_counted=True,
)  # fmt: skip
