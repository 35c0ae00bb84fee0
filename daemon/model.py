"""The nouns of the daemon: intents, limits, answers, usage, sessions, calls, reports, feedback.

Values are frozen; the two things that live, Session and ToolCall, are in the ledger. None means unknown, undeclared or
unlimited as the field says; it is never 0. Times are Unix nanoseconds (`_at_ns`), durations milliseconds (`_ms`).
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from agentcgroup.proto.transparent import OFF as NOT_TRANSPARENT, TransparentRule as TransparentRule
from agentcgroup.proto.words import (
    Action as Action,
    Actor as Actor,
    CallState as CallState,
    CpuClass as CpuClass,
    Decision as Decision,
    FeedbackKind as FeedbackKind,
    Level as Level,
    OnExceed as OnExceed,
    Priority as Priority,
    Reason as Reason,
    Rung as Rung,
    SchedulerState as SchedulerState,
    SessionState as SessionState,
    TransparentScope as TransparentScope,
    Verdict as Verdict,
)

# Key and value pairs, sorted by key.
Labels = tuple[tuple[str, str], ...]
NO_LABELS: Final[Labels] = ()


class KillReason(StrEnum):
    """Why the daemon killed a call; absent when it did not."""

    DEADLINE = "deadline"
    THROTTLE_LIMIT = "throttle_limit"
    OPERATOR = "operator"
    SESSION_END = "session_end"
    PARENT_END = "parent_end"  # the call it was nested in ended
    FINISHED = "finished"  # its caller said Finish while it ran
    PROTECTION = "protection"  # memory that other calls were promised


class FreezeCause(StrEnum):
    """Who stopped a call where it stands. Causes add up, and whoever gave one takes back only that one."""

    OPERATOR = "operator"
    LADDER = "ladder"  # the call's own limit
    PROTECTION = "protection"  # memory that other calls need


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
class Usage:
    """What a cgroup consumed. None: this kernel does not say."""

    memory_current_bytes: int | None = None
    memory_peak_bytes: int | None = None
    swap_peak_bytes: int | None = None
    cpu_usage_us: int | None = None
    cpu_user_us: int | None = None
    cpu_system_us: int | None = None
    cpu_throttled_us: int | None = None
    pids_current: int | None = None
    pids_peak: int | None = None
    pids_max_events: int | None = None
    memory_high_events: int | None = None
    memory_max_events: int | None = None
    oom_kill_events: int | None = None
    # PSI totals: wall time in which some task waited for memory, or for a CPU.
    memory_stall_us: int | None = None
    cpu_stall_us: int | None = None
    io_read_bytes: int | None = None
    io_write_bytes: int | None = None
    # From the kernel's events, which a host may not have. Time in which memory.high held threads back, added up over
    # threads; processes that ever ran in it, those forked in it, and the longest life of one of these that has ended.
    memory_throttled_us: int | None = None
    processes: int | None = None
    forks: int | None = None
    longest_child_us: int | None = None
    # From the memory program, which sees charges: net growth now and at its fastest, and time over memory.high or, without
    # it, over the declared need.
    memory_growth_bytes_per_s: int | None = None
    memory_growth_peak_bytes_per_s: int | None = None
    memory_over_soft_us: int | None = None
    # Time for which the guard held its threads for the sake of other sessions, added up over threads.
    memory_held_us: int | None = None


@dataclass(frozen=True, slots=True)
class Growth:
    """How a session or a call grows, as of its last charge; what was freed since is not in it.

    `rate_bytes_per_s` is net growth, averaged over about 0.1 s. `over_soft_us`: time over memory.high or, where that is
    not set, over the declared need; `is_over_soft`: so it stands now; `breaches`: how often it came to that.
    """

    usage_bytes: int
    rate_bytes_per_s: int
    peak_rate_bytes_per_s: int
    over_soft_us: int
    is_over_soft: bool
    breaches: int


class MemoryGuard(StrEnum):
    """What stands between a call that grows and what sessions of higher priority were promised."""

    # The kernel slows the call itself, at the charge.
    HOLD = "hold"
    # The kernel tells the daemon at once; slowing is left to cgroup files.
    TOLD = "told"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class MemoryBreach:
    """A call grows into what a session of higher priority was promised, or makes it wait for memory.

    `hold_us`: how long its thread is held for the present batch; 0: the kernel does not slow it (any more).
    """

    call_id: str
    for_session: str
    rate_bytes_per_s: int
    missing_bytes: int
    stall_us: int
    hold_us: int


@dataclass(frozen=True, slots=True)
class GuardFigures:
    """What the guard did since the daemon's start: holds that ended and how long they took, and those released early."""

    holds: int
    held_us: int
    released: int


@dataclass(frozen=True, slots=True)
class HostMemory:
    """What all sessions may use together, and how much of that is left; less when the host itself runs short."""

    capacity_bytes: int
    room_bytes: int


@dataclass(frozen=True, slots=True)
class SessionMemory:
    """Use of a session's agent runtime and of its calls; `stall_us`: PSI, time in which some task waited for memory."""

    agent_bytes: int
    calls_bytes: int
    stall_us: int | None


@dataclass(frozen=True, slots=True)
class AgentActivity:
    """An agent leaf's CPU time, time stalled for memory, and file pages, the only ones to go where there is no swap."""

    cpu_us: int
    stall_us: int
    file_bytes: int


@dataclass(frozen=True, slots=True)
class OomVictim:
    """The first process of a call that the kernel chose when memory ran out, and whose allocation it was chosen for."""

    pid: int
    command: str
    trigger_pid: int
    trigger_command: str
    anonymous_bytes: int | None = None
    count: int = 1  # how many processes of the call were killed


@dataclass(frozen=True, slots=True)
class OomCounters:
    """memory.events of a call, and the `oom` counts of memory.events.local up the tree, for the verdict.

    `oom` of a level counts how often that level's own memory.max could not be kept; `oom_kill` of the call counts
    victims in it, whoever's limit was hit (cgroup-v2.rst, memory.events).
    """

    call_oom_kill: int | None = None
    call_oom_local: int | None = None
    session_oom_local: int | None = None  # parent calls, calls/ and the session together
    victim: OomVictim | None = None


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How the main process ended: exactly one field is set, or neither when the kernel does not say."""

    exit_code: int | None = None
    signal: int | None = None


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


@dataclass(frozen=True, slots=True)
class CallMemory:
    """The memory of a call, read cheaply. None: this kernel does not say."""

    current_bytes: int | None = None
    # What reclaim cannot take: anonymous memory, shared memory, the kernel's own; swap is not in it.
    held_bytes: int | None = None
    # Net growth around the last time it was charged for anything; it may have stopped growing since.
    growth_bytes_per_s: int | None = None


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


@dataclass(frozen=True, slots=True)
class Knock:
    """An exec in the agent's own cgroup of a session with a transparent door: a tool that came without asking.

    Pids and process groups are the host's. `command` may be cut. The pipes on its standard input and output are inodes;
    None: no pipe, the parent's own, or not known. `parent_name` is the kernel's name for the parent, "" when not known.
    """

    session: str
    pid: int
    parent_pid: int
    process_group: int
    parent_process_group: int
    filename: str
    command: tuple[str, ...]
    is_from_outside: bool
    is_held: bool
    executed_at_ns: int
    stdin_pipe: int | None = None
    stdout_pipe: int | None = None
    parent_name: str = ""


@dataclass(frozen=True, slots=True)
class ProcessRef:
    """A process as a caller names it; see ProcessRef in types.proto."""

    pid: int
    pidfd_inode: int | None = None
    start_time_ticks: int | None = None


class Tier(StrEnum):
    NONE = "none"
    CGROUP = "cgroup"
    BPF = "bpf"
    SCX = "scx"


@dataclass(frozen=True, slots=True)
class Capability:
    """One thing this host can or cannot do, for `agentcg check`, GetHost and the metrics."""

    name: str
    available: bool
    tier: Tier
    detail: str
    cost: str = ""
    remedy: str = ""


@dataclass(slots=True)
class Session:
    """A live session. Only the controller changes it."""

    name: str
    budget: Budget
    priority: Priority
    owner_uid: int
    owner_gid: int
    created_at_ns: int
    socket_dir: str
    state: SessionState = SessionState.OPEN
    labels: Labels = NO_LABELS
    container_id: str = ""
    ends_with_agent: bool = False
    cgroup: str = ""
    transparent: TransparentRule = NOT_TRANSPARENT
    # Processes that its transparent door has placed, and those that had ended before.
    transparent_placed: int = 0
    transparent_missed: int = 0
    calls_ended: int = 0
    calls: "dict[str, ToolCall]" = field(default_factory=dict)
    # What live calls directly under the session have reserved; nested calls live inside their parent's. The ledger keeps it.
    memory_reserved_bytes: int = 0
    # Calls among `calls` that wait for room and have reserved nothing. The ledger keeps it.
    calls_queued: int = 0
    # memory.max hits of the session's own levels that a verdict has already been blamed on; see policy/verdict.py.
    oom_attributed: int = 0
    # What its calls may use until the daemon looks again, and how many of them are held back; Protection keeps both.
    memory_mark_bytes: int | None = None
    calls_held: int = 0


@dataclass(slots=True)
class ToolCall:
    """A declared or running call. Only the controller changes it."""

    id: str
    session: str
    parent_id: str
    intent: Intent
    limits: CallLimits
    decision: Decision
    declared_at_ns: int
    state: CallState = CallState.DECLARED
    pid: int = 0
    started_at_ns: int | None = None
    cgroup: str = ""
    ticket: str = ""
    # While any is left the call stands still; Core._freeze and Core._thaw keep it.
    frozen_by: set[FreezeCause] = field(default_factory=set)
    kill_reason: KillReason | None = None
    kill_note: str = ""
    exit_status: ExitStatus = ExitStatus()
    leftover_processes: int = 0
    report: Report | None = None
    children_reserved_bytes: int = 0
    # Of a call that came through the transparent door: how long after its exec it was placed, and whether the
    # scheduler was asked to hold it meanwhile.
    placement_delay_ms: int | None = None
    was_held: bool = False
    # When a grant that is not begun lapses.
    expires_at_ns: int | None = None
    # While QUEUED.
    queue: QueuePlace | None = None
    # What it was answered in the end when it was queued in vain.
    refusal: Answer | None = None
    # See HistoryEntry.
    memory_samples: list[tuple[int, int]] = field(default_factory=list)

    @property
    def is_live(self) -> bool:
        return self.state not in (CallState.ENDING, CallState.ENDED)


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """The truth about a session for the agent in it: what it may use and what is free now."""

    session: str
    budget: Budget
    priority: Priority
    usage: Usage
    memory_available_bytes: int
    cpu_available_milli: int
    pids_available: int
    level: Level
    not_enforced: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Drain:
    """The operator is emptying the host: nothing new begins. `deadline_at_ns`: what runs then is killed; None: never."""

    reason: str
    began_at_ns: int
    deadline_at_ns: int | None = None


@dataclass(frozen=True, slots=True)
class SchedulerStatus:
    """`mode`: off, partial or full, as configured. `reason`: why it is not attached, for the operator; "" while it is.

    `ejections`: how often the kernel threw it off since the daemon began.
    """

    state: SchedulerState = SchedulerState.OFF
    mode: str = "off"
    reason: str = ""
    ejections: int = 0


@dataclass(frozen=True, slots=True)
class HostStatus:
    version: str
    kernel: str
    tier: Tier
    capabilities: tuple[Capability, ...]
    memory_capacity_bytes: int
    memory_reserved_bytes: int
    memory_current_bytes: int | None
    cpu_capacity_milli: int
    sessions: int
    calls_live: int
    started_at_ns: int
    dry_run: bool
    cgroup_root: str
    daemon_usage: Usage
    daemon_rss_bytes: int
    # Kernel events that did not reach the daemon, by cause; empty where there are none to lose.
    kernel_events_lost: tuple[tuple[str, int], ...] = ()
    # None: there is no guard on this host.
    memory_guard: GuardFigures | None = None
    drain: Drain | None = None
    scheduler: SchedulerStatus = SchedulerStatus()
