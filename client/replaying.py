"""Replaying a recording with real memory: scripts for `agentcg act`, one process per agent, and what they measured.

Either as real sessions and calls of the daemon, or bare: in cgroups of the caller's, where nobody rules, for comparison.
"""

import contextlib
import math
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from agentcgroup.client import places
from agentcgroup.client.errors import ClientError, InvalidRequest
from agentcgroup.client.operator_client import OperatorClient
from agentcgroup.client.recordings import Call, Curve, Recording, Session, peak_curve
from agentcgroup.proto.words import Verdict

# From the word to go until all begin at one moment.
HEAD_START_US: Final = 50_000
DEFAULT_STEP_BYTES: Final = 1 << 20
SMALL_PAGE_BYTES: Final = 4096
# How an option of `agentcg run` is called that declares a field of an intent.
_OPTIONS: Final = {
    "memory_bytes": ("--memory", ""), "memory_max_bytes": ("--memory-max", ""), "cpu_milli": ("--cpu", "m"),
    "cpu_weight": ("--weight", ""), "cpu_class": ("--class", ""), "pids_max": ("--pids", ""),
    "on_exceed": ("--on-exceed", ""),
}  # fmt: skip
_MEMORY: Final = frozenset({"memory_bytes", "memory_max_bytes"})
# Ends by a limit that a replay declares, too.
_OWN_LIMIT: Final = frozenset({Verdict.MEMORY_LIMIT_CALL, Verdict.THROTTLE_LIMIT})
# What the replaying program itself takes on top of what it plays: page tables, its stack, the start of a call.
_MARGIN_BYTES: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class Pace:
    """How a recording is played: `speed` times as fast, `scale` times the memory, allocated in steps of `step_bytes`.

    Memory is taken in pages of `page_bytes`; where the kernel is not set up for such (mTHP), in smaller ones.
    """

    speed: float = 1.0
    scale: float = 1.0
    step_bytes: int = DEFAULT_STEP_BYTES
    page_bytes: int = SMALL_PAGE_BYTES

    def us(self, recorded_ms: float) -> int:
        return round(recorded_ms * 1000 / self.speed)

    def bytes(self, recorded_bytes: float) -> int:
        return round(recorded_bytes * self.scale)


@dataclass(frozen=True, slots=True)
class Step:
    """One allocation, or a release (`took_us` None). Times from the common beginning."""

    who: str
    at_us: int
    took_us: int | None
    held_bytes: int


@dataclass(frozen=True, slots=True)
class PlayedCall:
    """`status`: the exit status, 128 and more for a signal. `tries`: how often it was asked for until it was let in."""

    call: str
    started_us: int
    ended_us: int
    status: int
    tries: int


@dataclass(slots=True)
class PlayedSession:
    """What became of one session. `completed_us` None: the agent did not live to see the end."""

    session: str
    priority: str
    calls_recorded: int
    # What its own limit stopped when it was recorded may be stopped by it again.
    stopped_when_recorded: tuple[str, ...] = ()
    completed_us: int | None = None
    agent_status: int | None = None
    # What it said last when it did not end well.
    errors: str = ""
    calls: list[PlayedCall] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)

    @property
    def survived(self) -> bool:
        """The agent came to its end and every call to its own, or to the limit that stopped it when it was recorded."""
        as_recorded = sum(call.status == 0 or call.call in self.stopped_when_recorded for call in self.calls)
        return self.completed_us is not None and as_recorded == self.calls_recorded

    @property
    def step_us(self) -> list[int]:
        """How long each allocation took."""
        return [step.took_us for step in self.steps if step.took_us is not None]

    def held(self) -> list[tuple[int, int]]:
        """Memory of agent and calls together over time: from each moment (us) on so many bytes."""
        ends = [(call.ended_us, call.call, 0) for call in self.calls]
        changes = sorted([*((step.at_us, step.who, step.held_bytes) for step in self.steps), *ends])
        now: dict[str, int] = {}
        course: list[tuple[int, int]] = []
        for at_us, who, held_bytes in changes:
            now[who] = held_bytes
            course.append((at_us, sum(now.values())))
        return course


def percentile(values: Sequence[float], share: float) -> float | None:
    """The least of `values` that at least `share` of them do not exceed; None of nothing."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None


# ---- scripts


def curve_of(call: Call) -> Curve:
    """What is played of `call`: its curve, or a guess from its peak."""
    if call.memory.offset_ms:
        return call.memory
    return peak_curve(call.memory_peak_bytes or 0, call.duration_ms)


def _points(curve: Curve, pace: Pace, until_ms: float | None = None) -> Iterator[str]:
    for offset_ms, size in curve.points:
        yield f"point {pace.us(offset_ms)} {pace.bytes(size)}"
    if until_ms is not None and curve.offset_ms and until_ms > curve.offset_ms[-1]:
        # It holds what it has until its recorded end.
        yield f"point {pace.us(until_ms)} {pace.bytes(curve.bytes[-1])}"


def _options_of(call: Call, session: Session, pace: Pace) -> Iterator[str]:
    for name, value in call.intent.items():
        if name in _OPTIONS:
            option, unit = _OPTIONS[name]
            yield option
            yield f"{pace.bytes(int(value)) if name in _MEMORY else value}{unit}"
    if call.command_class:
        # What runs is this program; what the daemon learns is to be about what was recorded.
        yield "--label"
        yield f"project={session.project or 'replay'}: {call.command_class}"[: len("project=") + 200]


def script_of(recording: Recording, session: Session, pace: Pace) -> str:
    """What `agentcg act` is told about `session`."""
    lines = [f"pages {pace.page_bytes}", f"step {pace.step_bytes}", "agent", *_points(session.memory, pace)]
    for number, call in enumerate(recording.calls_of(session.session)):
        lines.append(f"call {_name_of(number, call)} {pace.us(call.start_ms)} {pace.us(call.duration_ms)}")
        lines += [f"option {_one_line(word)}" for word in _options_of(call, session, pace)]
        lines += _points(curve_of(call), pace, call.duration_ms)
    return "\n".join(lines) + "\n"


def _name_of(number: int, call: Call) -> str:
    """Names of recordings may hold anything; these are ours."""
    return f"{number}:{''.join(each for each in call.call if each.isalnum() or each in '-._')[:40]}"


def _one_line(word: str) -> str:
    return "".join(each if each.isprintable() else "?" for each in word)


# ---- stages: where it is played


def safe_name(session: Session) -> str:
    """The session's name as a part of a path and of a session's name: a recording may say anything."""
    kept = (each if each.isascii() and each.isalnum() else "-" for each in session.session.lower())
    return "".join(kept)[:48] or "-"


def name_of(session: Session) -> str:
    """What the daemon calls a session that is replayed."""
    return f"replay-{safe_name(session)}"


class Stage(Protocol):
    """Where sessions run."""

    def launcher(self, session: Session) -> list[str]:
        """What the agent starts a call with, before its options; empty: directly."""

    def place(self, session: Session, pid: int) -> None:
        """The agent is process `pid` from now on."""


class BareStage:
    """Each session in the cgroup `root`/NAME, made when missing; limits are the caller's to set. Nobody rules."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def launcher(self, session: Session) -> list[str]:
        return []

    def place(self, session: Session, pid: int) -> None:
        group = self._root / safe_name(session)
        try:
            group.mkdir(exist_ok=True)
            (group / "cgroup.procs").write_text(f"{pid}\n")
        except OSError as error:
            raise InvalidRequest(
                f"{group} cannot be used: {error}",
                "Name a cgroup (v2) whose controllers are delegated, as root",
            ) from error


class DaemonStage:
    """Each session is one of the daemon's, made before and gone with its agent, or afterwards."""

    def __init__(self, client: OperatorClient, sessions: Mapping[str, str]) -> None:
        """`sessions` has the socket directory of each."""
        self._client = client
        self._sessions = sessions

    def launcher(self, session: Session) -> list[str]:
        return [places.launcher(), "run", "--session-dir", self._sessions[session.session], "--quiet"]

    def place(self, session: Session, pid: int) -> None:
        self._client.place_agent(name_of(session), pid)


@contextlib.contextmanager
def daemon_stage(
    client: OperatorClient, recording: Recording, pace: Pace, memory_bytes: int | None = None
) -> Iterator[DaemonStage]:
    """Makes the sessions of `recording`, each with `memory_bytes`, by default all of the host's; removes them at the end."""
    most_bytes = memory_bytes or client.host().memory_capacity_bytes
    directories: dict[str, str] = {}
    made: list[str] = []
    try:
        for session in recording.sessions:
            agent_bytes = pace.bytes(session.memory.peak_bytes) + _MARGIN_BYTES
            opened = client.create_session(
                name_of(session),
                priority=session.priority,
                labels={"project": session.project or "replay"},
                memory=most_bytes,
                agent_memory=agent_bytes,
                # What was promised to an agent is free for the others once it has come to its end.
                ends_with_agent=True,
            )
            made.append(opened.name)
            directories[session.session] = opened.socket_dir
        yield DaemonStage(client, directories)
    finally:
        for name in made:
            with contextlib.suppress(ClientError):
                client.remove_session(name, reason="the replay is over")


# ---- playing


def play(recording: Recording, stage: Stage, pace: Pace, deadline_s: float = 3600.0) -> list[PlayedSession]:
    """Plays all sessions at once from one common beginning; what became of each, in the recording's order."""
    with tempfile.TemporaryDirectory(prefix="agentcg-replay-") as directory:
        # Tools of other users must reach what they write to.
        os.chmod(directory, 0o755)
        agents: list[tuple[Session, subprocess.Popen[bytes], Path]] = []
        starts: list[socket.socket] = []
        try:
            for number, session in enumerate(recording.sessions):
                script, results = Path(directory, f"{number}.script"), Path(directory, f"{number}.results")
                script.write_text(script_of(recording, session, pace), encoding="utf-8")
                words = [places.launcher(), "act", str(script), str(results), "-"]
                launcher = stage.launcher(session)
                words += ["--", *launcher] if launcher else []
                # Launchers say there what they were refused, which is counted; it is of interest when an agent fails.
                ours, theirs = socket.socketpair()
                starts.append(ours)
                with theirs, errors_of(results).open("wb") as errors:
                    agent = subprocess.Popen(words, stdin=theirs.fileno(), stderr=errors)
                agents.append((session, agent, results))
                stage.place(session, agent.pid)
            begin_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000 + HEAD_START_US
            for start in starts:
                # Whoever is gone already says so by its status, and must not end us by SIGPIPE.
                with contextlib.suppress(BrokenPipeError, ConnectionResetError), start:
                    start.send(b"%d\n" % begin_us, socket.MSG_NOSIGNAL)
            end = time.monotonic() + deadline_s
            played = []
            for session, agent, results in agents:
                status = _wait(agent, end)
                played.append(_played(recording, session, status, results))
            return played
        finally:
            for _, agent, _ in agents:
                if agent.poll() is None:
                    agent.kill()
                agent.wait()
            for start in starts:
                start.close()


def errors_of(results: Path) -> Path:
    """Where agent and launchers of a session complain."""
    return results.with_suffix(".errors")


def _wait(agent: "subprocess.Popen[bytes]", end: float) -> int | None:
    try:
        return agent.wait(max(0.0, end - time.monotonic()))
    except subprocess.TimeoutExpired:
        agent.kill()
        agent.wait()
        return None


def _played(recording: Recording, session: Session, status: int | None, results: Path) -> PlayedSession:
    calls = recording.calls_of(session.session)
    played = PlayedSession(
        session.session,
        session.priority,
        len(calls),
        tuple(_name_of(number, call) for number, call in enumerate(calls) if call.verdict in _OWN_LIMIT),
        agent_status=None if status is None else status if status >= 0 else 128 - status,
    )
    if status != 0:
        played.errors = errors_of(results).read_text(encoding="utf-8", errors="replace")[-1000:]
    text = results.read_text(encoding="utf-8") if results.exists() else ""
    for line in text.splitlines():
        what, who, *rest = line.split(" ")
        numbers = [int(each) for each in rest]
        match what, numbers:
            case "step", [at_us, took_us, held_bytes]:
                played.steps.append(Step(who, at_us, took_us, held_bytes))
            case "free", [at_us, held_bytes]:
                played.steps.append(Step(who, at_us, None, held_bytes))
            case "call", [started_us, ended_us, exit_status, tries]:
                played.calls.append(PlayedCall(who, started_us, ended_us, exit_status, tries))
            case "done", [_, ended_us] if who == "agent" and status == 0:
                played.completed_us = ended_us
    return played
