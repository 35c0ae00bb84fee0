"""What running calls give back of what they declared, and how much of that may be lent to others.

A call that declared 4 GB and has never used more than 200 MB keeps others waiting for nothing. It gives back what it
demonstrably does not use; its memory.max stays, so it can still grow, and that is what the oversubscription factor bounds.
Use above the declaration is not counted: memory.current holds page cache, which the kernel takes back for the others.
"""

from typing import Final

from agentcgroup.daemon.model import Usage

# Tools load, collect and link in phases: nothing is given back before this age, nor before half the expected time.
SETTLE_MS: Final = 15_000
# Kept above the use, for the next phase: a quarter of it, and at least this.
LEAST_HEADROOM_BYTES: Final = 64 << 20


def given_back_bytes(declared_bytes: int, usage: Usage, age_ms: int, expected_ms: int | None = None) -> int:
    """How much less than `declared_bytes` a running call counts for. 0 while it settles and where nothing is measured.

    The peak counts, not only the use of the moment: a call that was large once may be again.
    """
    if usage.memory_current_bytes is None or age_ms < max(SETTLE_MS, (expected_ms or 0) // 2):
        return 0
    current = usage.memory_current_bytes
    kept = max(current + max(current // 4, LEAST_HEADROOM_BYTES), usage.memory_peak_bytes or 0)
    return max(0, declared_bytes - kept)


def counted_bytes(declared_bytes: int, given_back: int, total_bytes: int, oversubscription: float) -> int:
    """What counts as reserved at a level of `total_bytes` where `declared_bytes` are declared.

    A call that fits beside this keeps both sums: what is counted stays within the total, and what is declared within
    `oversubscription` (1 and more) times the total.
    """
    return declared_bytes - min(given_back, int((oversubscription - 1) * total_bytes))
