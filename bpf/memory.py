"""The memory program as one object: how accounts of cgroups grow, read with one system call, and the guard between
sessions. See memory.bpf.c and memory_guard.bpf.h.

The structures are the twins of memory.h; times are in ns of CLOCK_MONOTONIC.
"""

import errno
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from agentcgroup.bpf.libbpf import BpfError
from agentcgroup.bpf.memory_abi import (
    STRUCTURES as STRUCTURES,
    WAIT_STEP_NS as WAIT_STEP_NS,
    MemoryAccount as MemoryAccount,
    MemoryBreach,
    MemoryGuard,
    MemoryGuardFigures,
    MemoryKnobs,
    MemoryLosses,
    MemoryNumbers,
)
from agentcgroup.bpf.programs import Absent, Programs, object_path
from agentcgroup.bpf.shared_maps import SharedMaps

__all__ = ["LOSSES", "Breach", "Growth", "GuardFigures", "GuardNumbers", "MemoryProgram", "Stalls"]

# Functions that may be traced are not promised by any kernel.
_OPTIONAL: Final = ("fentry/", "fexit/", "tp_btf/")
# What can be lost: charges in a cgroup that lies too deep, records of breaches, charges while the program was running on
# that CPU.
LOSSES: Final = ("depth", "breaches", "missed")
WINDOW_NS: Final = 10_000_000
AVERAGING_NS: Final = 100_000_000


@dataclass(frozen=True, slots=True)
class Growth:
    """How a cgroup with everything below it grows, as of its last charge; what was freed since is not in it.

    `rate_bytes_per_s` is net growth averaged over about 0.1 s and fades while nothing is charged. `over_soft_ns`: time
    over memory.high, or over the need that was declared where there is no memory.high; `is_over_soft`: so it stands now.
    `holds` and `held_ns`: the guard kept its threads off the CPU so often and so long, added up over threads.
    """

    usage_bytes: int
    rate_bytes_per_s: int
    peak_rate_bytes_per_s: int
    over_soft_ns: int
    is_over_soft: bool
    breaches: int
    holds: int = 0
    held_ns: int = 0
    holds_refused: int = 0


@dataclass(frozen=True, slots=True)
class Stalls:
    """How often and how long tasks of a session waited for memory that it shares with others."""

    count: int
    total_ns: int


@dataclass(frozen=True, slots=True)
class GuardNumbers:
    """What the guard goes by; see struct memory_numbers in memory.h."""

    # The cgroup whose memory.max the sessions share.
    shared_id: int
    margin_bytes: int
    active_ns: int = 10_000_000_000
    stall_full_ns: int = 20_000_000
    stall_linger_ns: int = 100_000_000
    hold_max_ns: int = 200_000_000
    hold_total_ns: int = 60_000_000_000
    full_rate_bytes_per_s: int = 1 << 20


@dataclass(frozen=True, slots=True)
class GuardFigures:
    """Of all calls since the start; `holds` and `held_ns` of holds that have ended.

    `waits`: how many holds began so many WAIT_STEP_NS after the charge that asked.
    """

    waits: tuple[int, ...]
    asked: int
    failed: int
    released: int
    holds: int
    held_ns: int


@dataclass(frozen=True, slots=True)
class Breach:
    """A call grew while a session of higher rank was short; told at most once a second for a call.

    `missing_bytes`: of what was promised and the margin. `hold_ns` 0: it has had all its holds, or cannot be held.
    """

    at_ns: int
    call_id: int
    session_id: int
    for_session_id: int
    rate_bytes_per_s: int
    missing_bytes: int
    stall_ns: int
    hold_ns: int


class MemoryProgram:
    """Loaded and attached from construction to `close`. Raises BpfError when the kernel will not have it."""

    def __init__(
        self,
        *,
        accounts_max: int = 8192,
        shared: SharedMaps | None = None,
        on_breach: Callable[[Breach], None] = lambda breach: None,
    ) -> None:
        """`shared`: with the scheduler's map of holds. `on_breach` is called from `drain`."""
        self._accounts_max = accounts_max
        self._on_breach = on_breach
        self._numbers_set: GuardNumbers | None = None
        self._protections: dict[int, int] = {}
        self._revision = 0
        self._programs = Programs(
            object_path("memory"),
            knobs={"knobs": MemoryKnobs(WINDOW_NS, AVERAGING_NS)},
            sizes={"memory_accounts": accounts_max},
            optional=_OPTIONAL,
            shared=shared,
        )
        try:
            self._accounts = self._programs.hash_map("memory_accounts", MemoryAccount)
            self._losses = self._programs.array_map("memory_losses", MemoryLosses)
            self._guards = self._programs.hash_map("memory_guards", MemoryGuard)
            self._numbers = self._programs.array_map("memory_numbers", MemoryNumbers)
            self._figures = self._programs.array_map("memory_guard_figures", MemoryGuardFigures)
            self._ring = self._programs.ring("memory_breaches", self._receive)
            self._programs.attach()
            missing = [one for one in self._programs.absent if one.name == "on_charge"]
            if missing:
                raise BpfError(f"seeing memory being charged: {missing[0].reason}", errno.EOPNOTSUPP)
        except BaseException:
            self._programs.close()
            raise

    def close(self) -> None:
        """Detaches and unloads; nobody is held any more. Safe to call twice."""
        if self._protections:
            self._protections.clear()
            self._programs.run("let_go")
        self._programs.close()

    @property
    def attached(self) -> tuple[str, ...]:
        return self._programs.attached

    @property
    def absent(self) -> tuple[Absent, ...]:
        """Programs that this kernel does not take, with the reason."""
        return self._programs.absent

    # ---- growth

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
        losses = self._losses[0]
        missed = self._programs.recursion_misses()
        return {"depth": losses.depth, "breaches": losses.breaches, "missed": missed}

    # ---- guard

    def set_numbers(self, numbers: GuardNumbers | None) -> None:
        """From now on; None switches the guard off and lets everybody go."""
        self._numbers_set = numbers
        self._write_numbers()
        if numbers is None:
            self._programs.run("let_go")

    def guard(self, session_id: int, rank: int, protection_bytes: int) -> None:
        """Calls of sessions with a smaller `rank` are slowed where they take what this one has been promised.

        The session needs an account, and so does the cgroup that `set_numbers` names.
        """
        self._guards.put(session_id, MemoryGuard(protection_bytes, rank))
        self._protections[session_id] = protection_bytes
        self._write_numbers()

    def forget(self, session_id: int) -> None:
        """The session is gone: whoever was held for it is let go, or held anew at its next charge for another."""
        if self._protections.pop(session_id, None) is None:
            return
        self._guards.delete(session_id)
        self._write_numbers()
        self._programs.run("let_go")

    def stalls(self, session_id: int) -> Stalls | None:
        account = self._accounts.get(session_id)
        return None if account is None else Stalls(account.stalls, account.stalled_ns)

    def figures(self) -> GuardFigures:
        found = self._figures[0]
        return GuardFigures(
            tuple(found.waits), found.asked, found.failed, found.released, found.holds, found.held_ns
        )

    def _write_numbers(self) -> None:
        numbers = self._numbers_set
        self._revision += 1
        if numbers is None or len(self._protections) < 2:
            # Nobody to be slowed, or nobody to be slowed for: the charge path need not look.
            self._numbers[0] = MemoryNumbers()
            return
        self._numbers[0] = MemoryNumbers(
            shared_id=numbers.shared_id,
            # One byte more than nothing: with 0 the guard is off.
            watch_bytes=sum(self._protections.values()) + numbers.margin_bytes + 1,
            margin_bytes=numbers.margin_bytes,
            active_ns=numbers.active_ns,
            stall_full_ns=numbers.stall_full_ns,
            stall_linger_ns=numbers.stall_linger_ns,
            hold_max_ns=numbers.hold_max_ns,
            hold_total_ns=numbers.hold_total_ns,
            full_rate_bytes_per_s=numbers.full_rate_bytes_per_s,
            revision=self._revision,
        )

    # ---- breaches

    def fileno(self) -> int:
        """Readable when there are breaches."""
        return self._ring.fileno()

    def drain(self, at_most: int = 256) -> int:
        """Hands waiting breaches to `on_breach`; how many there were."""
        return self._ring.drain(at_most)

    def _receive(self, data: bytes) -> None:
        one = MemoryBreach.from_buffer_copy(data)
        self._on_breach(Breach(*(getattr(one, field) for field, _ in MemoryBreach._fields_)))


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
        holds=account.holds,
        held_ns=account.held_ns,
        holds_refused=account.holds_refused,
    )
