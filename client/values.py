"""The nouns of the API as Python values: frozen, typed, with the field names of proto/v1/types.proto.

None is unknown, undeclared or unlimited, as the proto says of the field; it is never 0. Times are aware datetimes in UTC.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from agentcgroup.proto.transparent import TransparentRule as TransparentRule
from agentcgroup.proto.usage import Usage as Usage
from agentcgroup.proto.words import (
    CallState as CallState,
    CpuClass as CpuClass,
    Decision as Decision,
    FeedbackKind as FeedbackKind,
    Level as Level,
    OnExceed as OnExceed,
    Priority as Priority,
    Reason as Reason,
    Rung as Rung,
    SessionState as SessionState,
    TransparentScope as TransparentScope,
    Verdict as Verdict,
)


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
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits in force on a call. None: not limited at this level."""

    memory_bytes: int | None = None
    memory_high_bytes: int | None = None
    memory_max_bytes: int | None = None
    swap_max_bytes: int | None = None
    cpu_milli: int | None = None
    cpu_weight: int | None = None
    pids_max: int | None = None
    deadline_ms: int | None = None
    throttle_limit_ms: int | None = None
    not_enforced: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Trim:
    """One field of an intent that was granted smaller than asked."""

    field: str
    asked: int
    granted: int
    reason: Reason | None


@dataclass(frozen=True, slots=True)
class Queue:
    """A place among the calls that wait for room; 1 is next."""

    position: int
    deadline_ms: int
    estimated_wait_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What the daemon answers to an intent. `call_id` is empty when refused."""

    decision: Decision
    call_id: str = ""
    granted: Limits | None = None
    trims: tuple[Trim, ...] = ()
    reason: Reason | None = None
    message: str = ""
    suggestion: str = ""
    queue: Queue | None = None
    expires_at: datetime | None = None
    notices: tuple[str, ...] = ()
    learned: "Suggestion | None" = None
    learned_applied: bool = False


@dataclass(frozen=True, slots=True)
class Suggestion:
    """What calls of one kind needed so far; `reason` says how the figures came about. None: not known well enough."""

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
class ProcessRef:
    """A process in the caller's pid namespace, guarded against reuse of its pid; `processes.reference` makes one."""

    pid: int
    pidfd_inode: int | None = None
    start_time_ticks: int | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """The end of a call. Neither `exit_code` nor `signal`: the kernel does not say how the main process ended."""

    call_id: str
    session: str
    verdict: Verdict
    exit_code: int | None = None
    signal: int | None = None
    usage: Usage = Usage()
    started_at: datetime | None = None
    ended_at: datetime | None = None
    duration_ms: int = 0
    leftover_processes: int = 0
    message: str = ""
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Ladder:
    """What is being done about the memory a call wants, and what to ask for so that it is granted (None: no more)."""

    rung: Rung | None
    event_id: str = ""
    deadline_at: datetime | None = None
    memory_to_ask_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """A declared, running or ended call. `parent_call_id` is empty directly under the session, `pid` 0 before it began."""

    id: str
    session: str
    state: CallState
    parent_call_id: str = ""
    intent: Intent = Intent()
    limits: Limits = Limits()
    usage: Usage = Usage()
    declared_at: datetime | None = None
    started_at: datetime | None = None
    pid: int = 0
    cgroup: str = ""
    report: Report | None = None
    # Of a call that came through the transparent door: how long after its exec it was placed, whether the scheduler held
    # it until then, and how long after its exec a hold began.
    placement_delay_ms: int | None = None
    was_held: bool = False
    held_after_us: int | None = None
    # While it waits for room.
    queue: Queue | None = None
    # While it is above its soft limit.
    ladder: Ladder | None = None


@dataclass(frozen=True, slots=True)
class Budget:
    """What a session may use in all. None when asked: the default, or unchanged; when told: not limited."""

    memory_max_bytes: int | None = None
    agent_memory_bytes: int | None = None
    swap_max_bytes: int | None = None
    cpu_milli: int | None = None
    cpu_weight: int | None = None
    pids_max: int | None = None
    calls_max: int | None = None


@dataclass(frozen=True, slots=True)
class Session:
    """A live session, as its operator sees it. `socket_dir` is what a sandbox bind-mounts."""

    name: str
    state: SessionState
    budget: Budget
    priority: Priority | None = None
    usage: Usage = Usage()
    memory_reserved_bytes: int = 0
    calls_live: int = 0
    calls_ended: int = 0
    created_at: datetime | None = None
    socket_dir: str = ""
    cgroup: str = ""
    owner_uid: int = 0
    owner_gid: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    container_id: str = ""
    ends_with_agent: bool = False
    transparent: TransparentRule = TransparentRule()
    transparent_placed: int = 0
    transparent_missed: int = 0
    transparent_left: int = 0
    memory_mark_bytes: int | None = None
    calls_held: int = 0


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """The true limits of the caller's session, or of the `call` asked about, and what is free there now."""

    session: str
    budget: Budget
    priority: Priority | None
    usage: Usage
    # At which the caller is stopped: what the session's calls may use together, or less in a call.
    memory_max_bytes: int
    memory_available_bytes: int
    cpu_available_milli: int
    pids_available: int
    level: Level | None
    not_enforced: tuple[str, ...] = ()
    call: Call | None = None


@dataclass(frozen=True, slots=True)
class Feedback:
    """One message on the stream. `sequence` rises by one in a session; `lost` counts what this subscriber missed."""

    sequence: int
    at: datetime | None
    session: str
    kind: FeedbackKind | None
    message: str = ""
    call_id: str = ""
    level: Level | None = None
    advice: str = ""
    answer: Answer | None = None
    report: Report | None = None
    lost: int = 0
    limits: Limits | None = None
    usage: Usage | None = None
    time_to_limit_ms: int | None = None
    ladder: Ladder | None = None
    held_until: datetime | None = None


@dataclass(frozen=True, slots=True)
class Capability:
    """One thing a host can or cannot do; `cost` and `remedy` are empty when it can."""

    name: str
    available: bool
    tier: str
    detail: str = ""
    cost: str = ""
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Drain:
    """The host is being emptied; at `deadline` what still runs is killed, None: never."""

    reason: str
    began_at: datetime | None
    deadline: datetime | None


@dataclass(frozen=True, slots=True)
class Scheduler:
    """The daemon's CPU scheduler. `state`: off, attached, waiting or refused; `reason`: why it is not attached."""

    state: str = ""
    mode: str = ""
    reason: str = ""
    ejections: int = 0


@dataclass(frozen=True, slots=True)
class Host:
    """Capacity, use and capabilities of the host, and what the daemon itself costs."""

    version: str
    kernel: str
    tier: str
    capabilities: tuple[Capability, ...] = ()
    memory_capacity_bytes: int = 0
    memory_reserved_bytes: int = 0
    memory_current_bytes: int | None = None
    cpu_capacity_milli: int = 0
    sessions: int = 0
    calls_live: int = 0
    started_at: datetime | None = None
    dry_run: bool = False
    cgroup_root: str = ""
    daemon_usage: Usage = Usage()
    daemon_rss_bytes: int = 0
    drain: Drain | None = None
    scheduler: Scheduler = Scheduler()


@dataclass(frozen=True, slots=True)
class ConfigurationChange:
    """One key that the configuration file says differently than before; `is_live`: it is in force now."""

    key: str
    old_value: str
    new_value: str
    is_live: bool


@dataclass(frozen=True, slots=True)
class MemorySample:
    """`offset_ms` counts from the beginning of the call."""

    offset_ms: int
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """An ended call as the history keeps it."""

    report: Report
    intent: Intent
    limits: Limits
    decision: Decision | None
    parent_call_id: str = ""
    command_class: str = ""
    project: str = ""
    memory_samples: tuple[MemorySample, ...] = ()


@dataclass(frozen=True, slots=True)
class Event:
    """One decision. `numbers` and `words` are what it was made from, with units in the names; unknown is absent."""

    id: str
    at: datetime | None
    session: str
    call_id: str
    actor: str
    action: str
    reason: str
    numbers: Mapping[str, int] = field(default_factory=dict)
    words: Mapping[str, str] = field(default_factory=dict)
    deadline_at: datetime | None = None
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class Story:
    """What happened to one call, oldest first. `call` is None when it is neither live nor in the history."""

    call: Call | None
    events: tuple[Event, ...]
    events_left_out: int = 0
