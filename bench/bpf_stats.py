"""What the verifier of the running kernel makes of every BPF program: instructions and states, as a table and as JSON.

    python -m bench.bpf_stats --out build/bpf-stats/here.json
    python -m bench.bpf_stats --compare build/bpf-stats/here.json    which figures differ from those

Needs root. A program that this kernel does not take is listed with its answer; it is no failure unless nothing loads.
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
from agentcgroup.bpf.libbpf import BpfError
from agentcgroup.bpf.programs import Programs

# "processed 312 insns (limit 1000000) max_states_per_insn 1 total_states 22 peak_states 22 mark_read 5"
_PROCESSED: Final = re.compile(r"processed (\d+) insns .* total_states (\d+) peak_states (\d+)")
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


def measure(path: Path) -> tuple[list[Figures], list[str]]:
    """The figures of the object's programs, and what is missing with the reason."""
    name = path.name.removesuffix(".bpf.o")
    try:
        programs = Programs(path, optional=_OPTIONAL, with_statistics=True)
    except BpfError as error:
        return [], [f"{name}: {error}"]
    with programs:
        figures = []
        for one in programs.statistics():
            found = _PROCESSED.search(one.verifier)
            walked, total, peak = map(int, found.groups()) if found else (one.verified_instructions, 0, 0)
            figures.append(
                Figures(name, one.name, one.section, one.instructions, one.jited_bytes, walked, total, peak)
            )
        return figures, [f"{name}: {one.name}: {one.reason}" for one in programs.absent]


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
    arguments = parser.parse_args()
    figures: list[Figures] = []
    missing: list[str] = []
    for path in sorted(Path(agentcgroup.bpf.__file__).parent.glob("*.bpf.o")):
        found, absent = measure(path)
        figures += found
        missing += absent
    print(f"kernel {platform.release()}")
    print(table(figures))
    for line in missing:
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
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "kernel": platform.release(),
            "programs": [asdict(one) for one in figures],
            "missing": missing,
        }
        arguments.out.write_text(json.dumps(content, indent=2) + "\n")
    return 0 if figures else 1


if __name__ == "__main__":
    sys.exit(main())
