"""Many sequences at the same time against one daemon, and what must hold when all of them are over."""

import asyncio
import contextlib
import re
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from agentcgroup.cgroups.membership import cgroup2_mount
from agentcgroup.client import AsyncOperatorClient, ClientError
from tests.running import RunningDaemon, running_daemon
from tests.sequences import checks, kernel
from tests.sequences.sequence import Sequence, describe
from tests.sequences.session import MIB, PATIENCE_S, Place
from tests.sequences.steps import CRASH, HOST_MIB, Script

_LOOK_EVERY_S: Final = 0.1
# Python frees late and the daemon remembers what calls needed; more than this is a leak.
_MOST_GROWTH_BYTES: Final = 48 * MIB
# Threads and descriptors that gRPC and SQLite open as they see fit; a leak of ours is one for each sequence.
_LIBRARIES: Final = 12

# What a sequence can end with that should have gone on.
FAULTS: Final = (AssertionError, ClientError, TimeoutError, OSError)

# A small host, so that sessions are short of memory all the time, and short times for whoever is held back.
CONFIGURATION: Final = """
[session]
agent_memory = "8M"
[call]
memory = "8M"
grant_lifetime = "1s"
throttle_limit = "1s"
freeze_limit = "1s"
[queue]
wait = "20s"
[protection]
slow_limit = "500ms"
freeze_limit = "1s"
[suggest]
floor = "4M"
"""


def has_limits() -> bool:
    """Whether there is a memory controller: else placement, queue and books are real, and limits are not."""
    return "memory" in (cgroup2_mount() / "cgroup.controllers").read_text().split()


def playground(directory: Path, *, on_stop: str = "end") -> contextlib.AbstractContextManager[RunningDaemon]:
    """A daemon to play against."""
    unenforced = "refuse" if has_limits() else "run"
    return running_daemon(
        directory, CONFIGURATION, unenforced=unenforced, memory=f"{HOST_MIB}M", on_stop=on_stop
    )


@dataclass(frozen=True, slots=True)
class Held:
    """What the daemon's process holds when nothing is left to do."""

    descriptors: int
    threads: int
    memory_bytes: int

    @classmethod
    def by(cls, daemon: RunningDaemon) -> "Held":
        at = Path(f"/proc/{daemon.pid}")
        pages = int((at / "statm").read_text().split()[1])
        return cls(len(list((at / "fd").iterdir())), len(list((at / "task").iterdir())), pages * 4096)


def has_not_grown(daemon: RunningDaemon, before: Held) -> None:
    """Whatever was opened is closed again, and memory is bounded. Connections take a moment to go."""
    after = before
    for _ in range(600):
        after = Held.by(daemon)
        if (
            after.descriptors <= before.descriptors + _LIBRARIES
            and after.threads <= before.threads + _LIBRARIES
        ):
            break
        time.sleep(0.1)
    else:
        raise AssertionError(f"{before} grew to {after}")
    assert after.memory_bytes - before.memory_bytes < _MOST_GROWTH_BYTES, (before, after)


@dataclass(frozen=True, slots=True)
class Failure:
    sequence: Sequence
    error: BaseException

    def __str__(self) -> str:
        crashes = any(step.verb == CRASH for step in self.sequence.script.steps)
        return (
            f"seed {self.sequence.script.seed}: {type(self.error).__name__}: {self.error}\n"
            f"{describe(self.sequence)}"
            f"  again: python -m tests.sequences {self.sequence.script.seed}{' --crashes' if crashes else ''}"
        )


@dataclass(slots=True)
class Outcome:
    failures: list[Failure] = field(default_factory=list)
    verdicts: Counter[str] = field(default_factory=Counter)
    # What the policies did to calls, and how often each ended in which way after it.
    rungs: Counter[str] = field(default_factory=Counter)
    fates: Counter[str] = field(default_factory=Counter)
    oom_kills: int = 0
    played: list[Sequence] = field(default_factory=list)
    steps: int = 0

    def add(self, sequence: Sequence) -> None:
        self.verdicts += sequence.verdicts
        self.rungs += sequence.rungs
        self.fates += sequence.fates
        self.oom_kills += sequence.oom_kills
        self.played.append(sequence)
        self.steps += len(sequence.played)

    def __str__(self) -> str:
        def told(counter: Counter[str]) -> str:
            return ", ".join(f"{name} {count}" for name, count in counter.most_common()) or "none"

        return (
            f"{len(self.played)} sequences, {self.steps} steps, {self.verdicts.total()} calls\n"
            f"  calls by end: {told(self.verdicts)}\n"
            f"  rungs met: {told(self.rungs)}\n"
            f"  calls by last rung and end: {told(self.fates)}\n"
            f"  processes killed by the kernel for memory: {self.oom_kills}"
        )


async def play(
    daemon: RunningDaemon,
    scripts: Iterable[Script],
    *,
    players: int,
    into: Outcome | None = None,
    said: Callable[[Outcome], None] = lambda _: None,
) -> Outcome:
    """Plays all of `scripts`, `players` at a time, and adds up what came of them; `said` hears of each that has ended.

    The first failure lets no other begin.
    """
    async with AsyncOperatorClient(daemon.operator_socket, timeout_s=PATIENCE_S) as operator:
        place = Place(daemon, operator, has_limits())
        outcome = into if into is not None else Outcome()
        left = iter(scripts)

        async def player() -> None:
            for script in left:
                if outcome.failures:
                    return
                sequence = Sequence(place, script)
                try:
                    await sequence.play()
                except FAULTS as error:
                    outcome.failures.append(Failure(sequence, error))
                outcome.add(sequence)
                said(outcome)

        watching = asyncio.create_task(_watch_host(operator, daemon.root))

        async def play_all() -> None:
            await asyncio.gather(*(player() for _ in range(players)))

        playing = asyncio.create_task(play_all())
        await asyncio.wait([watching, playing], return_when=asyncio.FIRST_COMPLETED)
        watching.cancel()
        playing.cancel()
        for error in await asyncio.gather(watching, playing, return_exceptions=True):
            if isinstance(error, Exception):
                raise error
        return outcome


async def _watch_host(operator: AsyncOperatorClient, root: Path) -> None:
    capacity_bytes = (await operator.host()).memory_capacity_bytes
    assert kernel.limit(root) in (None, capacity_bytes)
    while True:
        checks.sessions_fit(await operator.sessions(), capacity_bytes)
        kernel.is_within(root, capacity_bytes)
        await asyncio.sleep(_LOOK_EVERY_S)


def metrics(daemon: RunningDaemon) -> dict[str, float]:
    """The page of metrics, by name and labels."""
    found = re.findall(r"http://127\.0\.0\.1:(\d+)/metrics", daemon.log.read_text())
    with urllib.request.urlopen(f"http://127.0.0.1:{found[-1]}/metrics", timeout=30) as page:
        lines = page.read().decode().splitlines()
    return {
        name: float(value)
        for name, _, value in (line.rpartition(" ") for line in lines if not line.startswith("#"))
    }


def total(page: dict[str, float], name: str) -> float:
    """A metric over all its labels."""
    return sum(value for key, value in page.items() if key.partition("{")[0] == name)


def nothing_is_left(daemon: RunningDaemon, *, has_crashed: bool = False) -> None:
    """No session, call, queue or cgroup; what the metrics say agrees with the lists and the log."""
    with daemon.operator() as operator:
        host = operator.host()
        assert (host.sessions, host.calls_live, host.memory_reserved_bytes) == (0, 0, 0), host
        assert operator.calls() == [] and operator.sessions() == []
    assert daemon.cgroups() == []
    page = metrics(daemon)
    for name in ("sessions", "calls", "calls_held", "host_memory_reserved_bytes", "internal_errors_total"):
        assert total(page, f"agentcgroup_{name}") == 0, name
    if not has_crashed:
        opened, closed = (total(page, f"agentcgroup_sessions_{what}_total") for what in ("opened", "closed"))
        assert opened == closed > 0
    # Whoever was queued left the queue in one way.
    queued = sum(
        value
        for key, value in page.items()
        if key.startswith("agentcgroup_answers_total{") and 'decision="queued"' in key
    )
    left = total(page, "agentcgroup_queue_wait_seconds_count")
    assert left == queued, f"{left} left the queue and {queued} joined it"


def kernel_agrees(daemon: RunningDaemon, outcome: Outcome) -> None:
    """Every process that the kernel has killed for memory since the daemon began is in the report of one call."""
    events, local = kernel.counts(daemon.root), kernel.counts(daemon.root, "memory.events.local")
    if not events:
        return
    assert events["oom_kill"] == outcome.oom_kills, (
        f"{events} in the kernel, {outcome.oom_kills} by the reports"
    )
    hits = outcome.verdicts["memory_limit_host"]
    assert hits <= local["oom"], f"{hits} calls are said to have died for the host, {local}"


def ends_agree(daemon: RunningDaemon, ended: Counter[str]) -> None:
    """`ended`: how calls ended by their reports, which is how they ended by the metrics."""
    page = metrics(daemon)
    assert total(page, "agentcgroup_calls_ended_total") == ended.total()
    for verdict, count in ended.items():
        told = sum(
            value
            for key, value in page.items()
            if key.startswith("agentcgroup_calls_ended_total{") and f'verdict="{verdict}"' in key
        )
        assert told == count, f"{verdict}: {told} in the metrics, {count} in the reports"
