"""How sessions and calls grow, as the kernel sees it where memory is charged, and the guard between sessions.

Opened with the kernel events; a host whose kernel does not let the program in has limits and counters as before, no growth
and no guard.
"""

import errno
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from agentcgroup.bpf.libbpf import BpfError
from agentcgroup.bpf.memory import (
    LOSSES as PROGRAM_LOSSES,
    Breach,
    Growth as ProgramGrowth,
    GuardNumbers,
    MemoryProgram,
)
from agentcgroup.bpf.programs import YOUNG
from agentcgroup.bpf.shared_maps import SharedMaps
from agentcgroup.daemon.config import BpfConfig
from agentcgroup.daemon.model import Growth, GuardFigures, Priority, Usage

__all__ = ["LOSSES", "MemoryWatch", "open_memory_watch"]

log = logging.getLogger("agentcgroup.host")

# As a `kind` of what was lost, beside those of the lifecycle programs.
LOSSES: Final = tuple(f"memory_{name}" for name in PROGRAM_LOSSES)

# Who goes first: the smaller is slowed for the greater.
_RANK: Final = {Priority.LOW: 0, Priority.NORMAL: 1, Priority.HIGH: 2}
# Room beside what was promised, for what grows until the kernel has answered.
_MARGIN_LEAST_BYTES: Final = 16 << 20
_MARGIN_PART: Final = 64


def open_memory_watch(
    config: BpfConfig, accounts_max: int, root_id: int, capacity_bytes: int, shared: SharedMaps | None
) -> "MemoryWatch | None":
    """The program, attached; None where the kernel will not have it, which is said in the log.

    `root_id`: the cgroup of all sessions, which has memory.max `capacity_bytes`.
    """
    try:
        return MemoryWatch(config, accounts_max, root_id, capacity_bytes, shared)
    except BpfError as error:
        log.info("memory growth is not seen: %s", error)
        return None


class MemoryWatch:
    """Accounts by cgroup id, opened before the first process and closed when the last figures have been read."""

    def __init__(
        self,
        config: BpfConfig,
        accounts_max: int,
        root_id: int,
        capacity_bytes: int,
        shared: SharedMaps | None,
    ) -> None:
        """`shared`: with the scheduler's map of holds; without it nobody is held. Raises BpfError."""
        self._on_breach: Callable[[Breach], None] | None = None
        self._program = MemoryProgram(accounts_max=accounts_max, shared=shared, on_breach=self._tell)
        self.guards = config.memory_guard == "auto" and shared is not None
        for one in self._program.absent:
            if one.name == YOUNG:
                log.info("memory guard: who grows is held late, at a tick in user mode: %s", one.reason)
            else:
                log.info("memory guard: %s is not seen: %s", one.section, one.reason)
        margin_bytes = max(_MARGIN_LEAST_BYTES, capacity_bytes // _MARGIN_PART)
        self._program.set_numbers(
            GuardNumbers(
                root_id,
                margin_bytes,
                # 0: nobody is held, growth into what others were promised is told all the same.
                hold_max_ns=config.hold_max * 10**6 if self.guards else 0,
                hold_total_ns=config.hold_total * 10**6,
            )
        )

    def open(self, cgroup_id: int, soft_limit_bytes: int) -> None:
        """From now on. Failure costs figures, not the call.

        `soft_limit_bytes` counts where memory.high is not set; 0: none.
        """
        try:
            self._program.open_account(cgroup_id, soft_limit_bytes)
        except BpfError as error:
            if error.errno != errno.EEXIST:
                log.warning("cgroup %d: its growth is not seen: %s", cgroup_id, error)

    def close_account(self, cgroup_id: int) -> None:
        """Of a session, the guard goes with it: whoever was held for it goes on."""
        self._program.forget(cgroup_id)
        self._program.close_account(cgroup_id)

    def growth(self) -> dict[int, Growth]:
        """Of every cgroup that was charged since it was opened; one system call."""
        return {cgroup_id: _growth(one) for cgroup_id, one in self._program.growth().items()}

    def rate_bytes_per_s(self, cgroup_id: int) -> int | None:
        """Of one cgroup, around its last charge; None when there was none."""
        growth = self._program.growth_of(cgroup_id)
        return growth.rate_bytes_per_s if growth is not None else None

    def completed(self, usage: Usage, cgroup_id: int) -> Usage:
        """`usage` with how the cgroup grew; a cgroup that was never charged did not."""
        growth = self._program.growth_of(cgroup_id)
        if growth is None:
            return usage
        return replace(
            usage,
            memory_growth_bytes_per_s=growth.rate_bytes_per_s,
            memory_growth_peak_bytes_per_s=growth.peak_rate_bytes_per_s,
            memory_over_soft_us=growth.over_soft_ns // 1000,
            memory_held_us=growth.held_ns // 1000 if self.guards else None,
        )

    # ---- guard

    def listen(self, on_breach: Callable[[Breach], None]) -> None:
        """`on_breach` is called from `drain`, at most once a second for a call."""
        self._on_breach = on_breach

    def guard(self, session_id: int, priority: Priority, protection_bytes: int) -> None:
        """See bpf.memory.MemoryProgram.guard. Failure costs the guard of this session, and is said."""
        try:
            self._program.guard(session_id, _RANK[priority], protection_bytes)
        except BpfError as error:
            log.warning("cgroup %d: what it was promised is not guarded: %s", session_id, error)

    def figures(self) -> GuardFigures | None:
        """None: the guard is off."""
        if not self.guards:
            return None
        found = self._program.figures()
        return GuardFigures(found.holds, found.held_ns // 1000, found.released)

    def fileno(self) -> int:
        """Readable when there are breaches."""
        return self._program.fileno()

    def drain(self) -> None:
        self._program.drain()

    def _tell(self, breach: Breach) -> None:
        if self._on_breach is not None:
            self._on_breach(breach)

    def lost(self) -> tuple[tuple[str, int], ...]:
        """What the program did not see since the daemon's start, by LOSSES."""
        return tuple(zip(LOSSES, self._program.lost().values(), strict=True))

    def close(self) -> None:
        self._program.close()


def _growth(one: ProgramGrowth) -> Growth:
    return Growth(
        usage_bytes=one.usage_bytes,
        rate_bytes_per_s=one.rate_bytes_per_s,
        peak_rate_bytes_per_s=one.peak_rate_bytes_per_s,
        over_soft_us=one.over_soft_ns // 1000,
        is_over_soft=one.is_over_soft,
        breaches=one.breaches,
    )
