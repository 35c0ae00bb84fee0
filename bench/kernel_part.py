"""What a part of the kernel benchmark is: bench/kernel.py runs the parts, in the guest."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bench.report import Target

# Whatever JSON can hold; the part's own functions know its shape.
Figures = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Part:
    """`measure` gets the number of rounds, in each of which everything that is compared has its turn."""

    name: str
    summary: str
    rounds: int
    measure: Callable[[int], Figures]
    # Held against what was promised.
    targets: Callable[[Figures], list[Target]]
    # For a terminal, with the spread between rounds.
    table: Callable[[Figures], str]
    # In a guest of one CPU whose clock counts instructions: differences of a few percent come out the same each time.
    is_counted: bool = False


def spread(values: list[float], digits: int = 1) -> str:
    """The median of a non-empty sample and its ends: "4.0 (3.9-4.7)"."""
    ordered = sorted(values)
    middle, low, high = ordered[len(ordered) // 2], ordered[0], ordered[-1]
    return f"{middle:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"
