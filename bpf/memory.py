"""The memory program as one object: how accounts of cgroups grow, read with one system call. See memory.bpf.c.

The structures are the twins of memory.h; times are in ns of CLOCK_MONOTONIC.
"""

import ctypes
import time
from dataclasses import dataclass
from typing import Final

from agentcgroup.bpf.libbpf import BpfError
from agentcgroup.bpf.programs import Programs, object_path

__all__ = ["LOSSES", "STRUCTURES", "Growth", "MemoryAccount", "MemoryKnobs", "MemoryLosses", "MemoryProgram"]

_u64 = ctypes.c_uint64

# Functions that may be traced are not promised by any kernel.
_OPTIONAL: Final = ("fentry/", "fexit/")
# What can be lost: charges in a cgroup that lies too deep, charges while the program was running on that CPU.
LOSSES: Final = ("depth", "missed")
AVERAGING_NS: Final = 100_000_000


class MemoryAccount(ctypes.Structure):
    soft_limit_bytes: int
    at_ns: int
    usage_bytes: int
    batches: int
    rate_bytes_per_s: int
    peak_rate_bytes_per_s: int
    over_soft_ns: int
    over_soft_since_ns: int
    breaches: int
    _fields_ = [
        ("soft_limit_bytes", _u64),
        ("at_ns", _u64),
        ("usage_bytes", _u64),
        ("batches", _u64),
        ("rate_bytes_per_s", _u64),
        ("peak_rate_bytes_per_s", _u64),
        ("over_soft_ns", _u64),
        ("over_soft_since_ns", _u64),
        ("breaches", _u64),
        ("window_at_ns", _u64),
        ("window_usage_bytes", _u64),
    ]


class MemoryLosses(ctypes.Structure):
    depth: int
    _fields_ = [("depth", _u64)]


class MemoryKnobs(ctypes.Structure):
    _fields_ = [("window_ns", _u64), ("averaging_ns", _u64)]


# By the name in memory.h, for the test that compares both.
STRUCTURES: Final[dict[str, type[ctypes.Structure]]] = {
    "memory_account": MemoryAccount,
    "memory_losses": MemoryLosses,
    "memory_knobs": MemoryKnobs,
}


@dataclass(frozen=True, slots=True)
class Growth:
    """How a cgroup with everything below it grows, as of its last charge; what was freed since is not in it.

    `rate_bytes_per_s` is net growth averaged over about 0.1 s and fades while nothing is charged. `over_soft_ns`: time
    over memory.high, or over the need that was declared where there is no memory.high; `is_over_soft`: so it stands now.
    """

    usage_bytes: int
    rate_bytes_per_s: int
    peak_rate_bytes_per_s: int
    over_soft_ns: int
    is_over_soft: bool
    breaches: int


class MemoryProgram:
    """Loaded and attached from construction to `close`. Raises BpfError when the kernel will not have it."""

    def __init__(self, *, accounts_max: int = 8192) -> None:
        self._accounts_max = accounts_max
        self._programs = Programs(
            object_path("memory"),
            knobs={"knobs": MemoryKnobs(10_000_000, AVERAGING_NS)},
            sizes={"memory_accounts": accounts_max},
            optional=_OPTIONAL,
        )
        try:
            self._accounts = self._programs.hash_map("memory_accounts", MemoryAccount)
            self._losses = self._programs.array_map("memory_losses", MemoryLosses)
            self._programs.attach()
            missing = [one for one in self._programs.absent if one.name == "on_charge"]
            if missing:
                raise BpfError(f"seeing memory being charged: {missing[0].reason}", 95)
        except BaseException:
            self._programs.close()
            raise

    def close(self) -> None:
        """Detaches and unloads. Safe to call twice."""
        self._programs.close()

    @property
    def attached(self) -> tuple[str, ...]:
        return self._programs.attached

    def open_account(self, cgroup_id: int, soft_limit_bytes: int = 0) -> None:
        """From now on. `soft_limit_bytes` counts where memory.high is not set; 0: none.

        Raises BpfError: EEXIST, or E2BIG when there are too many.
        """
        self._accounts.put_new(cgroup_id, MemoryAccount(soft_limit_bytes))

    def close_account(self, cgroup_id: int) -> Growth | None:
        """The last figures, and no more are kept."""
        account = self._accounts.pop(cgroup_id)
        return None if account is None else growth_of(account, time.monotonic_ns())

    def growth_of(self, cgroup_id: int) -> Growth | None:
        """Of one account; None: there is none."""
        account = self._accounts.get(cgroup_id)
        return None if account is None else growth_of(account, time.monotonic_ns())

    def growth(self) -> dict[int, Growth]:
        """Of every account by cgroup id that has been charged at all; one system call."""
        accounts = self._accounts.items(self._accounts_max)
        now_ns = time.monotonic_ns()
        return {key: growth_of(account, now_ns) for key, account in accounts.items() if account.batches}

    def lost(self) -> dict[str, int]:
        """What was not seen since the start, by LOSSES."""
        return {"depth": self._losses[0].depth, "missed": self._programs.recursion_misses()}


def growth_of(account: MemoryAccount, now_ns: int) -> Growth:
    """The figures of `account` as they are at `now_ns`."""
    # A window that is still open, without growth so far: the same average as the kernel's.
    idle_ns = max(0, now_ns - account.at_ns)
    since_ns = account.over_soft_since_ns
    return Growth(
        usage_bytes=account.usage_bytes,
        rate_bytes_per_s=account.rate_bytes_per_s * AVERAGING_NS // (idle_ns + AVERAGING_NS),
        peak_rate_bytes_per_s=account.peak_rate_bytes_per_s,
        over_soft_ns=account.over_soft_ns + (max(0, now_ns - since_ns) if since_ns else 0),
        is_over_soft=bool(since_ns),
        breaches=account.breaches,
    )
