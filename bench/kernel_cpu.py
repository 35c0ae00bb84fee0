"""CPU shares, caps and wake-up latency under our scheduler and under the kernel's own, in one run: JSON on stdout.

Needs root, cgroup v2 with the cpu controller, sched_ext and a C compiler: run it in the guest,

    vm/run --kernel 7.3 --share bench -- sh -c 'cd /mnt/share && /opt/agentcgroup/bin/python -m bench.kernel_cpu'
"""

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from agentcgroup.bpf.scheduler import CpuScheduler, LatencyClass, SchedulerMode
from agentcgroup.cgroups.scratch import scratch_cgroup

SPIN: Final = ("/bin/sh", "-c", "while :; do :; done")
SESSIONS: Final = {
    "a": (100, {"x": 100, "y": 300}),
    "b": (200, {"x": 50, "y": 100, "z": 50}),
    "c": (300, {"x": 400, "y": 100}),
}
SPINNERS_PER_CALL: Final = 2
HOGS: Final = 8


def make(path: Path, weight: int = 100, *, is_inner: bool = False) -> Path:
    path.mkdir()
    (path / "cpu.weight").write_text(str(weight))
    if is_inner:
        (path / "cgroup.subtree_control").write_text("+cpu")
    return path


@contextlib.contextmanager
def spinning(places: dict[Path, int]) -> Iterator[None]:
    """So many endless loops in each cgroup."""
    children = []
    try:
        for group, count in places.items():
            for _ in range(count):
                child = subprocess.Popen(SPIN)
                children.append(child)
                (group / "cgroup.procs").write_text(str(child.pid))
        yield
    finally:
        for child in children:
            child.kill()
        for child in children:
            child.wait()


def used_s(groups: list[Path], measured_s: float) -> dict[Path, float]:
    """CPU time of each over `measured_s`, after a second in which all of them start."""

    def read(group: Path) -> float:
        return int((group / "cpu.stat").read_text().split()[1]) / 1e6

    time.sleep(1)
    before = {group: read(group) for group in groups}
    time.sleep(measured_s)
    return {group: read(group) - before[group] for group in groups}


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
    """Percent of one CPU that a group capped at 50 % gets, beside an uncapped one."""
    capped, free = make(ground / "capped"), make(ground / "free")
    (capped / "cpu.max").write_text("50000 100000")
    with spinning({capped: 2, free: 2}):
        used = used_s([capped, free], measured_s)
    return {"capped_percent": 100 * used[capped] / measured_s, "free_percent": 100 * used[free] / measured_s}


def wake_up(ground: Path, probe: Path, rounds: int, scheduler: CpuScheduler | None) -> dict[str, float]:
    """How late an interactive call runs beside a call with eight batch hogs, both of weight 100."""
    hogs, call = make(ground / "hogs"), make(ground / "call")
    if scheduler is not None:
        scheduler.set_class(hogs.stat().st_ino, LatencyClass.BATCH)
        scheduler.set_class(call.stat().st_ino, LatencyClass.INTERACTIVE)
    with spinning({hogs: HOGS}):
        child = subprocess.Popen((str(probe), str(rounds)), stdout=subprocess.PIPE, text=True)
        (call / "cgroup.procs").write_text(str(child.pid))
        late_us = sorted(int(line) for line in child.communicate()[0].split())
    parts = {"p50_us": 0.5, "p90_us": 0.9, "p99_us": 0.99, "most_us": 1.0}
    return {name: late_us[min(len(late_us) - 1, int(len(late_us) * part))] for name, part in parts.items()}


def measure(arguments: argparse.Namespace, probe: Path) -> list[dict[str, Any]]:
    """The two schedulers in turn, so that whatever else the machine does meets both."""
    found = []
    for number in range(arguments.rounds):
        for name in ("agentcgroup", "kernel"):
            with contextlib.ExitStack() as stack:
                scheduler = None
                if name == "agentcgroup":
                    scheduler = stack.enter_context(CpuScheduler())
                    scheduler.attach_scheduler(SchedulerMode.FULL)
                row: dict[str, Any] = {"scheduler": name, "round": number}
                for what, figure in (
                    ("shares", lambda ground: shares(ground, arguments.seconds)),
                    ("cap", lambda ground: cap(ground, arguments.seconds)),
                    ("wake_up", lambda ground, s=scheduler: wake_up(ground, probe, arguments.wake_ups, s)),
                ):
                    with scratch_cgroup("cpu", deadline_s=30) as cgroup:
                        row[what] = figure(Path(cgroup.path))
                if scheduler is not None:
                    end = scheduler.end()
                    row["ejected"] = str(end) if end else None
                    row["counters"] = scheduler.counters()
                found.append(row)
                print(json.dumps(row), file=sys.stderr)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=6.0, help="how long shares and caps are measured")
    parser.add_argument("--wake-ups", type=int, default=700, help="how many wake-ups are timed, 10 ms apart")
    parser.add_argument("--rounds", type=int, default=2, help="how often each scheduler is measured")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        probe = Path(directory) / "wake"
        subprocess.run(("cc", "-O2", "-o", str(probe), str(Path(__file__).with_name("wake.c"))), check=True)
        rows = measure(arguments, probe)
    json.dump({"kernel": platform.release(), "cpus": os.cpu_count(), "rows": rows}, sys.stdout, indent=2)
    print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
