"""What the controller needs of the world, as Protocols: the machine, the sockets, the history, the clock.

The controller knows no kernel and no protobuf, and tests drive it with fakes that are real implementations of these.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from agentcgroup.daemon.config import Config
from agentcgroup.daemon.model import (
    AgentActivity,
    Budget,
    CallLimits,
    CallMemory,
    Capability,
    DoorHold,
    Event,
    ExitStatus,
    Growth,
    GuardFigures,
    HistoryEntry,
    HostMemory,
    Knock,
    MemoryBreach,
    MemoryGuard,
    OomCounters,
    Priority,
    ProcessRef,
    Refusals,
    SchedulerStatus,
    Session,
    SessionMemory,
    Tier,
    ToolCall,
    TransparentScope,
    Usage,
)


@dataclass(frozen=True, slots=True)
class Location:
    """Where a process lives: in a session's agent leaf (call_id ""), in a call, or outside (session "")."""

    session: str = ""
    call_id: str = ""


@dataclass(frozen=True, slots=True)
class Process:
    """A process held by a pidfd, so that its pid cannot come to mean another. Whoever gets it closes the pidfd."""

    pid: int
    pidfd: int


@dataclass(frozen=True, slots=True)
class Leaf:
    """The cgroup of an agent runtime: its id, and its path as in /proc/PID/cgroup."""

    cgroup_id: int
    path: str


@dataclass(frozen=True, slots=True)
class Kept:
    """The cgroup of a session or call of an earlier daemon; `record` is what that wrote on it (daemon/record.py).

    Of a call: `parent` is the one around it, `pids` are the live processes in it and below, `has_run` says whether any ever
    was. `is_frozen`: of a session its calls. Limits are as the kernel has them, None: none.
    """

    name: str
    record: bytes | None
    parent: str = ""
    pids: tuple[int, ...] = ()
    has_run: bool = False
    is_frozen: bool = False
    memory_max_bytes: int | None = None
    pids_max: int | None = None


class HostListener(Protocol):
    """What the machine tells the controller, on the event loop."""

    def agent_gone(self, session: str) -> None:
        """The agent leaf of `session` has become empty."""

    def session_gone(self, session: str) -> None:
        """The cgroup of `session` has been removed by somebody else: its container has ended."""

    def memory_throttled(self, call_id: str) -> None:
        """A call that is listened to (`Host.watch_memory`) has reached memory.high or memory.max (again)."""

    def memory_breached(self, breach: MemoryBreach) -> None:
        """A call is held as it grows into what another session was promised, see Guard; told at most twice a minute."""

    def memory_short(self, breach: MemoryBreach) -> None:
        """A call grows into what another session was promised, held or not: told at once, once a second for a call."""

    def knocked(self, knock: Knock) -> None:
        """A process at the session's transparent door, which is held until `release` where the host can."""

    def memory_mark_crossed(self, session: str) -> None:
        """The calls of the session use more than their mark, see Memory.set_mark."""

    def memory_limit_met(self, session: str) -> None:
        """The session has met its memory.max, see Memory.await_limit; "": all together have, or stall for want of memory."""

    def memory_stalled(self, session: str) -> None:
        """Tasks of a watched session waited for memory a tenth of the time; see Memory.watch_stall."""

    def processes_refused(self, session: str) -> None:
        """The kernel refused a process of a session that is listened to another one, at some pids.max; see Host.refusals."""

    def events_lost(self) -> None:
        """The kernel's event queue overflowed; what is watched was read afresh."""


class Guard(Protocol):
    """Keeps, inside the kernel, calls that grow from taking what sessions of higher priority were promised."""

    @property
    def kind(self) -> MemoryGuard:
        """What it can do at present: a scheduler that was thrown off holds nobody."""

    def promise(self, session: str, priority: Priority, protection_bytes: int) -> None:
        """What the open session has been promised in all, from now on. It ends with the session."""

    def figures(self) -> GuardFigures | None:
        """None where there is no guard."""


class TransparentDoor(Protocol):
    """Execs in sessions, told to `HostListener.knocked`, and what can be done about them."""

    @property
    def why_not(self) -> str:
        """Why this host has no such door, with the next step; "" where it has."""

    def set(self, session: str, scope: TransparentScope) -> None:
        """Which execs in the open session are told. It ends with the session. Raises RequestError(HOST)."""

    def catch(self, pid: int) -> Process | None:
        """The process that knocked; None when it has ended."""

    def gather(self, session: str, call_id: str, pid: int, is_visitor: bool) -> int:
        """Moves what the process has forked before it was placed into the call, where it is itself; how many.

        Of a visitor that is what is outside of the session, else what is in the agent leaf.
        """

    def let_be(self, process: Process) -> None:
        """Nothing is told of the process, and of what it forks, any more."""

    def release(self, pid: int) -> DoorHold | None:
        """The process need not be held any longer; how it was held, None: not at all."""


class Memory(Protocol):
    """Memory between sessions. What is gone meanwhile reads as None and is written without effect; nothing raises."""

    def host(self) -> HostMemory | None:
        """None: this host does not account memory, and there is nothing to protect."""

    def session(self, name: str) -> SessionMemory | None: ...
    def stall_us(self, session: str) -> int | None:
        """Time in which some task of the session waited for memory (PSI `some`)."""

    def calls_memory(self, session: str) -> CallMemory:
        """Of all calls of the session together, without its agent."""

    def agent_memory(self, session: str) -> CallMemory:
        """Of the session's agent runtime."""

    def await_limit(self, session: str) -> None:
        """Has `memory_limit_met` told, once, when the session is at its memory.max again; "": the limit of all sessions."""

    def watch_host_stall(self, on: bool) -> None:
        """Whether `memory_limit_met("")` is told, too, when tasks of any session wait for memory a tenth of the time."""

    def call_bytes(self, call_id: str) -> int | None: ...
    def set_mark(self, session: str, mark_bytes: int | None) -> None:
        """How much the session's calls may use until the listener hears of it; None: what their budget says."""

    def listen_to_mark(self, session: str, listens: bool) -> None:
        """Whether `memory_mark_crossed` is told of this session; what happened while it was not is not told."""

    def protect_calls(self, session: str, promises: tuple[tuple[str, int], ...]) -> None:
        """Keeps so many bytes of each of these calls from reclaim, as far as others have something to give."""

    def watch_stall(self, session: str, on: bool) -> None: ...
    def agent_activity(self, session: str) -> AgentActivity | None: ...
    async def reclaim_agent(self, session: str, amount_bytes: int) -> int | None:
        """Has the kernel free so much of the agent leaf, coldest first; what it freed, None: it cannot be asked."""


class Records(Protocol):
    """What the next daemon is to know of sessions and calls, kept by the machine with what it is about. Nothing raises."""

    def keep_session(self, session: str, record: bytes) -> None:
        """In place of what was kept of it before; what cannot be kept is logged once."""

    def keep_call(self, call_id: str, record: bytes) -> None: ...
    def sessions(self) -> tuple[Kept, ...]:
        """Sessions of an earlier daemon that this one has not reopened; not those of containers."""

    def calls(self, session: str) -> tuple[Kept, ...]:
        """Calls in an open session that are not this daemon's, a call before those nested in it."""


class Host(Protocol):
    """The machine. Every method raises RequestError(HOST) when the kernel would not, with its words."""

    @property
    def not_enforced(self) -> tuple[str, ...]:
        """Fields of Limits that this host enforces not, each with the cause."""

    @property
    def guard(self) -> Guard: ...
    @property
    def door(self) -> TransparentDoor: ...
    @property
    def cgroup_root(self) -> str: ...
    @property
    def tier(self) -> Tier: ...
    @property
    def capabilities(self) -> tuple[Capability, ...]: ...
    @property
    def memory(self) -> Memory: ...
    @property
    def records(self) -> Records: ...
    @property
    def memory_capacity_bytes(self) -> int: ...
    @property
    def cpu_capacity_milli(self) -> int: ...
    def listen(self, listener: HostListener) -> None: ...
    def use_config(self, config: Config) -> None:
        """From now on `config` is in force, for what is done next; what it says of the start (daemon/reload.py) is past."""

    # Sessions
    def open_session(self, session: Session) -> str:
        """Makes the session's cgroups with the budget written; returns the path relative to the cgroup2 mount."""

    def adopt_session(self, session: Session, cgroup_path: str) -> str:
        """The same on an existing cgroup, that of a container: what runs there moves into its agent leaf."""

    def apply_budget(self, session: Session, budget: Budget) -> None:
        """Writes a changed budget; parents grow before and shrink after their children."""

    def place_agent(self, session: str, pid: int) -> None: ...
    def session_usage(self, session: str) -> Usage: ...
    def freeze_session(self, session: str, frozen: bool, include_agent: bool) -> None: ...
    def kill_agent(self, session: str) -> None: ...
    async def close_session(self, session: str) -> None:
        """Kills what is left and removes the session's cgroups (of a container: only those made here)."""

    # Calls
    def create_call(self, call: ToolCall) -> str:
        """Makes the call's cgroup, inside its parent's when it has one, with its limits written; returns the path."""

    def apply_limits(self, call: ToolCall, limits: CallLimits) -> None: ...
    def place(self, call_id: str, pid: int) -> None:
        """Moves the process with all its threads into the call."""

    def agent_leaf(self, session: str) -> Leaf | None:
        """Where the session's callers live for whom calls may be prepared; None where this host cannot have that."""

    def open_procs(self, call_id: str) -> int:
        """A descriptor that moves the process whose pid is written to it into the call; the caller closes it."""

    def freeze_call(self, call_id: str, frozen: bool) -> None: ...
    def call_usage(self, call_id: str) -> Usage: ...
    def call_memory(self, call_id: str) -> CallMemory:
        """Its memory alone, which is read more often than everything."""

    def limit_softly(self, call_id: str, high_bytes: int | None) -> None:
        """Sets memory.high, of what has a memory controller; None: no soft limit. Never reclaims itself."""

    def watch_memory(self, call_id: str, watched: bool) -> None:
        """Whether `memory_throttled` is told of this call; what happened while it was not is not told."""

    def oom_counters(self, call_id: str) -> OomCounters: ...
    def refusals(self, session: str) -> Refusals:
        """As of now; one file is read when nothing was refused since the last time."""

    def listen_to_refusals(self, session: str, listens: bool) -> None:
        """Whether `processes_refused` is told of this session; what happened while it was not is not told."""

    def kill_call(self, call_id: str) -> int:
        """SIGKILL to every process in the call; how many there were."""

    def hold_stderr(self, call: ToolCall) -> None:
        """Keeps the standard error of the call's main process, when it lives and has one, until `say_last`."""

    def say_last(self, call_id: str, line: str) -> None:
        """Writes a line there, if it is kept, and lets go of it; "" only lets go. Never waits, never fails."""

    async def drained(self, call_id: str, deadline_s: float) -> bool:
        """Waits until no process is left in the call; False: the deadline passed first."""

    def remove_call(self, call_id: str) -> bool:
        """Removes the cgroup; False: it cannot be removed now and the sweep will take it later."""

    # What an earlier daemon left
    def reopen_session(self, session: Session) -> str:
        """Takes over the cgroups of a kept session, with its budget in force; returns the path.

        What an earlier daemon had set for a moment, marks and protection, is taken back.
        """

    def reopen_call(self, call: ToolCall) -> str:
        """Takes over the cgroup of a kept call, after the call around it; limits stay as they are. Returns the path."""

    def reopen_process(self, call_id: str, pid: int) -> Process | None:
        """The process when it is in the call, also one that has ended and was not waited for; None: another or none."""

    def has_agent(self, session: str) -> bool:
        """Whether a live process is in the session's agent leaf."""

    # Processes
    def open_process(self, session: Session, process: ProcessRef) -> Process:
        """The process the caller means. RequestError: gone, reused, a kernel thread, or not to be touched."""

    def locate(self, process: Process) -> Location: ...
    def watch_process(
        self, process: Process, on_exit: Callable[[], None], on_status: Callable[[ExitStatus], None]
    ) -> None:
        """Takes over the pidfd. Calls `on_exit` when the process has ended and `on_status` once when it is known how."""

    def forget_process(self, pidfd: int) -> None: ...
    def hear_ends(self) -> None:
        """Calls back for watched processes that have ended, before the loop comes to it."""

    # The daemon itself
    def memory_current_bytes(self) -> int | None: ...
    def daemon_usage(self) -> tuple[Usage, int]:
        """CPU and memory of this process, and its RSS in bytes."""

    def memory_growth(self) -> tuple[dict[str, Growth], dict[str, Growth]]:
        """How each session and each call grows, by name and by id, read at once; empty where the kernel does not tell."""

    def scheduler(self) -> SchedulerStatus: ...
    def kernel_events_lost(self) -> tuple[tuple[str, int], ...]:
        """What the kernel had to tell and could not, by cause, since the start; empty where it tells nothing."""


class Doors(Protocol):
    """The sockets of a session."""

    async def open(self, session: Session) -> None: ...
    async def close(self, name: str) -> None: ...
    def hear(self) -> None:
        """Has every call begin that the doors' thread has answered and not told of yet."""


class History(Protocol):
    def record(self, entry: HistoryEntry) -> None:
        """Keeps `entry`; never blocks and never fails: what cannot be kept is counted."""

    def note(self, event: Event) -> None:
        """Keeps a decision, in the same way."""

    @property
    def last_event_number(self) -> int:
        """The number of the newest event kept before this start, 0 for none; see `event_id`."""


class Clock(Protocol):
    def now_ns(self) -> int:
        """Unix time in nanoseconds."""
