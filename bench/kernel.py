"""What the kernel half does, measured on a kernel that has it: in the guest, with us and without us in one run.

Run it with `make bench-kernel`, KERNEL=6.18 for another kernel, ARGS="--part cpu" for one part, ARGS="--check" to fail when
a target is missed. The figures go to build/bench/kernel-PART-KERNEL.json.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from bench import kernel_cpu, kernel_door, kernel_memory, kernel_overhead
from bench.kernel_part import Part

# One line for a new part.
PARTS: Final[tuple[Part, ...]] = (
    kernel_cpu.PART,
    kernel_memory.PART,
    kernel_overhead.PART,
    kernel_door.PART,
)

REPOSITORY: Final = Path(__file__).resolve().parent.parent
OUT: Final = REPOSITORY / "build" / "bench"
GUEST_SHARE: Final = "/mnt/share"
GUEST_PYTHON: Final = "/opt/agentcgroup/bin/python"
GUEST_TIMEOUT_S: Final = 1800


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parts = "\n".join(f"  {part.name:10} {part.summary}" for part in PARTS)
    parser = argparse.ArgumentParser(
        prog="python -m bench.kernel", description=__doc__, epilog=f"parts:\n{parts}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--kernel", default="7.3", help="kernel series of the guest; default 7.3")
    parser.add_argument(
        "--part",
        action="append",
        choices=[part.name for part in PARTS],
        help="only this part; may be repeated",
    )
    parser.add_argument("--cpus", type=int, help="processors of the guest; default: vm/run's own")
    parser.add_argument("--rounds", type=int, help="rounds of each part; default: the part's own")
    parser.add_argument("--check", action="store_true", help="exit with 3 when a target is missed")
    parser.add_argument("--here", action="store_true", help="on this machine instead of the guest, as root")
    parser.add_argument("--out", type=Path, default=OUT, help="directory of the results")
    return parser.parse_args(arguments)


def chosen(names: Sequence[str] | None) -> list[Part]:
    """The named parts in the order of the registry; all without names."""
    return [part for part in PARTS if not names or part.name in names]


def measure(part: Part, rounds: int | None) -> dict[str, Any]:
    """What goes into the part's JSON file."""
    began, load_before = time.monotonic(), os.getloadavg()
    figures = part.measure(rounds or part.rounds)
    return {
        "part": part.name,
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "load_average": {"before": load_before, "after": os.getloadavg()},
        "seconds": round(time.monotonic() - began, 1),
        "figures": figures,
        "targets": [asdict(target) for target in part.targets(figures)],
    }


def measure_here(arguments: argparse.Namespace) -> None:
    arguments.out.mkdir(parents=True, exist_ok=True)
    for part in chosen(arguments.part):
        result = measure(part, arguments.rounds)
        path = arguments.out / file_name(part, arguments.kernel)
        path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def measure_in_guest(arguments: argparse.Namespace) -> int:
    """The same in guests, one for all parts of the same clock; their files come back. The first bad exit status, or 0."""
    arguments.out.mkdir(parents=True, exist_ok=True)
    for is_counted in (False, True):
        parts = [part for part in chosen(arguments.part) if part.is_counted is is_counted]
        status = _in_one_guest(parts, arguments, is_counted) if parts else 0
        if status:
            return status
    return 0


def _in_one_guest(parts: Sequence[Part], arguments: argparse.Namespace, is_counted: bool) -> int:
    machine = ["--counted"] if is_counted else []
    if arguments.cpus:
        machine += ["--cpus", str(arguments.cpus)]
    options = [f"--part={part.name}" for part in parts]
    if arguments.rounds:
        options.append(f"--rounds={arguments.rounds}")
    command = [
        str(REPOSITORY / "vm" / "run"), "--kernel", arguments.kernel, "--no-daemon", "--timeout", str(GUEST_TIMEOUT_S),
        "--share", "bench", "--out", str(arguments.out), *machine, "--",
        "env", f"PYTHONPATH={GUEST_SHARE}", GUEST_PYTHON,
        "-m", "bench.kernel", "--here", "--kernel", arguments.kernel, "--out", "/mnt/out", *options,
    ]  # fmt: skip
    return subprocess.run(command, cwd=REPOSITORY, check=False).returncode


def file_name(part: Part, kernel: str) -> str:
    return f"kernel-{part.name}-{kernel}.json"


def report(arguments: argparse.Namespace) -> bool:
    """Prints what was measured. Whether every target was met."""
    all_met = True
    for part in chosen(arguments.part):
        result = json.loads((arguments.out / file_name(part, arguments.kernel)).read_text(encoding="utf-8"))
        print(
            f"\n{part.name}: {part.summary}\nkernel {result['kernel']}, {result['cpus']} CPUs, {result['seconds']} s"
        )
        print(part.table(result["figures"]))
        for target in result["targets"]:
            said = "met   " if target["met"] else "MISSED"
            print(f"  {said}  {target['name']}: {target['got']} (wanted {target['wanted']})")
            all_met = all_met and target["met"]
    return all_met


def main() -> int:
    arguments = parse_arguments()
    if arguments.here:
        measure_here(arguments)
        return 0
    # Or the figures of an earlier run would be told as those of one that failed.
    for part in chosen(arguments.part):
        (arguments.out / file_name(part, arguments.kernel)).unlink(missing_ok=True)
    status = measure_in_guest(arguments)
    if status:
        print(f"bench.kernel: the run in the guest ended with status {status}", file=sys.stderr)
        return 1
    return 3 if not report(arguments) and arguments.check else 0


if __name__ == "__main__":
    sys.exit(main())
