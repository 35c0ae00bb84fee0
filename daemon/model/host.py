"""The host as a whole: what it can do, how it stands, what a session may know of that."""

from dataclasses import dataclass
from enum import StrEnum

from agentcgroup.daemon.model.intents import Budget
from agentcgroup.daemon.model.live import ToolCall
from agentcgroup.daemon.model.measures import GuardFigures
from agentcgroup.proto.usage import Usage
from agentcgroup.proto.words import Level, Priority, SchedulerState


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


@dataclass(frozen=True, slots=True)
class Drain:
    """The operator is emptying the host: nothing new begins. `deadline_at_ns`: what runs then is killed; None: never."""

    reason: str
    began_at_ns: int
    deadline_at_ns: int | None = None


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """The truth about a session, or a call in it, for who lives there: what it may use and what is free now."""

    session: str
    budget: Budget
    priority: Priority
    usage: Usage
    # At which a call in it is stopped, whichever level does it.
    memory_max_bytes: int
    memory_available_bytes: int
    cpu_available_milli: int
    pids_available: int
    level: Level
    not_enforced: tuple[str, ...]
    # That was asked about; what is available is then available in it.
    call: ToolCall | None = None
    is_frozen: bool = False
    drain: Drain | None = None


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
