"""Whether a warning is on the stream before the end, for every limit that a call can grow into.

call       its own memory.max: the kernel kills it
session    what the calls of its session may use together, with another call at rest: the kernel kills the one that grows
bystander  the same, and the one at rest holds the most: the kernel kills that one
yields     the memory of all sessions, with an older call at rest in another: the daemon holds back the one that grows, and
           ends it when that does not help
makes way  the same, and the one that grows is of high priority: the daemon ends the one at rest, which holds more than it
           declared

Each grows at a rate at which it is so many milliseconds from its soft limit, or from the mark, to the end, if nothing
slows it.
"""

import contextlib
import dataclasses
import mmap
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from agentcgroup.client import Client, Feedback, FeedbackKind
from agentcgroup.client.operator_client import OperatorClient
from bench.listening import WITHIN_S, Ear, launch
from bench.spawning import BenchError
from bench.subject import SESSION, Subject, running_daemon

MIB: Final = 1 << 20


class Limit(StrEnum):
    CALL = "call"
    SESSION = "session"
    BYSTANDER = "bystander"
    YIELDS = "yields"
    MAKES_WAY = "makes way"


# So much growth at least has to be left for a warning to be owed.
OWED_MS: Final = 200
LEFT_MS: Final = (1000, 500, 200, 100, 50, 20, 5)
MAXIMA_MIB: Final = (48, 160)
SESSION_MIB: Final = 64
REPETITIONS: Final = 3
# The memory of all sessions, and in what time its end comes from where twice the daemon's margin is left.
HOST_MIB: Final = 640
HOST_MARGIN_MIB: Final = 16
HOST_LEFT_MS: Final = (1000, 500, 200, 100)
HOST_CONFIGURATION: Final = '[protection]\nslow_limit = "1s"\nfreeze_limit = "1s"\n'
# What a tool takes that has not begun to grow, with what the kernel keeps for its cgroup.
TOOL_MIB: Final = 1
# Whatever tells a call that it may not go on like this.
_TOLD: Final = frozenset({FeedbackKind.WARNING, FeedbackKind.THROTTLED, FeedbackKind.FROZEN})


@dataclass(frozen=True, slots=True)
class Warned:
    """One call that was ended because something grew. None: it was not warned, or nobody knows."""

    limit: Limit
    maximum_mib: int
    left_ms: int
    warned_after_ms: float | None  # its soft limit, or the mark, was reached
    before_end_ms: float | None  # so long it lived after the message was there


@dataclass(frozen=True, slots=True)
class _Tool:
    """A running `climb`; `seen` has what it saw last, in its first 16 bytes."""

    process: "subprocess.Popen[str]"
    call_id: str
    cgroup: Path
    seen: Path

    def go(self, events: Path) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{events}\n")
        self.process.stdin.close()

    def times_ns(self) -> tuple[int, int]:
        """When the limit was reached, 0: it was not; and when it last ran."""
        reached_ns, alive_ns = struct.unpack("QQ", self.seen.read_bytes()[:16])
        return reached_ns, alive_ns


@contextlib.contextmanager
def _tool(
    subject: Subject, ear: Ear, climb: Path, at_once_mib: int, more_mib: int, rate: float, *options: str
) -> Iterator[_Tool]:
    """Has said that it is ready, and waits to be told to go."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(bytes(mmap.PAGESIZE))
        file.flush()
        command = launch(
            subject, str(climb), str(at_once_mib), str(more_mib), str(rate), file.name, options=options
        )
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        try:
            if process.stdout.readline() != "ready\n":
                raise BenchError(f"{climb.name} did not begin")
            _, started = ear.until(FeedbackKind.STARTED)[FeedbackKind.STARTED]
            name = Path(subject.session_dir).name
            cgroup = subject.root / name / "calls" / started.call_id
            yield _Tool(process, started.call_id, cgroup, Path(file.name))
        finally:
            process.kill()
            process.wait()


@contextlib.contextmanager
def _operator(subject: Subject) -> Iterator[OperatorClient]:
    with OperatorClient(subject.directory / "run" / "operator.sock") as operator:
        yield operator


@contextlib.contextmanager
def _session(
    subject: Subject, name: str, memory_mib: int, agent_mib: int, priority: str = "normal"
) -> Iterator[tuple[Subject, Ear]]:
    """A session of its own in the same daemon, and its stream."""
    with _operator(subject) as operator:
        session = operator.create_session(
            name, memory=f"{memory_mib}M", agent_memory=f"{agent_mib}M", priority=priority
        )
        try:
            with Ear(Client(session.socket_dir)) as ear:
                yield dataclasses.replace(subject, session_dir=session.socket_dir), ear
        finally:
            operator.remove_session(name)


# ---- one case each


def _own_limit(subject: Subject, ear: Ear, climb: Path, maximum_mib: int, left_ms: int) -> Warned:
    margin_mib = _margin_mib(maximum_mib)
    # At once up to a margin before the soft limit.
    at_once_mib = maximum_mib - 2 * margin_mib - TOOL_MIB
    options = ("--memory", "16M", "--memory-max", f"{maximum_mib}M")
    rate = margin_mib * MIB * 1000 / left_ms
    with _tool(subject, ear, climb, at_once_mib, 4 * margin_mib, rate, *options) as tool:
        _await_mark(tool.cgroup / "memory.high")
        tool.go(tool.cgroup / "memory.events")
        heard = ear.of_call(tool.call_id, FeedbackKind.ENDED)
        tool.process.wait()
        return _timed(Limit.CALL, maximum_mib, left_ms, heard, tool.times_ns(), is_itself=True)


def _session_limit(subject: Subject, climb: Path, limit: Limit, maximum_mib: int, left_ms: int) -> Warned:
    margin_mib = _margin_mib(maximum_mib)
    rests_mib = maximum_mib * 5 // 8 if limit is Limit.BYSTANDER else maximum_mib // 4
    at_once_mib = maximum_mib - rests_mib - 2 * margin_mib - 2 * TOOL_MIB
    rate = margin_mib * MIB * 1000 / left_ms
    with contextlib.ExitStack() as stack:
        inside, ear = stack.enter_context(_session(subject, "full", maximum_mib + 16, 16))
        rests = stack.enter_context(_tool(inside, ear, climb, rests_mib, 1, 1.0, "--memory", "8M"))
        rests.go(rests.cgroup / "memory.events")
        grows = stack.enter_context(
            _tool(inside, ear, climb, at_once_mib, 4 * margin_mib, rate, "--memory", "8M")
        )
        calls = grows.cgroup.parent
        _await_use(rests.cgroup / "memory.current", rests_mib)
        _await_mark(calls / "memory.high")
        grows.go(calls / "memory.events.local")
        ends = rests if limit is Limit.BYSTANDER else grows
        heard = ear.of_call(ends.call_id, FeedbackKind.ENDED)
        return _timed(limit, maximum_mib, left_ms, heard, grows.times_ns(), is_itself=ends is grows)


def _host_limit(subject: Subject, climb: Path, limit: Limit, left_ms: int) -> Warned:
    rests_mib, agents_mib = 200, 16
    at_once_mib = HOST_MIB - rests_mib - 2 * agents_mib - 4 * HOST_MARGIN_MIB
    rate = 2 * HOST_MARGIN_MIB * MIB * 1000 / left_ms
    yields = limit is Limit.YIELDS
    with contextlib.ExitStack() as stack:
        low, low_ear = stack.enter_context(
            _session(subject, "rests", HOST_MIB, agents_mib, "normal" if yields else "low")
        )
        high, high_ear = stack.enter_context(
            _session(subject, "grows", HOST_MIB, agents_mib, "normal" if yields else "high")
        )
        declares = f"{rests_mib + 8 if yields else rests_mib // 2}M"
        rests = stack.enter_context(_tool(low, low_ear, climb, rests_mib, 1, 1.0, "--memory", declares))
        rests.go(rests.cgroup / "memory.events")
        _await_use(rests.cgroup / "memory.current", rests_mib)
        grows = stack.enter_context(
            _tool(high, high_ear, climb, at_once_mib, 10 * HOST_MARGIN_MIB, rate, "--memory", "64M")
        )
        grows.go(grows.cgroup / "memory.events")
        ends, ear = (grows, high_ear) if yields else (rests, low_ear)
        heard = ear.of_call(ends.call_id, FeedbackKind.ENDED)
        return _timed(limit, HOST_MIB, left_ms, heard, (0, 0), is_itself=False)


def _margin_mib(maximum_mib: int) -> int:
    """As in policy/ladder.py: the soft limit is a sixteenth below the maximum, 2 MiB at least."""
    return max(2, maximum_mib // 16)


def _timed(
    limit: Limit,
    maximum_mib: int,
    left_ms: int,
    heard: list[tuple[int, Feedback]],
    times_ns: tuple[int, int],
    *,
    is_itself: bool,
) -> Warned:
    """`heard`: what was said to the call that was ended. `times_ns`: of the one that grew; `is_itself`: they are the same.

    Of another one it is known only when its end was told, which comes some milliseconds after it.
    """
    reached_ns, alive_ns = times_ns
    told = [at_ns for at_ns, message in heard if message.kind in _TOLD]
    if not told:
        return Warned(limit, maximum_mib, left_ms, None, None)
    end_ns = alive_ns if is_itself else heard[-1][0]
    after_ms = round((told[0] - reached_ns) / 1e6, 3) if reached_ns else None
    return Warned(limit, maximum_mib, left_ms, after_ms, round((end_ns - told[0]) / 1e6, 3))


def _await_mark(high: Path) -> None:
    """It is put up right after the launch was answered."""
    _await(lambda: high.read_text().strip() != "max", f"no mark in {high}")


def _await_use(current: Path, mib: int) -> None:
    _await(lambda: int(current.read_text()) >= mib * MIB, f"{current} did not reach {mib} MiB")


def _await(is_so: Callable[[], bool], otherwise: str) -> None:
    end = time.monotonic() + WITHIN_S
    while not is_so():
        if time.monotonic() > end:
            raise BenchError(otherwise)
        time.sleep(0.005)


# ---- all of them


def measure_warnings(subject: Subject, climb: Path) -> list[Warned]:
    """Of `subject`'s daemon, which has room for all; the last ones of another, which has not. Raises BenchError."""
    found = []
    with Ear(Client(subject.session_dir)) as ear:
        for _ in range(REPETITIONS):
            for left_ms in LEFT_MS:
                for maximum_mib in MAXIMA_MIB:
                    found.append(_own_limit(subject, ear, climb, maximum_mib, left_ms))
                for limit in (Limit.SESSION, Limit.BYSTANDER):
                    found.append(_session_limit(subject, climb, limit, SESSION_MIB, left_ms))
    with running_daemon(29465, more=HOST_CONFIGURATION, memory=f"{HOST_MIB}M") as small:
        with _operator(small) as operator:
            operator.remove_session(SESSION)
        found += [
            _host_limit(small, climb, limit, left_ms)
            for left_ms in HOST_LEFT_MS
            for limit in (Limit.YIELDS, Limit.MAKES_WAY)
        ]
    return found
