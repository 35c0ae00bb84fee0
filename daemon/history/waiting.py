"""The bounded queue between the loop, where things are decided and calls end, and the thread that writes them down."""

import threading
from collections import Counter, deque
from typing import Final

from agentcgroup.daemon.history.file import Record
from agentcgroup.daemon.history.stats import DropCause
from agentcgroup.daemon.model import Event

# Ten seconds of the busiest daemon we promise, a call with its decisions each; some MiB of memory.
WAITING_MAX: Final = 8192
BATCH_MAX: Final = 256
# How long the first entry of a batch waits for company.
LINGER_S: Final = 0.5


class WaitingRoom:
    """Entries on their way to the file. Methods of the producer side never block on the disk."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[Record] = deque()
        self._in_flight: list[Record] = []
        self._hurry = False
        self._closing = False
        self._rounds = 0
        self._failing = False
        # What is lost here, for stats: read from any thread.
        self.lost_calls: Counter[DropCause] = Counter()
        self.lost_events: Counter[DropCause] = Counter()

    # ---- the producers --------------------------------------------------------------------------------

    def put(self, entry: Record) -> None:
        """Queue `entry`; the oldest waiting one gives way when there is no room."""
        with self._changed:
            if self._closing:
                self._lose(entry, DropCause.STOPPED)
                return
            self._waiting.append(entry)
            self._displace()
            if len(self._waiting) in (1, BATCH_MAX):
                self._changed.notify_all()

    def nudge(self) -> None:
        """Make the writer look after the file now, also while it waits before a retry."""
        with self._changed:
            self._hurry = True
            self._changed.notify_all()

    def settle(self, timeout_s: float) -> None:
        """Wait until everything queued so far is written, or an attempt failed, or time is up."""
        with self._changed:
            if self._rounds and not self._waiting and not self._in_flight and not self._failing:
                return
            before = self._rounds
            self._hurry = True
            self._changed.notify_all()
            self._changed.wait_for(
                lambda: self._rounds > before and (self._failing or not (self._waiting or self._in_flight)),
                timeout_s,
            )

    def close(self) -> None:
        """Take nothing more; the writer's `take` returns what is left and then None."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closing

    @property
    def depth(self) -> int:
        """Entries queued or being written."""
        return len(self._waiting) + len(self._in_flight)

    # ---- the writer -----------------------------------------------------------------------------------

    def take(self, idle_s: float, *, retry: bool = False) -> list[Record] | None:
        """The next entries to write: none when `idle_s` passed without any, None when closed and empty.

        With `retry` the last attempt failed: wait `idle_s` whatever is queued.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: self._closing or self._hurry or (bool(self._waiting) and not retry), idle_s
            )
            if self._waiting and not retry:
                self._changed.wait_for(
                    lambda: self._closing or self._hurry or len(self._waiting) >= BATCH_MAX, LINGER_S
                )
            if self._closing and not self._waiting:
                return None
            self._in_flight = [self._waiting.popleft() for _ in range(min(BATCH_MAX, len(self._waiting)))]
            self._hurry = self._hurry and bool(self._waiting)
            return self._in_flight

    def written(self) -> None:
        """What `take` gave is in the file."""
        with self._changed:
            self._in_flight = []
            self._failing = False
            self._rounds += 1
            self._changed.notify_all()

    def failed(self) -> None:
        """What `take` gave is not in the file and waits again, first in the row."""
        with self._changed:
            self._waiting.extendleft(reversed(self._in_flight))
            self._in_flight = []
            self._displace()
            self._failing = True
            self._hurry = False
            self._rounds += 1
            self._changed.notify_all()

    def abandon(self) -> int:
        """Give up what is left. Returns how many entries that were."""
        with self._changed:
            self._closing = True
            left = [*self._in_flight, *self._waiting]
            for record in left:
                self._lose(record, DropCause.STOPPED)
            self._waiting.clear()
            self._in_flight = []
            self._failing = True
            self._rounds += 1
            self._changed.notify_all()
            return len(left)

    def _displace(self) -> None:
        while len(self._waiting) > WAITING_MAX:
            self._lose(self._waiting.popleft(), DropCause.QUEUE_FULL)

    def _lose(self, record: Record, cause: DropCause) -> None:
        lost = self.lost_events if isinstance(record, Event) else self.lost_calls
        lost[cause] += 1
