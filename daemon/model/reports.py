"""What is told afterwards and meanwhile: reports, feedback, the history, the decision log."""

from dataclasses import dataclass

from agentcgroup.daemon.model.intents import Answer, CallLimits, Intent
from agentcgroup.daemon.model.measures import ExitStatus
from agentcgroup.proto.usage import Usage
from agentcgroup.proto.words import Action, Actor, Decision, FeedbackKind, Level, Rung, Verdict


@dataclass(frozen=True, slots=True)
class Report:
    call_id: str
    session: str
    verdict: Verdict
    exit_status: ExitStatus
    usage: Usage
    started_at_ns: int | None
    ended_at_ns: int
    duration_ms: int
    leftover_processes: int
    message: str
    advice: str


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    report: Report
    intent: Intent
    limits: CallLimits | None
    decision: Decision
    parent_call_id: str
    # What the call belongs to by its label or its session's; "" for none. See policy/suggest.py.
    project: str = ""
    # Memory while it ran: milliseconds since its start, bytes. Empty where `history.samples` is off.
    memory_samples: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class CallMemory:
    """The memory of a call, read cheaply. None: this kernel does not say."""

    current_bytes: int | None = None
    # What reclaim cannot take: anonymous memory, shared memory, the kernel's own; swap is not in it.
    held_bytes: int | None = None
    # Net growth around the last time it was charged for anything; it may have stopped growing since.
    growth_bytes_per_s: int | None = None

    @property
    def held_or_current_bytes(self) -> int | None:
        """The best that is known of what only an end of processes gives back."""
        return self.held_bytes if self.held_bytes is not None else self.current_bytes


@dataclass(frozen=True, slots=True)
class Ladder:
    """Where a call stands on its ladder. `deadline_at_ns`: when it is frozen or killed unless something changes."""

    rung: Rung
    event_id: str = ""
    deadline_at_ns: int | None = None
    # What to ask for so that it is granted; None: no more can be had.
    memory_to_ask_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Feedback:
    """One message on the stream. `sequence` rises by one per session; `lost` is the subscriber's own."""

    sequence: int
    at_ns: int
    session: str
    kind: FeedbackKind
    message: str
    call_id: str = ""
    level: Level | None = None
    advice: str = ""
    answer: Answer | None = None
    report: Report | None = None
    lost: int = 0
    # What a message about a call's memory carries besides words; see Feedback in types.proto.
    limits: CallLimits | None = None
    usage: Usage | None = None
    time_to_limit_ms: int | None = None
    ladder: Ladder | None = None
    held_until_ns: int | None = None


def event_id(number: int) -> str:
    """The id of event `number`, which is the microsecond of the decision or, when that is taken, the next free one.

    Ids of equal length rise as text, too.
    """
    return f"e-{number:013x}"


# What a decision was made from: names as in this module (units in them), in the order they were given.
Inputs = tuple[tuple[str, int | str], ...]


@dataclass(frozen=True, slots=True)
class Event:
    """One decision: who, what, why, from which numbers. `call_id` "": about the session; `session` "": about the host."""

    id: str
    at_ns: int
    session: str
    call_id: str
    actor: Actor
    action: Action
    reason: str
    inputs: Inputs = ()
    # When something else follows unless things change.
    deadline_at_ns: int | None = None
    # Decided and said, but not done.
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class Story:
    """What the history knows of one call: its end, when it has ended, and every decision about it, oldest first."""

    entry: HistoryEntry | None
    events: tuple[Event, ...]
    # Older events that did not fit.
    left_out: int = 0
