"""The two things that live, sessions and calls, and what may befall them. Only the controller changes them."""

from dataclasses import dataclass, field
from enum import StrEnum

from agentcgroup.daemon.model.intents import (
    NO_LABELS,
    Answer,
    Budget,
    CallLimits,
    Intent,
    Labels,
    QueuePlace,
)
from agentcgroup.daemon.model.measures import ExitStatus
from agentcgroup.daemon.model.reports import Ladder, Report
from agentcgroup.proto.transparent import OFF as NOT_TRANSPARENT, TransparentRule
from agentcgroup.proto.words import CallState, Decision, Priority, SessionState


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


@dataclass(frozen=True, slots=True)
class Knock:
    """An exec in the agent's own cgroup of a session with a transparent door: a tool that came without asking.

    `is_visitor`: it comes from outside, and its cgroup still lies there: it has entered a container's namespaces only.
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
    executed_at_ns: int
    stdin_pipe: int | None = None
    stdout_pipe: int | None = None
    parent_name: str = ""
    is_visitor: bool = False


@dataclass(frozen=True, slots=True)
class DoorHold:
    """The scheduler kept a process at a transparent door off its CPU. `lasted`: until it was let go, else less long."""

    began_us: int  # after its exec
    lasted: bool


@dataclass(frozen=True, slots=True)
class Placement:
    """How late after its exec the first process of a call that had not asked was in its cgroup. `hold` None: it ran."""

    delay_ms: int
    hold: DoorHold | None


@dataclass(frozen=True, slots=True)
class ProcessRef:
    """A process as a caller names it; see ProcessRef in types.proto."""

    pid: int
    pidfd_inode: int | None = None
    start_time_ticks: int | None = None


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
    # Processes that its transparent door has placed, those that had ended before, and those that no call could be made for.
    transparent_placed: int = 0
    transparent_missed: int = 0
    transparent_left: int = 0
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

    def running_calls(self) -> "list[ToolCall]":
        """Those directly under it that run or stand still; a call that is nested in another is in what that one holds."""
        return [call for call in self.calls.values() if call.is_running and not call.parent_id]


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
    # It ended between two daemons: when and how nobody has seen.
    ended_unseen: bool = False
    report: Report | None = None
    children_reserved_bytes: int = 0
    # Of a call that came through the transparent door.
    placement: Placement | None = None
    # When a grant that is not begun lapses.
    expires_at_ns: int | None = None
    # While QUEUED.
    queue: QueuePlace | None = None
    # While it is above its soft limit.
    ladder: Ladder | None = None
    # What it was answered in the end when it was queued in vain.
    refusal: Answer | None = None
    # See HistoryEntry.
    memory_samples: list[tuple[int, int]] = field(default_factory=list)

    @property
    def is_live(self) -> bool:
        return self.state not in (CallState.ENDING, CallState.ENDED)

    @property
    def is_running(self) -> bool:
        """It has processes that are not to end: they run, or stand still."""
        return self.state in (CallState.RUNNING, CallState.FROZEN)
