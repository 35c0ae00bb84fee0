"""What is asked and what is answered: intents, limits, budgets, answers, suggestions."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from agentcgroup.proto.words import CpuClass, Decision, OnExceed, Reason

# Key and value pairs, sorted by key.
Labels = tuple[tuple[str, str], ...]


NO_LABELS: Final[Labels] = ()


class QueueOutcome(StrEnum):
    """How a call left the queue for room."""

    GRANTED = "granted"
    DEADLINE = "deadline"
    CANCELLED = "cancelled"  # its caller gave the place up, or hung up
    PARENT_END = "parent_end"
    SESSION_END = "session_end"
    REFUSED = "refused"  # it can no longer be granted: budget or host have changed


@dataclass(frozen=True, slots=True)
class Intent:
    """What a caller declares about a call. None: not declared."""

    memory_bytes: int | None = None
    memory_max_bytes: int | None = None
    cpu_milli: int | None = None
    cpu_weight: int | None = None
    cpu_class: CpuClass | None = None
    pids_max: int | None = None
    expected_duration_ms: int | None = None
    deadline_ms: int | None = None
    on_exceed: OnExceed | None = None
    throttle_limit_ms: int | None = None
    command: tuple[str, ...] = ()
    labels: Labels = NO_LABELS


@dataclass(frozen=True, slots=True)
class CallLimits:
    """Limits of one call as decided. None: not limited at this level."""

    memory_bytes: int
    memory_max_bytes: int | None = None
    memory_high_bytes: int | None = None
    swap_max_bytes: int | None = None
    cpu_milli: int | None = None
    cpu_weight: int = 100
    pids_max: int | None = None
    deadline_ms: int | None = None
    throttle_limit_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Budget:
    """What a session may use in all, fully decided (defaults applied). None: not limited."""

    memory_max_bytes: int
    agent_memory_bytes: int
    swap_max_bytes: int | None
    cpu_milli: int | None
    cpu_weight: int
    pids_max: int | None
    calls_max: int

    @property
    def calls_memory_bytes(self) -> int:
        """What all calls together may use: the rest is the agent runtime's."""
        return self.memory_max_bytes - self.agent_memory_bytes


@dataclass(frozen=True, slots=True)
class BudgetRequest:
    """A budget as an operator asks for it. None: the default at creation, unchanged at update."""

    memory_max_bytes: int | None = None
    agent_memory_bytes: int | None = None
    swap_max_bytes: int | None = None
    cpu_milli: int | None = None
    cpu_weight: int | None = None
    pids_max: int | None = None
    calls_max: int | None = None


@dataclass(frozen=True, slots=True)
class Trim:
    """One field of an intent that was granted smaller than asked."""

    field: str
    asked: int
    granted: int
    reason: Reason


@dataclass(frozen=True, slots=True)
class QueuePlace:
    """A place in the queue; position 1 is next. The call is refused when it has waited `deadline_ms` in all."""

    position: int
    deadline_ms: int
    estimated_wait_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    decision: Decision
    message: str
    call_id: str = ""
    limits: CallLimits | None = None
    trims: tuple[Trim, ...] = ()
    reason: Reason | None = None
    suggestion: str = ""
    notices: tuple[str, ...] = ()
    expires_at_ns: int | None = None
    # What runs like this one needed, and whether the reservation was made from it because nothing was declared.
    learned: "Suggestion | None" = None
    learned_applied: bool = False
    queue: QueuePlace | None = None


@dataclass(frozen=True, slots=True)
class Suggestion:
    """What runs like this one needed, for a call of `command_class` in `project`. None: not known well enough.

    `memory_bytes` is what to declare; `memory_seen_bytes` the quantile it was made from, which is only a lower bound when
    `memory_is_at_least`: the runs that needed most were killed. `reason` says all this in words.
    """

    project: str
    command_class: str
    runs: int
    killed_runs: int
    reason: str
    memory_bytes: int | None = None
    memory_seen_bytes: int | None = None
    memory_median_bytes: int | None = None
    memory_is_at_least: bool = False
    expected_duration_ms: int | None = None
    cpu_milli: int | None = None
