"""What the memory program and the daemon tell each other, as ctypes: the twin of memory.h, field by field."""

import ctypes
from typing import Any, Final

__all__ = [
    "STRUCTURES",
    "WAIT_BUCKETS",
    "WAIT_STEP_NS",
    "MemoryAccount",
    "MemoryBreach",
    "MemoryGuard",
    "MemoryGuardFigures",
    "MemoryKnobs",
    "MemoryLosses",
    "MemoryNumbers",
]

WAIT_BUCKETS: Final = 64
WAIT_STEP_NS: Final = 250_000

_u32, _u64 = ctypes.c_uint32, ctypes.c_uint64


def _all_u64(*names: str) -> "list[tuple[str, Any]]":
    return [(name, _u64) for name in names]


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
    asked_ns: int
    holds: int
    held_ns: int
    holds_refused: int
    stalls: int
    stalled_ns: int
    _fields_ = _all_u64(
        *(
            "soft_limit_bytes",
            "at_ns",
            "usage_bytes",
            "batches",
            "rate_bytes_per_s",
            "peak_rate_bytes_per_s",
        ),
        *("over_soft_ns", "over_soft_since_ns", "breaches", "window_at_ns", "window_usage_bytes", "counter"),
        *("asked_ns", "holds", "held_ns", "holds_refused", "told_at_ns", "paid_until_ns", "asked_at_ns"),
        *(
            "stalls",
            "stalled_ns",
            "stall_last_ns",
            "stalled_until_ns",
            "promised_bytes",
            "promised_revision",
        ),
    )


class MemoryGuard(ctypes.Structure):
    _fields_ = [*_all_u64("protection_bytes"), ("rank", _u32), ("reserved", _u32)]


class MemoryNumbers(ctypes.Structure):
    _fields_ = _all_u64(
        *("shared_id", "watch_bytes", "margin_bytes", "active_ns", "stall_full_ns", "stall_linger_ns"),
        *("hold_max_ns", "hold_total_ns", "full_rate_bytes_per_s", "revision"),
    )


class MemoryBreach(ctypes.Structure):
    _fields_ = _all_u64(
        *("at_ns", "call_id", "session_id", "for_session_id", "rate_bytes_per_s"),
        *("missing_bytes", "stall_ns", "hold_ns"),
    )


class MemoryGuardFigures(ctypes.Structure):
    waits: "ctypes.Array[ctypes.c_uint64]"
    asked: int
    failed: int
    released: int
    holds: int
    held_ns: int
    _fields_ = [("waits", _u64 * WAIT_BUCKETS), *_all_u64("asked", "failed", "released", "holds", "held_ns")]


class MemoryLosses(ctypes.Structure):
    depth: int
    breaches: int
    _fields_ = _all_u64("depth", "breaches")


class MemoryKnobs(ctypes.Structure):
    _fields_ = _all_u64("window_ns", "averaging_ns")


# By the name in memory.h, for the test that compares both.
STRUCTURES: Final[dict[str, type[ctypes.Structure]]] = {
    "memory_account": MemoryAccount,
    "memory_guard": MemoryGuard,
    "memory_numbers": MemoryNumbers,
    "memory_breach": MemoryBreach,
    "memory_guard_figures": MemoryGuardFigures,
    "memory_losses": MemoryLosses,
    "memory_knobs": MemoryKnobs,
}
