"""How fast a counter rises, from one read to the next."""

from dataclasses import dataclass
from typing import Final

# Two reads closer than this say nothing about growth.
_LEAST_INTERVAL_NS: Final = 5_000_000


@dataclass(slots=True)
class Reading:
    """A counter of bytes or microseconds as last read, and how fast it rose."""

    value: int
    at_ns: int
    per_s: int = 0

    def update(self, value: int, at_ns: int, *, decays: bool) -> int:
        """The counter was read as `value`: what it rises by in a second, which at most halves in a read if it `decays`."""
        elapsed_ns = at_ns - self.at_ns
        if elapsed_ns >= _LEAST_INTERVAL_NS:
            rose = max(0, value - self.value) * 1_000_000_000 // elapsed_ns
            # What comes in bursts must not look like rest between two of them.
            self.per_s = max(rose, self.per_s // 2) if decays else rose
            self.value, self.at_ns = value, at_ns
        elif elapsed_ns < 0:  # The clock was set back.
            self.value, self.at_ns = value, at_ns
        return self.per_s
