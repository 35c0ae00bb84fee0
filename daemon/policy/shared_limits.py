"""Whom to warn when a limit that several calls share fills up: the session's, or that of all sessions.

Two kinds of calls have something to do with it: whoever grows fills it, and one is ended when it is full. That is whoever
holds the most when the kernel chooses (mm/oom_kill.c, oom_badness). The others are left in peace.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final

from agentcgroup.daemon.policy.ladder import QUIET_MS

# A call grows that has at least this part in what all of them grow by.
_GROWER_PART: Final = 10


@dataclass(frozen=True, slots=True)
class Holder:
    """A running call below the limit. `growth_bytes_per_s` None: not known yet.

    `own_left_bytes`: of one that was warned of its own limit, what it may still take until then.
    """

    call_id: str
    held_bytes: int
    growth_bytes_per_s: int | None = None
    own_left_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Addressee:
    holder: Holder
    # Whether it would be ended.
    is_likely: bool


def addressees(
    holders: Collection[Holder], left_bytes: int, slack_bytes: int = 0, likely_id: str | None = None
) -> tuple[Addressee, ...]:
    """Who is to hear that `left_bytes` are left, the fastest grower first.

    Not a call that was warned of its own limit already, when that is as near, give or take `slack_bytes`. `likely_id`: the
    call that would be ended; None: the kernel chooses.
    """
    if not holders:
        return ()
    grown = sum(max(0, each.growth_bytes_per_s or 0) for each in holders)
    if likely_id is None:
        likely_id = max(holders, key=lambda each: (each.held_bytes, each.call_id)).call_id
    concerned = sorted(
        (each for each in holders if each.call_id == likely_id or _grows(each, grown)),
        key=lambda each: (-(each.growth_bytes_per_s or 0), each.call_id),
    )
    return tuple(
        Addressee(each, each.call_id == likely_id)
        for each in concerned
        if each.own_left_bytes is None or each.own_left_bytes > left_bytes + slack_bytes
    )


def _grows(holder: Holder, grown: int) -> bool:
    growth = holder.growth_bytes_per_s
    return growth is not None and growth > 0 and growth * _GROWER_PART >= grown


class Told:
    """Which calls have heard of a limit since it began to fill up."""

    def __init__(self) -> None:
        self._at_ms: dict[str, int] = {}

    def news(self, found: Iterable[Addressee], now_ms: int) -> list[Addressee]:
        """Those of `found` who have not; from now on they have."""
        new = [each for each in found if each.holder.call_id not in self._at_ms]
        self._at_ms |= {each.holder.call_id: now_ms for each in new}
        return new

    def over(self, now_ms: int) -> tuple[str, ...]:
        """There is room again: the next time is news to everybody who was not told just now. Who had been told."""
        told = tuple(self._at_ms)
        self._at_ms = {call_id: at_ms for call_id, at_ms in self._at_ms.items() if now_ms - at_ms < QUIET_MS}
        return told
