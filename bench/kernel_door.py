"""The transparent door: how late a tool is placed, what it takes before, and what becomes of 200 execs a second.

An agent is a shell, `agentcg session run ... -- bash`, that starts what it is told to. Two arms: with our scheduler, which
holds a tool until it has been placed; without. In each, tools that take 64 MiB at once, one after the other; then programs
that end at once, at a fixed rate, whether the last has ended or not.
"""

import contextlib
import os
import re
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from agentcgroup.bpf import features
from agentcgroup.client import Call, OperatorClient
from bench import spawning, subject
from bench.kernel_part import Figures, Part, spread
from bench.report import Target
from bench.shell import AgentShell

MIB: Final = 1 << 20
TOOL_MIB: Final = 64
TOOLS: Final = 8
PER_SECOND: Final = 200
# Of a guest that is one busy CPU all that time: each takes the machine below many.
SECONDS: Final = 5
WITHIN_S: Final = 120.0
MOST_BEFORE_BYTES: Final = 1_000_000
SESSION: Final = "door"
# Who finds no room for what is reserved where nothing is declared stays where it is; here all find room.
RESERVING: Final = """
[call]
memory = "4M"
[suggest]
enabled = false
"""
_LOST: Final = re.compile(r'^agentcgroup_kernel_events_lost_total\{kind="(\w+)"\} ([0-9.e+]+)$', re.M)


@dataclass(frozen=True, slots=True)
class Tool:
    """One tool. `before_bytes`: by how much the agent's own memory grew at most. None: the kernel or the daemon says not."""

    placed_ms: int | None
    was_held: bool
    held_after_us: int | None
    before_bytes: int | None


class Agent(AgentShell):
    """Its tools become calls."""

    def __init__(self, daemon: subject.Subject, operator: OperatorClient) -> None:
        self.daemon, self.operator = daemon, operator
        self.leaf = daemon.root / SESSION / "agent"
        super().__init__(daemon.operator_socket, SESSION, memory=subject.MEMORY, rule="all,exclude=spawner")

    def told(self) -> tuple[int, int, int]:
        """How many were placed, how many had ended before, and how many no call could be made for."""
        session = self.operator.session(SESSION)
        return session.transparent_placed, session.transparent_missed, session.transparent_left

    def await_told(self, count: int) -> None:
        end = time.monotonic() + WITHIN_S
        while sum(self.told()) < count and time.monotonic() < end:
            time.sleep(0.05)

    def only_call(self) -> Call | None:
        """The live call; None when there is none in time."""
        end = time.monotonic() + WITHIN_S
        while time.monotonic() < end:
            calls = self.operator.calls(SESSION)
            if calls and calls[0].placement_delay_ms is not None:
                return calls[0]
            time.sleep(0.02)
        return None


@contextlib.contextmanager
def peak_of(cgroup: Path) -> Iterator[list[int]]:
    """At the end, by how many bytes its usage rose at most; nothing where memory.peak cannot be reset (before 6.12)."""
    grown: list[int] = []
    try:
        peak = os.open(cgroup / "memory.peak", os.O_RDWR)
    except OSError:
        yield grown
        return
    try:
        os.write(peak, b"reset")
        before = int(os.pread(peak, 64, 0))
        yield grown
        grown.append(int(os.pread(peak, 64, 0)) - before)
    finally:
        os.close(peak)


def one_tool(agent: Agent, fifo: Path) -> Tool:
    """A `dd` that takes 64 MiB before it can write the first byte, and waits for a reader with all of it."""
    reader = os.open(fifo, os.O_RDWR)
    placed = sum(agent.told())
    try:
        with peak_of(agent.leaf) as grown:
            agent.begin(f"dd if=/dev/zero bs={TOOL_MIB}M count=1 status=none > {fifo}")
            agent.await_told(placed + 1)
            call = agent.only_call()
            # It writes when it has filled its buffer.
            os.read(reader, 1)
        if call is not None:
            agent.operator.kill_call(call.id)
    finally:
        os.close(reader)
    agent.run(":")
    if call is None:
        return Tool(None, False, None, grown[0] if grown else None)
    return Tool(call.placement_delay_ms, call.was_held, call.held_after_us, grown[0] if grown else None)


def lost_events(page: str) -> dict[str, int]:
    """By kind, of the metrics page."""
    return {kind: int(float(count)) for kind, count in _LOST.findall(page)}


def at_rate(agent: Agent, programs: spawning.Programs) -> dict[str, Any]:
    """200 execs a second, for so long: every one is told, none is lost."""
    daemon = agent.daemon
    before, cpu_s = agent.told(), daemon.cpu_s()
    said = agent.run(f"{programs.spawner} rate {PER_SECOND} {SECONDS} {programs.tiny}")
    load = spawning.read_load([row.split("\t") for row in said.splitlines()])
    ended_at = time.monotonic()
    agent.await_told(sum(before) + load.started)
    placed, missed, left = (now - then for now, then in zip(agent.told(), before, strict=True))
    lost = lost_events(daemon.metrics())
    return {
        "started": load.started,
        "per_second": round(load.started / load.elapsed_s, 1),
        "placed": placed,
        "missed": missed,
        "left": left,
        "untold": load.started - placed - missed - left,
        "lost": lost,
        # What the memory program did not see is no event of a process: it reads the usage anew at the next charge.
        "lost_in_all": sum(number for kind, number in lost.items() if not kind.startswith("memory_")),
        "charges_unseen": sum(number for kind, number in lost.items() if kind.startswith("memory_")),
        "told_after_s": round(time.monotonic() - ended_at, 2),
        "daemon_cpu_percent": round(100 * (daemon.cpu_s() - cpu_s) / load.elapsed_s, 1),
        "lifetime_p50_ms": round(statistics.median(load.durations_ns) / 1e6, 2),
        "lifetime_p99_ms": round(sorted(load.durations_ns)[len(load.durations_ns) * 99 // 100] / 1e6, 2),
    }


def one_arm(mode: str, programs: spawning.Programs, directory: Path) -> dict[str, Any]:
    """A daemon with the scheduler in this mode."""
    fifo = directory / f"fifo-{mode}"
    os.mkfifo(fifo)
    more = f'[scheduler]\nmode = "{mode}"\n[bpf]\nenabled = "on"\n' + RESERVING
    with (
        subject.running_daemon(more=more) as daemon,
        OperatorClient(daemon.operator_socket) as operator,
    ):
        agent = Agent(daemon, operator)
        agent.run("/bin/true")
        tools = []
        for number in range(TOOLS):
            tools.append(asdict(one_tool(agent, fifo)))
            print(f"door, {mode}: tool {number + 1} of {TOOLS}: {tools[-1]}", flush=True)
        rate = at_rate(agent, programs)
        print(f"door, {mode}: {rate}", flush=True)
        agent.end()
    return {"tools": tools, "rate": rate}


def measure(rounds: int) -> Figures:
    """A round is both arms, or the one that this kernel has."""
    modes = ["full", "off"] if features.sched_ext().is_available else ["off"]
    arms: dict[str, list[dict[str, Any]]] = {mode: [] for mode in modes}
    for number in range(rounds):
        for mode in modes[number % 2 :] + modes[: number % 2]:
            with tempfile.TemporaryDirectory() as scratch:
                programs = spawning.build(Path(scratch))
                arms[mode].append(one_arm(mode, programs, Path(scratch)))
    return {"arms": arms}


def _tools(rounds: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [tool for each in rounds for tool in each["tools"]]


def targets(figures: Figures) -> list[Target]:
    """Of all rounds together."""
    found = []
    for mode, rounds in figures["arms"].items():
        lost = sum(each["rate"]["lost_in_all"] + each["rate"]["untold"] for each in rounds)
        found.append(
            Target(f"{PER_SECOND} execs a second, mode {mode}: events lost or untold", "0", lost, lost == 0)
        )
    tools = _tools(figures["arms"].get("full", []))
    grown = [tool["before_bytes"] for tool in tools if tool["before_bytes"] is not None]
    if grown:
        most = max(grown)
        found.append(
            Target(
                "held: memory charged before placement, bytes, at most",
                f"< {MOST_BEFORE_BYTES}",
                most,
                most < MOST_BEFORE_BYTES,
            )
        )
        held = sum(tool["was_held"] for tool in tools)
        found.append(
            Target(f"of {len(tools)} tools held until placed", str(len(tools)), held, held == len(tools))
        )
    return found


def table(figures: Figures) -> str:
    """Two lines for each arm."""
    lines = []
    for mode, rounds in figures["arms"].items():
        tools = _tools(rounds)
        placed = [float(tool["placed_ms"]) for tool in tools if tool["placed_ms"] is not None]
        began = [tool["held_after_us"] / 1000 for tool in tools if tool["held_after_us"] is not None]
        grown = [tool["before_bytes"] / MIB for tool in tools if tool["before_bytes"] is not None]
        lines.append(
            f"  mode {mode:5} tools placed after {spread(placed) if placed else '-'} ms, "
            f"held from {spread(began, 2) if began else '-'} ms on, "
            f"{sum(tool['was_held'] for tool in tools)} of {len(tools)} until then; "
            f"{spread(grown, 2) if grown else '-'} MiB outside of the call"
        )
        for each in rounds:
            rate = each["rate"]
            lines.append(
                f"  {rate['per_second']}/s: {rate['placed']} placed, {rate['missed']} had ended, {rate['left']} left alone, "
                f"{rate['untold']} untold, {rate['lost_in_all']} lost, {rate['charges_unseen']} charges unseen; "
                f"daemon {rate['daemon_cpu_percent']} % CPU; "
                f"p50 {rate['lifetime_p50_ms']} ms, p99 {rate['lifetime_p99_ms']} ms each"
            )
    return "\n".join(lines)


PART: Final = Part(
    "door", "the transparent door: how late, what before, and how fast", 1, measure, targets, table, True
)
