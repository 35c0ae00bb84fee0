"""What the memory program is for and what it costs; a part of bench/kernel.py.

A session of high priority takes and gives back memory, so often; beside it a call of low priority takes memory without end
and begins anew when it is killed; both in a cgroup that has no room for both, without swap. Arms, in turn: alone; beside it
with the guard off; with the guard on; all of them under our scheduler. And how long allocation takes with the program
attached and without, in pairs.
"""

import contextlib
import json
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
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
HIGH_ROUNDS: Final = 4
PROTECTION_MIB: Final = 160
ARMS: Final = ("alone", "off", "on")
# time.h; its resolution is a tick. Python does not name it.
CLOCK_MONOTONIC_COARSE: Final = 6


def session(ground: Path, name: str) -> Path:
    """A session's cgroup with one call in it; returns the call's."""
    made = ground / name
    made.mkdir()
    (made / "cgroup.subtree_control").write_text("+memory")
    call = made / "call"
    call.mkdir()
    return call


def start(call: Path, *command: str, oom_score_adj: int = 0) -> "subprocess.Popen[str]":
    script = f'echo $$ > {call}/cgroup.procs; echo {oom_score_adj} > /proc/self/oom_score_adj; exec "$@"'
    return subprocess.Popen(("/bin/sh", "-c", script, "sh", *command), stdout=subprocess.PIPE, text=True)


@contextlib.contextmanager
def grower(call: Path, grow: str) -> Iterator[list[int]]:
    """The low call, for as long as the context lasts; how often it was killed and begun anew."""
    stop, restarts = threading.Event(), [0]
    # Of two calls the larger would be killed, which may be the high session's: it is to be delayed, not lost.
    current = [start(call, grow, "endless", oom_score_adj=1000)]

    def again() -> None:
        while not stop.is_set():
            current[0].wait()
            if not stop.is_set():
                restarts[0] += 1
                current[0] = start(call, grow, "endless", oom_score_adj=1000)

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
    with scratch_cgroup("memory", deadline_s=60) as shared:
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
        program.set_numbers(GuardNumbers(shared.id, margin_bytes=16 * MIB) if arm == "on" else None)
        work = start(high, grow, "fixed", str(HIGH_MIB), str(HIGH_ROUNDS))
        restarts = [0]
        with contextlib.ExitStack() as stack:
            if arm != "alone":
                time.sleep(0.3)
                restarts = stack.enter_context(grower(low, grow))
            said = work.communicate(timeout=120)[0]
            low_id, high_id = low.stat().st_ino, high.parent.stat().st_ino
            growth, stalls = program.growth_of(low_id), program.stalls(high_id)
        assert growth is not None and stalls is not None
        row = {
            "arm": arm,
            # None: it was killed all the same.
            "taken_ms": int(said) / 1e6 if said else None,
            "low_restarts": restarts[0],
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


def slower_percent(one_ms: float | None, alone_ms: float | None) -> float | None:
    return None if one_ms is None or not alone_ms else round(100 * (one_ms / alone_ms - 1), 2)


def protection(grow: str, repetitions: int) -> dict[str, Any]:
    """The three arms in turn, under our scheduler all of them."""
    rows: list[dict[str, Any]] = []
    with contextlib.ExitStack() as stack:
        shared = SharedMaps(HOLDS)
        stack.callback(shared.close)
        scheduler = stack.enter_context(CpuScheduler(shared=shared))
        scheduler.attach_scheduler(SchedulerMode.FULL)
        program = MemoryProgram(shared=shared)
        stack.callback(program.close)
        for number in range(repetitions):
            for arm in ARMS[number % 3 :] + ARMS[: number % 3]:
                rows.append(one_arm(arm, program, grow))
                print(f"memory: {json.dumps(rows[-1])}", flush=True)
        figures = program.figures()
        end, counters = scheduler.end(), dict(scheduler.counters())
    taken = {arm: [row["taken_ms"] for row in rows if row["arm"] == arm and row["taken_ms"]] for arm in ARMS}
    medians = {arm: statistics.median(values) if values else None for arm, values in taken.items()}
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
    with scratch_cgroup("memory", deadline_s=60) as shared:
        call = session(Path(shared.path), "session")

        def taken_ns() -> int:
            return int(start(call, grow, "fixed", "64", "2").communicate(timeout=120)[0])

        def attached_ns() -> int:
            program = MemoryProgram()
            program.set_numbers(GuardNumbers(shared.id, margin_bytes=16 * MIB))
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


def measure(rounds: int) -> Figures:
    """All of it; a round is one repetition of each arm, and two pairs for the overhead."""
    with tempfile.TemporaryDirectory() as directory:
        grow = str(build_one("grow", Path(directory)))
        return {"protection": protection(grow, rounds), "overhead": overhead(grow, 2 * rounds)}


def targets(figures: Figures) -> list[Target]:
    """Medians over the rounds."""
    guarded, costs = figures["protection"], figures["overhead"]
    on, off = guarded["slower_percent"]["on"], guarded["slower_percent"]["off"]
    lost = guarded["killed"]["on"]
    ticks = None if guarded["breach_to_hold_ms"]["p99"] is None else (
        guarded["breach_to_hold_ms"]["p99"] / guarded["tick_ms"]
    )  # fmt: skip
    return [
        Target("beside a grower, guarded: slower than alone, percent", "<= 5", on, on is not None and on <= 5),
        Target("the same unguarded, percent", "> 5", off, off is None or off > 5),
        Target("high sessions killed beside a grower, guarded", "0", lost, lost == 0),
        Target(
            "from the breach to the hold at p99, ticks", "<= 2", ticks, ticks is not None and ticks <= 2
        ),
        Target(
            "allocation with the program attached: slower, percent", "<= 2", costs["added_percent"],
            costs["added_percent"] <= 2,
        ),
    ]  # fmt: skip


def table(figures: Figures) -> str:
    """A line for each arm, and what the guard did."""
    guarded, costs = figures["protection"], figures["overhead"]
    lines = []
    for arm in ARMS:
        rows = [row for row in guarded["rows"] if row["arm"] == arm]
        taken = [row["taken_ms"] for row in rows if row["taken_ms"] is not None]
        lines.append(
            f"  {arm:8} {spread(taken) if taken else 'none ended':>28} ms, killed {guarded['killed'][arm]}; "
            f"high waited {spread([row['high_stalled_ms'] for row in rows])} ms; "
            f"low began anew {spread([float(row['low_restarts']) for row in rows])} times, "
            f"was held {spread([row['held_ms'] for row in rows])} ms"
        )
    lines.append(
        f"  from the breach to the hold, ms: {guarded['breach_to_hold_ms']}, tick {guarded['tick_ms']}"
    )
    lines.append(f"  allocation, attached: {spread(costs['each_percent'], 2)} % slower")
    return "\n".join(lines)


PART: Final = Part(
    "memory", "the guard between sessions, and what the memory program costs", 10, measure, targets, table
)
