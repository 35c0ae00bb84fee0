"""What a scrape reads, taken on the event loop, where the controller lives.

It gives way after each session, so that a launch never waits for more than one session's files being read. What `take`
returns no longer changes: a thread may render it.
"""

import asyncio
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from agentcgroup.daemon.config import HostConfig
from agentcgroup.daemon.counters import Counters
from agentcgroup.daemon.history import HistoryStats
from agentcgroup.daemon.model import CallState, HostStatus, Session, ToolCall, Usage


class Feed(Protocol):
    """What is read of the feed."""

    @property
    def dropped(self) -> int: ...


class Source(Protocol):
    """What is read of the controller, on its loop."""

    @property
    def counters(self) -> Counters: ...
    @property
    def feed(self) -> Feed: ...
    def host(self) -> HostStatus: ...
    def sessions(self) -> list[Session]: ...
    def session_usage(self, session: Session) -> Usage: ...
    def calls(self, session: str | None) -> list[ToolCall]: ...


class HistorySource(Protocol):
    """What is read of the history, from any thread."""

    def stats(self) -> HistoryStats: ...


@dataclass(frozen=True, slots=True)
class SessionSample:
    """One session at the moment its files were read."""

    name: str
    priority: str
    state: str
    memory_limit_bytes: int
    agent_memory_bytes: int
    memory_reserved_bytes: int
    cpu_limit_milli: int | None
    pids_limit: int | None
    calls: int
    calls_held: int
    calls_limit: int
    calls_ended: int
    usage: Usage


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything a scrape shows.

    Host, calls and counters are of one moment, sessions of the moments after it.
    """

    host: HostStatus
    limits: HostConfig
    calls_by_state: Mapping[CallState, int]
    counters: Counters
    feedback_dropped: int
    history: HistoryStats
    sessions: tuple[SessionSample, ...]


async def take(source: Source, history: HistorySource, limits: HostConfig) -> Snapshot:
    """A snapshot, taken on the loop that `source` lives on."""
    host = source.host()
    calls_by_state = Counter(call.state for call in source.calls(None))
    counters = source.counters.copy()
    feedback_dropped = source.feed.dropped
    samples = []
    for session in source.sessions():
        samples.append(_sample(session, source.session_usage(session)))
        await asyncio.sleep(0)
    return Snapshot(
        host=host,
        limits=limits,
        calls_by_state=calls_by_state,
        counters=counters,
        feedback_dropped=feedback_dropped,
        history=history.stats(),
        sessions=tuple(samples),
    )


def _sample(session: Session, usage: Usage) -> SessionSample:
    budget = session.budget
    return SessionSample(
        name=session.name,
        priority=session.priority,
        state=session.state,
        memory_limit_bytes=budget.memory_max_bytes,
        agent_memory_bytes=budget.agent_memory_bytes,
        memory_reserved_bytes=session.memory_reserved_bytes,
        cpu_limit_milli=budget.cpu_milli,
        pids_limit=budget.pids_max,
        calls=len(session.calls),
        calls_held=session.calls_held,
        calls_limit=budget.calls_max,
        calls_ended=session.calls_ended,
        usage=usage,
    )
