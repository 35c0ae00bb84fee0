"""What the lifecycle programs cost: a fork+exec+wait with them and without, paired in one run, and a record to the daemon.

    python -m bench.bpf_events --out build/bench/bpf-events.json

Rounds of three short blocks, in changing order: programs detached; attached, in a cgroup with books, with the records that
the daemon asks for; attached, in a cgroup of nobody's. What is compared is the median of each block with the detached one
of its own round, so that what disturbs the machine for a while disturbs both. Needs root and a kernel with tracing programs.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from agentcgroup.bpf.abi import EventKind
from agentcgroup.bpf.lifecycle import Lifecycle
from agentcgroup.bpf.records import Record
from agentcgroup.cgroups.cgroup import Cgroup
from agentcgroup.cgroups.scratch import scratch_cgroup
from bench import spawning
from bench.figures import percentile
from bench.spawning import Method, Programs, Way

ROUNDS = 30
STARTS = 200
# What the daemon asks for; see daemon/host/kernel_events.py.
DAEMON_KINDS = (EventKind.EXIT, EventKind.OOM_VICTIM)


@dataclass(frozen=True, slots=True)
class Cost:
    """What a block costs more than the detached one of its round, per start, at the median and between the quartiles."""

    bare_us: float
    added_us: float
    added_low_us: float
    added_high_us: float
    added_percent: float


def median_us(programs: Programs, cgroup: Cgroup, directory: Path) -> float:
    """The median of one block of starts in `cgroup`."""
    way = Way("start", Method.SPAWN, (programs.tiny,))
    plan = directory / "plan"
    durations = spawning.measure_latency(programs, [way], [STARTS], 0, plan, cgroup=Path(cgroup.path))[
        "start"
    ]
    return statistics.median(durations) / 1000


def compare(bare: list[float], with_programs: list[float]) -> Cost:
    """Pairs of the same round."""
    added = sorted(int((more - less) * 1000) for less, more in zip(bare, with_programs, strict=True))
    low, middle, high = (percentile(added, share) / 1000 for share in (0.25, 0.5, 0.75))
    base = statistics.median(bare)
    return Cost(
        round(base, 2), round(middle, 2), round(low, 2), round(high, 2), round(100 * middle / base, 2)
    )


def measure_starts(rounds: int, directory: Path) -> dict[str, Cost]:
    """The cost of a start inside and outside of the accounts."""
    programs = spawning.build(directory)
    blocks: dict[str, list[float]] = {"detached": [], "account": [], "nobody": []}
    with scratch_cgroup() as ours, scratch_cgroup() as others:
        median_us(programs, ours, directory)
        for number in range(rounds):
            names = list(blocks)
            for name in names[number % 3 :] + names[: number % 3]:
                if name == "detached":
                    blocks[name].append(median_us(programs, ours, directory))
                    continue
                lifecycle = Lifecycle(lambda _: None, kinds=DAEMON_KINDS, with_children=False)
                try:
                    lifecycle.open_account(ours.id)
                    place = ours if name == "account" else others
                    blocks[name].append(median_us(programs, place, directory))
                finally:
                    lifecycle.close()
    return {name: compare(blocks["detached"], blocks[name]) for name in ("account", "nobody")}


def measure_drain(directory: Path) -> dict[str, float]:
    """What a record costs the daemon, of every kind mixed as starts make them, with decoding and without an asyncio loop."""
    programs = spawning.build(directory)
    records: list[Record] = []
    with scratch_cgroup() as ours:
        lifecycle = Lifecycle(records.append, ring_bytes=4 << 20)
        try:
            lifecycle.open_account(ours.id)
            best_us = []
            for _ in range(5):
                median_us(programs, ours, directory)
                median_us(programs, ours, directory)
                records.clear()
                began = time.process_time_ns()
                while lifecycle.drain():
                    pass
                best_us.append((time.process_time_ns() - began) / 1000 / len(records))
            lost = sum(lifecycle.lost().values())
        finally:
            lifecycle.close()
    return {
        "per_record_us": round(statistics.median(best_us), 3),
        "records_each": len(records),
        "lost": lost,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="where the JSON goes")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"default {ROUNDS}")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        print("bench.bpf_events: needs root, to make cgroups and to load programs", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as scratch:
        starts = measure_starts(arguments.rounds, Path(scratch))
        drain = measure_drain(Path(scratch))
    print(f"kernel {platform.release()}, {arguments.rounds} rounds of {STARTS} starts")
    for name, cost in starts.items():
        where = "in a cgroup with books" if name == "account" else "in a cgroup of nobody's"
        print(
            f"start {where}: {cost.bare_us} us without, +{cost.added_us} us with ({cost.added_percent} %), "
            f"quartiles of the rounds {cost.added_low_us} to {cost.added_high_us} us"
        )
    print(f"record to the daemon: {drain['per_record_us']} us of CPU each, {drain['lost']} lost")
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "kernel": platform.release(),
            "rounds": arguments.rounds,
            "starts": {name: asdict(cost) for name, cost in starts.items()},
            "drain": drain,
        }
        arguments.out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
