"""CPU shares, caps and wake-up latency under our scheduler and under the kernel's own: the CPU part of bench/kernel.py."""

import contextlib
import functools
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from agentcgroup.bpf.scheduler import CpuScheduler, LatencyClass, SchedulerMode
from agentcgroup.cgroups.scratch import scratch_cgroup
from bench.figures import percentile
from bench.kernel_part import Figures, Part, spread
from bench.report import Target
from bench.spawning import build_one
from bench.spinning import make, spinning, usage_us
from bench.wakeups import latencies_us, traced

OURS: Final = "agentcgroup"
KERNEL: Final = "kernel"
SCHEDULERS: Final = (OURS, KERNEL)
MEASURED_S: Final = 3.0
# 10 ms apart.
WAKE_UPS: Final = 200
SESSIONS: Final = {
    "a": (100, {"x": 100, "y": 300}),
    "b": (200, {"x": 50, "y": 100, "z": 50}),
    "c": (300, {"x": 400, "y": 100}),
}
SPINNERS_PER_CALL: Final = 2
HOGS: Final = 8
# Eight batch calls, each a hog, and one batch call of eight.
HOG_CALLS: Final = {"wake_up": HOGS, "wake_up_one": 1}


def used_s(groups: list[Path], measured_s: float) -> dict[Path, float]:
    """CPU time of each over `measured_s`, after a second in which all of them start."""
    time.sleep(1)
    before = {group: usage_us(group) for group in groups}
    time.sleep(measured_s)
    return {group: (usage_us(group) - before[group]) / 1e6 for group in groups}


def shares(ground: Path, measured_s: float) -> dict[str, Any]:
    """Percent of the level above, wanted and got, of every group of three sessions with nested calls, all saturated."""
    places, groups = {}, []
    for session, (weight, calls) in SESSIONS.items():
        groups.append(make(ground / session, weight, is_inner=True))
        for call, call_weight in calls.items():
            places[make(ground / session / call, call_weight)] = SPINNERS_PER_CALL
    with spinning(places):
        used = used_s(groups + list(places), measured_s)
    whole = sum(used[group] for group in groups)
    rows = {}
    for session, (weight, calls) in SESSIONS.items():
        had = used[ground / session]
        rows[session] = {"wanted": 100 * weight / 600, "got": 100 * had / whole}
        for call, call_weight in calls.items():
            got = 100 * used[ground / session / call] / had
            rows[f"{session}/{call}"] = {"wanted": 100 * call_weight / sum(calls.values()), "got": got}
    worst = max(abs(row["wanted"] - row["got"]) for row in rows.values())
    return {"groups": rows, "worst_points": worst, "cpus_used": whole / measured_s}


def cap(ground: Path, measured_s: float) -> dict[str, float]:
    """Percent of one CPU that a group capped at 50 % gets, beside an uncapped one of a quarter of its weight."""
    capped, free = make(ground / "capped", 400), make(ground / "free", 100)
    (capped / "cpu.max").write_text("50000 100000")
    with spinning({capped: 2, free: 2}):
        used = used_s([capped, free], measured_s)
    return {"capped_percent": 100 * used[capped] / measured_s, "free_percent": 100 * used[free] / measured_s}


def wake_up(ground: Path, probe: Path, scheduler: CpuScheduler | None, calls: int) -> dict[str, Any]:
    """How late an interactive call runs beside eight hogs in so many batch calls, all of weight 100.

    `latency_us`: from wake-up to running. `late_us`: from the moment it slept for to running, which is what the call
    notices, the lateness of the machine's timers included.
    """
    call = make(ground / "call")
    hogs = [make(ground / f"hog{number}") for number in range(calls)]
    if scheduler is not None:
        scheduler.set_class(call.stat().st_ino, LatencyClass.INTERACTIVE)
        for hog in hogs:
            scheduler.set_class(hog.stat().st_ino, LatencyClass.BATCH)
    with spinning(dict.fromkeys(hogs, HOGS // calls)):
        child = subprocess.Popen(
            (str(probe), str(WAKE_UPS)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        (call / "cgroup.procs").write_text(str(child.pid))
        with traced(child.pid) as trace:
            # It begins at the end of its input.
            late_us = [int(line) for line in child.communicate()[0].split()]
            latency_us = latencies_us((trace / "trace").read_text())
    return {"latency_us": latency_us, "late_us": late_us}


def measure(rounds: int) -> Figures:
    """The two schedulers in turn, so that whatever else the machine does meets both."""
    found = []
    with tempfile.TemporaryDirectory() as directory:
        probe = build_one("wake", Path(directory))
        for number in range(rounds):
            for name in SCHEDULERS:
                row = {"scheduler": name, "round": number, **measure_one(name, probe)}
                found.append(row)
                print(f"cpu: round {number + 1} of {rounds}, {name}: {brief(row)}", flush=True)
    return {"rows": found}


def measure_one(name: str, probe: Path) -> dict[str, Any]:
    """Everything once, under the scheduler `name`."""
    with contextlib.ExitStack() as stack:
        scheduler = None
        if name == OURS:
            scheduler = stack.enter_context(CpuScheduler())
            scheduler.attach_scheduler(SchedulerMode.FULL)
        row: dict[str, Any] = {}
        with scratch_cgroup("cpu", deadline_s=30) as cgroup:
            row["shares"] = shares(Path(cgroup.path), MEASURED_S)
        with scratch_cgroup("cpu", deadline_s=30) as cgroup:
            row["cap"] = cap(Path(cgroup.path), MEASURED_S)
        for which, calls in HOG_CALLS.items():
            with scratch_cgroup("cpu", deadline_s=30) as cgroup:
                row[which] = wake_up(Path(cgroup.path), probe, scheduler, calls)
        if scheduler is not None:
            end = scheduler.end()
            row["ejected"] = str(end) if end else None
            row["counters"] = dict(scheduler.counters())
        return row


def brief(row: Figures) -> str:
    return (
        f"worst share off by {row['shares']['worst_points']:.1f} points, cap of 50 % kept at"
        f" {row['cap']['capped_percent']:.1f} %, wake-up p99 beside eight calls and one of eight hogs"
        f" {p99_ms([row], 'wake_up'):.2f} and {p99_ms([row], 'wake_up_one'):.2f} ms"
    )


def late_ms(which: str, of_what: str, share: float, row: Figures) -> float:
    return percentile(sorted(row[which][of_what]), share) / 1000


def p99_ms(rows: list[Figures], which: str) -> float:
    return percentile(sorted(us for row in rows for us in row[which]["latency_us"]), 0.99) / 1000


def p99_ratio(figures: Figures, which: str) -> float:
    return round(p99_ms(of(figures, OURS), which) / p99_ms(of(figures, KERNEL), which), 3)


def of(figures: Figures, scheduler: str) -> list[Figures]:
    return [row for row in figures["rows"] if row["scheduler"] == scheduler]


def targets(figures: Figures) -> list[Target]:
    """Worst round for shares and caps; of wake-ups all rounds together, which one bad moment cannot decide."""
    ours = of(figures, OURS)
    worst = round(max(row["shares"]["worst_points"] for row in ours), 2)
    capped = round(max(abs(row["cap"]["capped_percent"] - 50) for row in ours), 2)
    beside_eight, beside_one = p99_ratio(figures, "wake_up"), p99_ratio(figures, "wake_up_one")
    p99 = "p99 from wake-up to running, as a part of the kernel's own, beside"
    ejections = sum(row["ejected"] is not None for row in ours)
    return [
        Target("worst share of any group at any level is off by, points", "<= 3", worst, worst <= 3),
        Target("cpu.max of 50 % is off by, points", "<= 5", capped, capped <= 5),
        Target(f"{p99} eight calls", "<= 0.5", beside_eight, beside_eight <= 0.5),
        Target(f"{p99} one call of eight hogs", "<= 0.5", beside_one, beside_one <= 0.5),
        Target("ejections", "0", ejections, ejections == 0),
    ]


def table(figures: Figures) -> str:
    """A line for each figure: the median round, and the rounds' least and most."""
    lines = [f"  {'':58}{OURS:>24}{KERNEL:>24}"]

    def line(title: str, value: Callable[[Figures], float], digits: int = 1) -> None:
        cells = [spread([value(row) for row in of(figures, name)], digits) for name in SCHEDULERS]
        lines.append(f"  {title:58}" + "".join(f"{cell:>24}" for cell in cells))

    line("worst share is off by, points", lambda row: row["shares"]["worst_points"], 2)
    line("capped at 50 %, beside others: percent", lambda row: row["cap"]["capped_percent"])
    for which, beside in (("wake_up", "beside 8 calls"), ("wake_up_one", "beside one call")):
        for of_what, title in (
            ("latency_us", "wake-up to running"),
            ("late_us", "moment slept for to running"),
        ):
            for share in (0.5, 0.9, 0.99):
                line(
                    f"{beside}: {title}, p{share * 100:g}, ms",
                    functools.partial(late_ms, which, of_what, share),
                    2,
                )
    return "\n".join(lines)


PART: Final = Part(
    "cpu",
    "shares, caps and wake-ups under our scheduler and under the kernel's own",
    3,
    measure,
    targets,
    table,
    is_counted=True,
)
