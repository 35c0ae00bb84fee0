"""The machine for `--dry-run`: says every action in the log and does none; what only looks is the real machine's."""

import logging
from collections.abc import Callable
from typing import Final

from agentcgroup.daemon.config import Config
from agentcgroup.daemon.errors import Kind, RequestError
from agentcgroup.daemon.host.door import NoDoor
from agentcgroup.daemon.model import (
    AgentActivity,
    Budget,
    CallLimits,
    CallMemory,
    Capability,
    ExitStatus,
    Growth,
    HostMemory,
    OomCounters,
    ProcessRef,
    Refusals,
    SchedulerStatus,
    Session,
    SessionMemory,
    Tier,
    ToolCall,
    Usage,
)
from agentcgroup.daemon.ports import (
    Guard,
    Host,
    HostListener,
    Kept,
    Leaf,
    Location,
    Memory,
    Process,
    Records,
)

log = logging.getLogger("agentcgroup.dry_run")


class _NoMemory:
    """No session has anything to protect, because none has a cgroup."""

    def host(self) -> HostMemory | None:
        return None

    def session(self, name: str) -> SessionMemory | None:
        return None

    def stall_us(self, session: str) -> int | None:
        return None

    def call_bytes(self, call_id: str) -> int | None:
        return None

    def agent_memory(self, session: str) -> CallMemory:
        return CallMemory()

    def await_limit(self, session: str) -> None: ...
    def watch_host_stall(self, on: bool) -> None: ...

    def set_mark(self, session: str, mark_bytes: int | None) -> None: ...
    def protect_calls(self, session: str, promises: tuple[tuple[str, int], ...]) -> None: ...
    def watch_stall(self, session: str, on: bool) -> None: ...
    def agent_activity(self, session: str) -> AgentActivity | None:
        return None

    def calls_memory(self, session: str) -> CallMemory:
        return CallMemory()

    def listen_to_mark(self, session: str, listens: bool) -> None: ...
    async def reclaim_agent(self, session: str, amount_bytes: int) -> int | None:
        return None


class _NoRecords:
    """A dry run has made nothing, and takes over nothing."""

    def keep_session(self, session: str, record: bytes) -> None: ...
    def keep_call(self, call_id: str, record: bytes) -> None: ...
    def sessions(self) -> tuple[Kept, ...]:
        return ()

    def calls(self, session: str) -> tuple[Kept, ...]:
        return ()


_NO_MEMORY: Final = _NoMemory()
_NO_RECORDS: Final = _NoRecords()


class DryRunHost:
    def __init__(self, real: Host) -> None:
        self._real = real

    def _would(self, action: str, *values: object) -> None:
        log.info("would " + action, *values)

    # ---- what only looks

    @property
    def not_enforced(self) -> tuple[str, ...]:
        return ("everything: this daemon runs with --dry-run", *self._real.not_enforced)

    @property
    def door(self) -> NoDoor:
        return NoDoor("this daemon runs with --dry-run")

    @property
    def guard(self) -> Guard:
        # Without programs, as in a dry run, the real one does nothing.
        return self._real.guard

    @property
    def cgroup_root(self) -> str:
        return self._real.cgroup_root

    @property
    def tier(self) -> Tier:
        return self._real.tier

    @property
    def capabilities(self) -> tuple[Capability, ...]:
        return self._real.capabilities

    @property
    def memory_capacity_bytes(self) -> int:
        return self._real.memory_capacity_bytes

    @property
    def cpu_capacity_milli(self) -> int:
        return self._real.cpu_capacity_milli

    def listen(self, listener: HostListener) -> None:
        self._real.listen(listener)

    def use_config(self, config: Config) -> None:
        self._real.use_config(config)

    def open_process(self, session: Session, process: ProcessRef) -> Process:
        return self._real.open_process(session, process)

    def locate(self, process: Process) -> Location:
        return self._real.locate(process)

    def watch_process(
        self, process: Process, on_exit: Callable[[], None], on_status: Callable[[ExitStatus], None]
    ) -> None:
        self._real.watch_process(process, on_exit, on_status)

    def forget_process(self, pidfd: int) -> None:
        self._real.forget_process(pidfd)

    def hear_ends(self) -> None:
        self._real.hear_ends()

    def memory_current_bytes(self) -> int | None:
        return self._real.memory_current_bytes()

    def daemon_usage(self) -> tuple[Usage, int]:
        return self._real.daemon_usage()

    def memory_growth(self) -> tuple[dict[str, Growth], dict[str, Growth]]:
        return {}, {}

    def scheduler(self) -> SchedulerStatus:
        return self._real.scheduler()

    def kernel_events_lost(self) -> tuple[tuple[str, int], ...]:
        return ()

    def agent_leaf(self, session: str) -> Leaf | None:
        return None

    def session_usage(self, session: str) -> Usage:
        return Usage()

    def call_usage(self, call_id: str) -> Usage:
        return Usage()

    def call_memory(self, call_id: str) -> CallMemory:
        return CallMemory()

    def watch_memory(self, call_id: str, watched: bool) -> None:
        pass

    def refusals(self, session: str) -> Refusals:
        return Refusals()

    def listen_to_refusals(self, session: str, listens: bool) -> None:
        pass

    def oom_counters(self, call_id: str) -> OomCounters:
        return OomCounters()

    @property
    def memory(self) -> Memory:
        return _NO_MEMORY

    @property
    def records(self) -> Records:
        return _NO_RECORDS

    def has_agent(self, session: str) -> bool:
        return False

    def reopen_process(self, call_id: str, pid: int) -> Process | None:
        return None

    # ---- what would be done

    def reopen_session(self, session: Session) -> str:
        self._would("take over session %s", session.name)
        return ""

    def reopen_call(self, call: ToolCall) -> str:
        self._would("take over call %s", call.id)
        return ""

    def open_session(self, session: Session) -> str:
        self._would("make the cgroups of session %s with %s", session.name, session.budget)
        return ""

    def adopt_session(self, session: Session, cgroup_path: str) -> str:
        self._would("take over %s as session %s with %s", cgroup_path, session.name, session.budget)
        return ""

    def apply_budget(self, session: Session, budget: Budget) -> None:
        self._would("change session %s to %s", session.name, budget)

    def place_agent(self, session: str, pid: int) -> None:
        self._would("move process %d into the agent leaf of session %s", pid, session)

    def freeze_session(self, session: str, frozen: bool, include_agent: bool) -> None:
        self._would("%s session %s%s", _freezing(frozen), session, " and its agent" if include_agent else "")

    def kill_agent(self, session: str) -> None:
        self._would("kill the agent of session %s", session)

    async def close_session(self, session: str) -> None:
        self._would("remove the cgroups of session %s", session)

    def create_call(self, call: ToolCall) -> str:
        self._would("make the cgroup of call %s in session %s with %s", call.id, call.session, call.limits)
        return ""

    def apply_limits(self, call: ToolCall, limits: CallLimits) -> None:
        self._would("change call %s to %s", call.id, limits)

    def limit_softly(self, call_id: str, high_bytes: int | None) -> None:
        self._would("set the soft limit of call %s to %s", call_id, high_bytes)

    def place(self, call_id: str, pid: int) -> None:
        self._would("move process %d into call %s", pid, call_id)

    def open_procs(self, call_id: str) -> int:
        # Not asked: a dry run has no agent leaf to prepare calls for.
        raise RequestError(Kind.HOST, f"call {call_id} has no cgroup in a dry run", "")

    def freeze_call(self, call_id: str, frozen: bool) -> None:
        self._would("%s call %s", _freezing(frozen), call_id)

    def hold_stderr(self, call: ToolCall) -> None:
        pass

    def say_last(self, call_id: str, line: str) -> None:
        if line:
            self._would("say on the standard error of call %s: %s", call_id, line)

    def kill_call(self, call_id: str) -> int:
        self._would("kill what is left of call %s", call_id)
        return 0

    async def drained(self, call_id: str, deadline_s: float) -> bool:
        return True

    def remove_call(self, call_id: str) -> bool:
        self._would("remove the cgroup of call %s", call_id)
        return True


def _freezing(frozen: bool) -> str:
    return "freeze" if frozen else "thaw"
