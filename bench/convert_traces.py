"""Turns published runs of agents into a recording: `python -m bench.convert_traces RUNS.jsonl.gz --run ID ... -o FILE`.

RUNS has one JSON object a line: `id`, `samples` as `[t_s, memory_bytes, cpu_cores]` of the whole container, about one a
second, and `tool_calls` as `{start_s, end_s, tool, command}`. A container's memory does not say whose it is, so this is
assumed: what it held when a call began is the agent's, what comes on top until the call ends is the call's. Calls that
take less than --least, and those inside or across another one, are left in the agent's curve; agent and calls together
are exactly what was sampled, so the demand of a replay does not depend on the split.

The published agents declared nothing. With --declare each call declares what it took at most, as an agent does that has
run its tools before and goes by `agentcg history suggest`.
"""

import argparse
import gzip
import json
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from agentcgroup.client import recordings
from agentcgroup.client.recordings import Call, Curve, Recording, Session, Source
from agentcgroup.daemon.policy.commands import command_class
from agentcgroup.proto.quantity import parse_size

# Changes of the agent's own memory below this are left out: they are noise of the sampling.
_NOISE_BYTES: Final = 1 << 20
# The paper's replay read the "MB" of its samples as MiB.
PAPER_UNITS: Final = 1.048576
# Agents declare round figures; what is over is for the process itself.
_DECLARED_STEP_BYTES: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class Options:
    base_bytes: int = 0
    least_bytes: int = 20 << 20
    units: float = 1.0
    declare: bool = False


def convert(run: dict[str, Any], name: str, priority: str, options: Options) -> tuple[Session, list[Call]]:
    """One run as a session with its calls."""
    times = [float(sample[0]) for sample in run["samples"]]
    sizes = [round(sample[1] * options.units) for sample in run["samples"]]
    chosen: list[tuple[float, float, int, str]] = []
    for each in sorted(run["tool_calls"], key=lambda call: call["start_s"]):
        start, end = each["start_s"], each.get("end_s")
        if end is None or end <= start or (chosen and start < chosen[-1][1]):
            continue
        first, last = bisect_left(times, start), bisect_right(times, end)
        base = sizes[first - 1] if first else sizes[0]
        if first < last and max(sizes[first:last]) - base >= options.least_bytes:
            chosen.append((start, end, base, each.get("command") or each.get("tool") or ""))
    own = list(sizes)
    calls: list[Call] = []
    for number, (start, end, base, command) in enumerate(chosen):
        first, last = bisect_left(times, start), bisect_right(times, end)
        above = [max(0, size - base) for size in sizes[first:last]]
        own[first:last] = [min(size, base) for size in sizes[first:last]]
        offsets = tuple(round((at - start) * 1000, 3) for at in times[first:last])
        calls.append(
            Call(
                call=f"{number}",
                session=name,
                start_ms=round(start * 1000, 3),
                duration_ms=round((end - start) * 1000, 3),
                # A line that goes on in the next one is one line.
                command_class=command_class(["bash", "-c", command.replace("\\\n", " ")]),
                memory=Curve(Source.SAMPLED, offsets, tuple(above)),
                memory_peak_bytes=max(above),
                intent={"memory_bytes": declared_bytes(max(above))} if options.declare else {},
            )
        )
    moments, held = [0.0], [own[0] + options.base_bytes]
    for at, size in zip(times[1:], own[1:], strict=True):
        if abs(size + options.base_bytes - held[-1]) >= _NOISE_BYTES:
            moments.append(round(at * 1000, 3))
            held.append(size + options.base_bytes)
    if times[-1] * 1000 > moments[-1]:
        moments.append(round(times[-1] * 1000, 3))
        held.append(held[-1])
    return Session(name, priority, run["id"], Curve(Source.SAMPLED, tuple(moments), tuple(held))), calls


def declared_bytes(peak_bytes: int) -> int:
    """What an agent declares for a call that took `peak_bytes` before."""
    return (peak_bytes // _DECLARED_STEP_BYTES + 1) * _DECLARED_STEP_BYTES


def find(path: Path, identifier: str) -> dict[str, Any]:
    """The first run with `identifier`. Raises SystemExit."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            run: dict[str, Any] = json.loads(line)
            if run["id"] == identifier:
                return run
    raise SystemExit(f"convert_traces: {path} has no run {identifier!r}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.convert_traces", description=__doc__)
    parser.add_argument("runs", type=Path, metavar="RUNS.jsonl.gz")
    parser.add_argument(
        "--run", action="append", required=True, metavar="ID[=NAME[:PRIORITY]]",
        help="a run to take, as session NAME (ID by default) of PRIORITY (normal); may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--base", type=parse_size, default=0, metavar="SIZE", help="added to every agent, default 0"
    )
    parser.add_argument(
        "--least",
        type=parse_size,
        default=20 << 20,
        metavar="SIZE",
        help="calls that take less stay the agent's, 20M",
    )
    parser.add_argument(
        "--paper-units", action="store_true", help="read the samples' MB as MiB, as the paper's replay did"
    )
    parser.add_argument(
        "--declare", action="store_true", help="calls declare what they took at most, a little rounded up"
    )
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: standard output")
    given = parser.parse_args(arguments)
    options = Options(given.base, given.least, PAPER_UNITS if given.paper_units else 1.0, given.declare)
    sessions: list[Session] = []
    calls: list[Call] = []
    for each in given.run:
        identifier, _, rest = each.partition("=")
        name, _, priority = rest.partition(":")
        session, own = convert(
            find(given.runs, identifier), name or identifier, priority or "normal", options
        )
        sessions.append(session)
        calls += own
    recording = Recording(tuple(sessions), tuple(calls), note=f"converted from {given.runs.name}")
    if given.output:
        with given.output.open("w", encoding="utf-8") as file:
            recordings.write(recording, file)
    else:
        recordings.write(recording, sys.stdout)
    for session in sessions:
        told = [call for call in calls if call.session == session.session]
        print(
            f"{session.session}: {session.memory.offset_ms[-1] / 1000:.0f} s, agent up to "
            f"{session.memory.peak_bytes / 2**20:.0f} MiB, {len(told)} calls up to "
            f"{max((call.memory_peak_bytes or 0 for call in told), default=0) / 2**20:.0f} MiB",
            file=sys.stderr,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
