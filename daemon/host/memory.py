"""How sessions and calls grow, as the kernel sees it where memory is charged: one map, read with one system call.

Opened with the kernel events; a host whose kernel does not let the program in has limits and counters as before and no
growth.
"""

import errno
import logging
from dataclasses import replace
from typing import Final

from agentcgroup.bpf.libbpf import BpfError
from agentcgroup.bpf.memory import LOSSES as PROGRAM_LOSSES, Growth as ProgramGrowth, MemoryProgram
from agentcgroup.daemon.model import Growth, Usage

__all__ = ["LOSSES", "MemoryWatch", "open_memory_watch"]

log = logging.getLogger("agentcgroup.host")

# As a `kind` of what was lost, beside those of the lifecycle programs.
LOSSES: Final = tuple(f"memory_{name}" for name in PROGRAM_LOSSES)


def open_memory_watch(accounts_max: int) -> "MemoryWatch | None":
    """The program, attached; None where the kernel will not have it, which is said in the log."""
    try:
        return MemoryWatch(accounts_max)
    except BpfError as error:
        log.info("memory growth is not seen: %s", error)
        return None


class MemoryWatch:
    """Accounts by cgroup id, opened before the first process and closed when the last figures have been read."""

    def __init__(self, accounts_max: int) -> None:
        """Raises BpfError."""
        self._program = MemoryProgram(accounts_max=accounts_max)

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
        )

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
