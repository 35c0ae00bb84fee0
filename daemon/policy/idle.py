"""Giving back the cold memory of an agent runtime that waits for its model: small bites, as long as nobody misses them.

The kernel takes the coldest pages first, so what hurts shows as stall of the runtime's own tasks (PSI): then it stops
until the runtime has waited again. memory.high is not for this: stepped down it throttles whoever wakes up. Without
swap only file pages can go.
"""

from dataclasses import dataclass
from typing import Final

from agentcgroup.daemon.model import AgentActivity

# Of one CPU. A runtime that waits still has timers.
_IDLE_CPU_SHARE: Final = 0.02
# Of the time. A thousandth is what the field takes for harmless (Senpai).
_STALL_SHARE: Final = 0.001
_LEAST_BITE_BYTES: Final = 1 << 20
_MOST_BITE_BYTES: Final = 64 << 20
# Between two bites: long enough for stall to show.
BITE_INTERVAL_MS: Final = 2_000


@dataclass(frozen=True, slots=True)
class Look:
    """The activity of an agent leaf at a time, and what was freed since the look before; None: nothing was asked for."""

    at_ns: int
    activity: AgentActivity
    asked_bytes: int = 0
    freed_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Ruling:
    """`bite_bytes`: ask the kernel for so much now. `again`: look again; `reason` says why not."""

    bite_bytes: int = 0
    again: bool = True
    reason: str = ""


def decide(before: Look, now: Look) -> Ruling:
    """Rules on an agent leaf without running calls, by what it did since `before`."""
    elapsed_us = max(1, (now.at_ns - before.at_ns) // 1000)
    stall_us = now.activity.stall_us - before.activity.stall_us
    # First: who wakes up and reads back what was taken works, and misses it all the same.
    if before.asked_bytes and stall_us > _STALL_SHARE * elapsed_us:
        return Ruling(again=False, reason="it missed what was taken")
    if now.activity.cpu_us - before.activity.cpu_us > _IDLE_CPU_SHARE * elapsed_us:
        return Ruling(reason="it worked on")
    if before.asked_bytes and (before.freed_bytes or 0) < before.asked_bytes // 4:
        return Ruling(again=False, reason="nothing cold was left")
    bite_bytes = min(_MOST_BITE_BYTES, max(_LEAST_BITE_BYTES, now.activity.file_bytes // 8))
    if now.activity.file_bytes < _LEAST_BITE_BYTES:
        return Ruling(again=False, reason="nothing cold was left")
    return Ruling(bite_bytes)
