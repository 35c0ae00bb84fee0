"""What the history says about itself, for metrics and logs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class DropCause(StrEnum):
    """Why an ended call, or a decision, is not in the history."""

    # Storage failed or was too slow for so long that the queue was full; the oldest entry waiting was
    # given up.
    QUEUE_FULL = "queue_full"
    # Still unwritten when the daemon stopped.
    STOPPED = "stopped"
    # No row could be made of it.
    UNWRITABLE = "unwritable"


@dataclass(frozen=True, slots=True)
class HistoryStats:
    """One moment of the history.

    `trouble` is empty when records reach the file, else cause and next step.
    """

    enabled: bool
    trouble: str = ""
    written: int = 0
    dropped: Mapping[DropCause, int] = field(default_factory=dict)
    # Deleted by age or size since the start.
    expired: int = 0
    # The same of decisions.
    events_written: int = 0
    events_dropped: Mapping[DropCause, int] = field(default_factory=dict)
    events_expired: int = 0
    # Calls and decisions.
    waiting: int = 0
    # None: the file could not be opened yet.
    entries: int | None = None
    size_bytes: int | None = None

    @property
    def working(self) -> bool:
        return self.enabled and not self.trouble
