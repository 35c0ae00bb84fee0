"""Whose the memory of all sessions is: what was promised, what is free, and what each may grow by.

What admission has promised is kept: the unused part of what an agent runtime or a call declared is set aside, from the
highest priority down; the rest is free for whoever takes it. A session's *allowance* is its own promises and its share
of the free rest. Memory is *short* when what calls took lately, carried on for `horizon_ms`, does not fit.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from agentcgroup.daemon.model import Priority

RANK: Final = {Priority.HIGH: 0, Priority.NORMAL: 1, Priority.LOW: 2}
# Parts of the free rest, as of the CPU: the better session has hardly ever to be looked at, and slowed meanwhile.
_PART: Final = {Priority.HIGH: 16, Priority.NORMAL: 4, Priority.LOW: 1}
_PROMISE_STEP_BYTES: Final = 16 << 20


class Rung(StrEnum):
    """How a call is held back for others. In order: the next one is taken when one does not help."""

    SLOWED = "slowed"
    FROZEN = "frozen"


@dataclass(frozen=True, slots=True)
class Rules:
    """Times and sizes of the protection; see `[protection]` in the configuration."""

    horizon_ms: int = 200
    # A call stays on a rung this long before the next one, or before it is let go; longer when stall put it there,
    # which takes its time to show.
    settle_ms: int = 100
    stall_settle_ms: int = 1_000
    slow_limit_ms: int = 2_000
    freeze_limit_ms: int = 30_000

    def margin_bytes(self, capacity_bytes: int) -> int:
        """Room that is never given away: what a grower takes until the daemon has answered."""
        return max(16 << 20, capacity_bytes // 50)

    def step_bytes(self, capacity_bytes: int) -> int:
        """Growth and room below which nothing is done: what an ordinary process takes and gives all the time."""
        return min(64 << 20, max(4 << 20, capacity_bytes // 128))


@dataclass(frozen=True, slots=True)
class Hold:
    """A call held back. `growth_bytes_per_s` is that for which it was; `turns` how often its freeze ran out in vain."""

    rung: Rung
    settled_at_ns: int
    deadline_at_ns: int
    growth_bytes_per_s: int
    turns: int = 0


@dataclass(frozen=True, slots=True)
class CallView:
    """A running call directly under its session, with what is nested in it."""

    id: str
    session: str
    priority: Priority
    started_at_ns: int
    usage_bytes: int
    promised_bytes: int
    growth_bytes_per_s: int
    hold: Hold | None = None

    @property
    def unused_promise_bytes(self) -> int:
        return max(0, self.promised_bytes - self.usage_bytes)

    @property
    def is_frozen(self) -> bool:
        return self.hold is not None and self.hold.rung is Rung.FROZEN


@dataclass(frozen=True, slots=True)
class SessionView:
    """`agent_unused_bytes`: promised to the agent runtime and not in use. `is_stalled`: its tasks wait for memory (PSI)."""

    name: str
    priority: Priority
    agent_unused_bytes: int = 0
    is_stalled: bool = False


@dataclass(frozen=True, slots=True)
class View:
    """`room_bytes`: what may still be taken before the limit of all sessions, or the host's own memory, is reached.

    `coming_bytes`: what calls that are ending still hold.
    """

    now_ns: int
    capacity_bytes: int
    room_bytes: int
    sessions: tuple[SessionView, ...]
    calls: tuple[CallView, ...]
    coming_bytes: int = 0


def rank(call: CallView) -> tuple[int, int, str]:
    """Who goes first: the higher priority, then the older."""
    return RANK[call.priority], call.started_at_ns, call.id


def borrowed_bytes(call: CallView) -> int:
    """What it uses beyond its promise; below 0, how much of that is left."""
    return call.usage_bytes - call.promised_bytes


@dataclass(frozen=True, slots=True)
class Shortage:
    """`priority` is that of the best session that would not get what it wants."""

    priority: Priority
    missing_bytes: int


class Budget:
    """Promises and free rest for a set of calls; frozen ones ask for nothing."""

    def __init__(self, view: View, rules: Rules, calls: Iterable[CallView]) -> None:
        self._now_ns = view.now_ns
        self._margin_bytes = margin_bytes = rules.margin_bytes(view.capacity_bytes)
        self._room_bytes = view.room_bytes
        # With little room left little growth is much.
        self._least_bytes = min(rules.step_bytes(view.capacity_bytes), max(1 << 16, view.room_bytes // 8))
        self._horizon_ms = rules.horizon_ms
        self._sessions = sorted(view.sessions, key=lambda session: RANK[session.priority])
        self._calls: dict[str, list[CallView]] = {session.name: [] for session in self._sessions}
        for call in calls:
            if not call.is_frozen:
                self._calls[call.session].append(call)
        # Agent runtimes come before every tool.
        left_bytes = (
            view.room_bytes - margin_bytes - sum(session.agent_unused_bytes for session in self._sessions)
        )
        self.promise_bytes: dict[str, int] = {}
        self._unkept_bytes: dict[str, int] = {}
        for session in self._sessions:
            wanted = sum(call.unused_promise_bytes for call in self._calls[session.name])
            self.promise_bytes[session.name] = granted = max(0, min(wanted, left_bytes))
            self._unkept_bytes[session.name] = wanted - granted
            left_bytes -= granted
        self.free_bytes = left_bytes

    def demand_bytes(self, call: CallView) -> int:
        """What it takes within the horizon at its present growth; 0 for what is hardly growth, or was just slowed."""
        if call.is_frozen or (call.hold is not None and self._now_ns < call.hold.settled_at_ns):
            return 0
        demand = call.growth_bytes_per_s * self._horizon_ms // 1000
        return demand if demand >= self._least_bytes else 0

    def _wanted_bytes(self, session: SessionView) -> int:
        return sum(self.demand_bytes(call) for call in self._calls[session.name])

    def shortage(self) -> Shortage | None:
        free_bytes = self.free_bytes
        for session in self._sessions:
            beyond = self._wanted_bytes(session) - self.promise_bytes[session.name]
            if beyond > max(0, free_bytes):
                return Shortage(session.priority, beyond - max(0, free_bytes))
            free_bytes -= max(0, beyond)
        return None

    def allowances(self, favoured: str) -> tuple[tuple[str, int], ...]:
        """Promises first, then what growers want, then parts of the rest. Sessions without running calls have none.

        What was promised to the `favoured` session, that of the best call, is kept out of the margin, too.
        """
        free_bytes = max(0, self.free_bytes)
        given: dict[str, int] = {}
        sharing: list[SessionView] = []
        for session in self._sessions:
            if not self._calls[session.name]:
                continue
            beyond = max(0, self._wanted_bytes(session) - self.promise_bytes[session.name])
            more = min(beyond, free_bytes)
            free_bytes -= more
            given[session.name] = self.promise_bytes[session.name] + more
            if not any(call.hold for call in self._calls[session.name]):
                sharing.append(session)
        parts = sum(_PART[session.priority] for session in sharing)
        for session in sharing:
            given[session.name] += free_bytes * _PART[session.priority] // parts
        if favoured in given:
            unspent = self._room_bytes - sum(given.values()) - self._margin_bytes // 4
            given[favoured] += max(0, min(self._unkept_bytes[favoured], unspent))
        return tuple(given.items())


def promised_bytes(declared: int | None, reserved: int, usage: int, priority: Priority) -> int:
    """What is set aside for a call: what it declared. Of a high-priority call that declared nothing more is believed
    once it has outgrown the default: half as much again, for it is to find room when it gets there."""
    if declared is not None or priority is not Priority.HIGH or usage <= reserved * 2 // 3:
        return reserved
    # In steps, so that it does not change with every look.
    return (usage * 3 // 2 + _PROMISE_STEP_BYTES - 1) // _PROMISE_STEP_BYTES * _PROMISE_STEP_BYTES
