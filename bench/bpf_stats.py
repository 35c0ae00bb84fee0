"""What the verifier of the running kernel makes of every BPF program: instructions and states, as a table and as JSON.

    python -m bench.bpf_stats --out build/bpf-stats/here.json
    python -m bench.bpf_stats --compare build/bpf-stats/here.json    which figures differ from those

Needs root. A program that this kernel does not take is listed with its answer. With --check it is a failure when an object
does not load, or when a program takes the verifier more than VERIFIED_MAX instructions.
"""

import argparse
import json
import platform
import re
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import agentcgroup.bpf
from agentcgroup.bpf import features
from agentcgroup.bpf.libbpf import BpfError
from agentcgroup.bpf.programs import Programs

# "processed 312 insns (limit 1000000) max_states_per_insn 1 total_states 22 peak_states 22 mark_read 5"
_PROCESSED: Final = re.compile(r"processed (\d+) insns .* total_states (\d+) peak_states (\d+)")
# Instructions that the verifier may walk for one program: a quarter of what the kernel allows at most
# (BPF_COMPLEXITY_LIMIT_INSNS), so that a kernel whose verifier is less clever still takes it.
VERIFIED_MAX: Final = 250_000
# Programs of these kinds may be missing on a kernel; anything else has to load.
_OPTIONAL: Final = ("fentry/", "fexit/")


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one program. `verified` instructions are what the verifier walked, `total_states` what it kept."""

    object: str
    program: str
    section: str
    instructions: int
    jited_bytes: int
    verified: int
    total_states: int
    peak_states: int


@dataclass(frozen=True, slots=True)
class Measured:
    """One object. `missing`: programs that this kernel does not take. `failure`: why nothing of it loads, else ""."""

    object: str
    figures: list[Figures]
    missing: list[str]
    failure: str = ""


def measure(path: Path) -> Measured:
    """Loads the object and asks the verifier."""
    name = path.name.removesuffix(".bpf.o")
    try:
        programs = Programs(path, optional=_OPTIONAL, with_statistics=True)
    except BpfError as error:
        return Measured(name, [], [], str(error))
    with programs:
        figures = []
        for one in programs.statistics():
            found = _PROCESSED.search(one.verifier)
            walked, total, peak = map(int, found.groups()) if found else (one.verified_instructions, 0, 0)
            figures.append(
                Figures(name, one.name, one.section, one.instructions, one.jited_bytes, walked, total, peak)
            )
        return Measured(name, figures, [f"{one.name}: {one.reason}" for one in programs.absent])


def measure_all() -> list[Measured]:
    """Every object of the installed package."""
    return [measure(path) for path in sorted(Path(agentcgroup.bpf.__file__).parent.glob("*.bpf.o"))]


def faults(measured: list[Measured], *, has_sched_ext: bool) -> list[str]:
    """What a build must not have. The scheduler is for kernels that take one."""
    found = [
        f"{one.object} does not load: {one.failure}"
        for one in measured
        if one.failure and (one.object != "scheduler" or has_sched_ext)
    ]
    return found + [
        f"{each.object}/{each.program}: {each.verified} instructions for the verifier, bound {VERIFIED_MAX}"
        for one in measured
        for each in one.figures
        if each.verified > VERIFIED_MAX
    ]


def write(measured: list[Measured], path: Path) -> None:
    """The figures as JSON."""
    content = {
        "kernel": platform.release(),
        "programs": [asdict(each) for one in measured for each in one.figures],
        "missing": _missing(measured),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _missing(measured: list[Measured]) -> list[str]:
    return [
        f"{one.object}: {line}"
        for one in measured
        for line in ([one.failure] if one.failure else one.missing)
    ]


def table(figures: list[Figures]) -> str:
    """The figures for a terminal."""
    lines = [f"{'program':34} {'insns':>6} {'jited':>7} {'verified':>9} {'states':>7} {'peak':>6}"]
    lines += [
        f"{one.object + '/' + one.program:34} {one.instructions:6} {one.jited_bytes:7} {one.verified:9} "
        f"{one.total_states:7} {one.peak_states:6}"
        for one in figures
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="where the JSON goes")
    parser.add_argument("--compare", type=Path, help="JSON of an earlier run to print differences from")
    parser.add_argument(
        "--check",
        action="store_true",
        help="fail when an object does not load or a program has outgrown its bound",
    )
    arguments = parser.parse_args()
    measured = measure_all()
    figures = [each for one in measured for each in one.figures]
    print(f"kernel {platform.release()}")
    print(table(figures))
    for line in _missing(measured):
        print(f"missing: {line}")
    if arguments.compare:
        before = {
            (one["object"], one["program"]): one["verified"]
            for one in json.loads(arguments.compare.read_text())["programs"]
        }
        for one in figures:
            earlier = before.get((one.object, one.program))
            if earlier is not None and earlier != one.verified:
                print(
                    f"changed: {one.object}/{one.program}: {earlier} -> {one.verified} verified instructions"
                )
    if arguments.out:
        write(measured, arguments.out)
    wrong = faults(measured, has_sched_ext=features.sched_ext().is_available) if arguments.check else []
    for line in wrong:
        print(f"fault: {line}", file=sys.stderr)
    return 0 if figures and not wrong else 1


if __name__ == "__main__":
    sys.exit(main())
