"""Streams of feedback: how many there may be, their first message, and that none outlives its reader."""

import contextlib
import time
from collections.abc import Iterator
from typing import Final

from agentcgroup.daemon.errors import Kind, RequestError
from agentcgroup.daemon.feedback import Feed, Subscription
from agentcgroup.daemon.model import Feedback, FeedbackKind, HostStatus, Level, SessionLimits
from agentcgroup.daemon.policy import pauses
from agentcgroup.proto.quantity import format_cpu, format_size

# Each stream holds a queue in the daemon. An agent, its harness and a few tools watch; more is a loop gone
# wrong.
MOST_STREAMS: Final = 64


class Watchers:
    """The open streams of one session, or of the operators."""

    def __init__(self) -> None:
        self._open: set[Subscription] = set()

    @contextlib.contextmanager
    def subscribed(self, feed: Feed, session: str | None, call_id: str = "") -> Iterator[Subscription]:
        """A subscription for the length of the block. Raises RequestError(EXHAUSTED) when too many are open."""
        if len(self._open) >= MOST_STREAMS:
            raise RequestError(
                Kind.EXHAUSTED,
                f"{MOST_STREAMS} streams are open on this socket already",
                "close one, or let one reader hand its messages on",
            )
        subscription = feed.subscribe(session, call_id)
        self._open.add(subscription)
        try:
            yield subscription
        finally:
            self._open.discard(subscription)
            subscription.close()

    def close(self) -> None:
        """Ends every stream, each after what is queued for it."""
        for subscription in list(self._open):
            subscription.close()


def hello(limits: SessionLimits) -> Feedback:
    """The first message of an agent's stream: the truth about its session. It stands outside the numbering."""
    at_ns = time.time_ns()
    budget = limits.budget
    cpu = format_cpu(limits.cpu_available_milli)
    words = (
        f"Session {limits.session}: {format_size(budget.calls_memory_bytes)} memory for all calls together, "
        f"{format_size(limits.memory_available_bytes)} of it free to declare now; {cpu}; "
        f"{limits.pids_available} more processes."
    )
    if limits.not_enforced:
        words += f" Not enforced on this host: {'; '.join(limits.not_enforced)}."
    level, advice = limits.level, ""
    if level is not Level.AMPLE:
        advice = "Declare what each call needs (--memory), so that it is admitted when it fits."
    # Who comes now has not heard what was said of these when they began.
    if limits.is_frozen:
        words += f" {pauses.frozen()}"
    if limits.drain is not None:
        drained, advice = pauses.drained(limits.drain, at_ns)
        words, level = f"{words} {drained}", Level.CRITICAL
    return Feedback(
        sequence=0,
        at_ns=at_ns,
        session=limits.session,
        kind=FeedbackKind.HELLO,
        message=words,
        level=level,
        advice=advice,
    )


def host_hello(status: HostStatus) -> Feedback:
    """The first message of an operator's stream."""
    at_ns = time.time_ns()
    drained = f" {pauses.drained(status.drain, at_ns)[0]}" if status.drain else ""
    return Feedback(
        sequence=0,
        at_ns=at_ns,
        session="",
        kind=FeedbackKind.HELLO,
        message=(
            f"agentcgroupd {status.version} on Linux {status.kernel}, tier {status.tier}: {status.sessions} sessions, "
            f"{status.calls_live} live calls, {format_size(status.memory_reserved_bytes)} of "
            f"{format_size(status.memory_capacity_bytes)} memory promised."
            + (" Dry run: nothing is enforced." if status.dry_run else "")
            + drained
        ),
    )
