"""What the machine tells: use, growth, out-of-memory victims, how a process ended."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


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

    session: str
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
    """Use of a session's agent runtime and of its calls."""

    agent_bytes: int
    calls_bytes: int


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
    session_oom_local: int | None = None  # calls/ and the session together
    victim: OomVictim | None = None
    # Of the victims those that were in no call nested in this one.
    own_oom_kill: int | None = None
    outer_oom_local: int | None = None  # of all calls that this one is nested in


@dataclass(frozen=True, slots=True)
class Refusals:
    """How often the kernel refused a process of a session another one: at the session's own pids.max since it was opened,
    and by call at the call's. What never was refused is not in it."""

    session: int = 0
    calls: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How the main process ended: exactly one field is set, or neither when the kernel does not say."""

    exit_code: int | None = None
    signal: int | None = None
