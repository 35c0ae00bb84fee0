"""The ladder for the memory of one call: what is done when it wants more than it declared, and until when.

A pure state machine. `step` takes where the call stands, what its intent allows and what is seen now, and says where it
stands then, what is to be done, what memory.high is to be, and when to look again. The rungs:

    CALM       memory.high at the soft limit; nothing is looked at until the kernel says that it was reached
    WARNED     (stop) told before the kill; memory.high is lifted, so that it runs freely up to memory.max
    THROTTLED  (throttle) memory.high slows it down; released, or killed at the deadline
    CLAMPED    (extend, and no room) the same, while room is looked for; at the deadline frozen, or killed
    FROZEN     (extend, and others may give room) stands still; extended and thawed, or killed at the deadline

Extending is a step and no rung: from CALM, CLAMPED or FROZEN back to CALM with a higher soft limit.

What counts is memory that reclaim cannot take (`held_bytes`): a call that fills its cache reaches memory.high all the time
and is in no trouble. Above memory.high the kernel delays threads on their way back to user mode, the more the further
they are over (mm/memcontrol.c, mem_cgroup_handle_over_high; up to 1 % over nothing at all, at most 2 s at a time), which
is what gives a warning its time: the soft limit of a `stop` call stands a little below memory.max and holds back a call
that grows fast for no longer than it takes to write the warning.
"""

import dataclasses
from dataclasses import dataclass
from typing import Final

from agentcgroup.daemon.model import Action, OnExceed, Rung

# A soft limit for the warning stands this part of memory.max below it, within bounds. Calls so small that it means nothing
# have none.
_MARGIN_DIVISOR: Final = 16
_LEAST_MARGIN_BYTES: Final = 2 << 20
_MOST_MARGIN_BYTES: Final = 128 << 20
_LEAST_MAX_BYTES: Final = 8 << 20

# Between nine and ten tenths of memory.high nothing changes: below, the kernel no longer throttles.
_ENTER_TENTHS: Final = 9.5
_LEAVE_TENTHS: Final = 9

# An extension is a quarter of what the call has, or what it grows by in a second, if that is more.
_EXTEND_DIVISOR: Final = 4
_LEAST_EXTENSION_BYTES: Final = 4 << 20

# Looks while the call is on a rung, and the pauses when there is nothing to be done about what was seen.
LOOK_MS: Final = 250
IDLE_LOOK_MS: Final = 1000
# The page cache alone had reached a limit: heard again this much later, which is less than the 200 ms of growth before an
# end in which a warning is owed.
CACHE_MS: Final = 100
# After a step that changed something the kernel is listened to again this soon.
PROMPT_MS: Final = 20
# The agent is not told the same again for this long, and of a call that is released and held back in turns not each time.
QUIET_MS: Final = 10_000
FLAP_MS: Final = 2000


@dataclass(frozen=True, slots=True)
class Rules:
    """What the call's limits and its intent say. `max_bytes` None: no limit of its own."""

    on_exceed: OnExceed
    reserved_bytes: int
    max_bytes: int | None
    throttle_limit_ms: int
    freeze_limit_ms: int

    @property
    def warns_bytes(self) -> int | None:
        """Where a call that is to be stopped at its maximum is warned."""
        if self.max_bytes is None or self.max_bytes < _LEAST_MAX_BYTES:
            return None
        margin = min(max(self.max_bytes // _MARGIN_DIVISOR, _LEAST_MARGIN_BYTES), _MOST_MARGIN_BYTES)
        return self.max_bytes - margin

    @property
    def brakes(self) -> bool:
        """Whether memory.high is at what the call has reserved, rather than just below its maximum."""
        if self.on_exceed is OnExceed.STOP:
            return False
        return self.max_bytes is None or self.reserved_bytes < self.max_bytes

    @property
    def soft_bytes(self) -> int | None:
        """memory.high of a call that is not warned yet; None: none."""
        return self.reserved_bytes if self.brakes else self.warns_bytes


@dataclass(frozen=True, slots=True)
class Seen:
    """What was seen of the call at `now_ms`, a monotonic time. `held_bytes` None: the kernel does not say."""

    now_ms: int
    held_bytes: int | None
    room_bytes: int = 0  # more that session, host and the call around it could reserve for it now
    others_hold_bytes: int = 0  # what other calls have reserved there, and may give back
    growth_bytes_per_s: int | None = (
        None  # as the kernel measured it just now; else it follows from two looks
    )


@dataclass(frozen=True, slots=True)
class Stand:
    """Where a call stands. `deadline_ms` is when it is frozen or killed unless something changes before."""

    rung: Rung = Rung.CALM
    deadline_ms: int | None = None
    held_bytes: int | None = None
    seen_ms: int | None = None
    growth_bytes_per_s: int | None = None
    # What the agent was told last and when, and what it is still to be told when it has been quiet for long enough.
    told: Action | None = None
    told_ms: int = 0
    untold: Action | None = None


@dataclass(frozen=True, slots=True)
class Act:
    """One thing to do and to write down. `to_bytes`: the new reservation of an extension."""

    action: Action
    reason: str
    to_bytes: int | None = None
    # Whether the agent is told; a repetition within the cool-down is only written down.
    is_news: bool = True


@dataclass(frozen=True, slots=True)
class Step:
    stand: Stand
    acts: tuple[Act, ...] = ()
    # memory.high from now on; None: no limit.
    high_bytes: int | None = None
    # When to look again without being told; None: only when the kernel says so.
    look_in_ms: int | None = None


def _say(stand: Stand, action: Action, now_ms: int) -> tuple[bool, Stand]:
    """Whether `action` is news to the agent now, and the stand with that remembered."""
    since_ms = now_ms - stand.told_ms
    if stand.told is None:
        is_news = True
    elif stand.told is action:
        is_news = since_ms >= QUIET_MS
    else:
        is_news = stand.told is not Action.RELEASED or since_ms >= FLAP_MS
    if is_news:
        return True, dataclasses.replace(stand, told=action, told_ms=now_ms, untold=None)
    return False, dataclasses.replace(stand, untold=action)


def time_to_limit_ms(
    held_bytes: int | None, growth_bytes_per_s: int | None, limit_bytes: int | None
) -> int | None:
    """How long until `limit_bytes` at the present growth; None: it does not grow, or nobody knows."""
    if held_bytes is None or limit_bytes is None or not growth_bytes_per_s or growth_bytes_per_s < 0:
        return None
    return max(0, limit_bytes - held_bytes) * 1000 // growth_bytes_per_s


def is_reached(rules: Rules, held_bytes: int) -> bool:
    """Whether `held_bytes` are so near the soft limit that a calm call leaves its rung."""
    return rules.soft_bytes is not None and 10 * held_bytes >= _ENTER_TENTHS * rules.soft_bytes


def _growth(stand: Stand, seen: Seen) -> int | None:
    """Bytes per second since the last look; what it was when there is too little time between to tell."""
    if seen.growth_bytes_per_s is not None:
        return seen.growth_bytes_per_s
    if stand.seen_ms is None or stand.held_bytes is None or seen.held_bytes is None:
        return stand.growth_bytes_per_s
    elapsed_ms = seen.now_ms - stand.seen_ms
    if elapsed_ms < LOOK_MS // 10:
        return stand.growth_bytes_per_s
    return (seen.held_bytes - stand.held_bytes) * 1000 // elapsed_ms


def step(rules: Rules, stand: Stand, seen: Seen) -> Step:
    """What follows from one look at a call, for whatever cause it was looked at."""
    stand = dataclasses.replace(
        stand,
        growth_bytes_per_s=_growth(stand, seen),
        held_bytes=seen.held_bytes,
        seen_ms=seen.now_ms,
    )
    if rules.brakes:
        return _braked(rules, stand, seen)
    if stand.rung in (Rung.THROTTLED, Rung.CLAMPED, Rung.FROZEN):
        # It was given so much that only its maximum is left to watch.
        return _released(rules, stand, "its limit was raised")
    return _free(rules, stand, seen)


def _free(rules: Rules, stand: Stand, seen: Seen) -> Step:
    """A call that runs up to its maximum."""
    soft = rules.warns_bytes
    is_warned = stand.rung is Rung.WARNED
    if seen.held_bytes is None:
        return Step(stand, (), None if is_warned else soft, IDLE_LOOK_MS if is_warned else None)
    tenths = 10 * seen.held_bytes / soft if soft is not None else 0.0
    if is_warned:
        if tenths < _LEAVE_TENTHS:
            calm = dataclasses.replace(stand, rung=Rung.CALM, growth_bytes_per_s=None)
            return Step(calm, (Act(Action.RELEASED, "it gave memory back", is_news=False),), soft)
        grows = (stand.growth_bytes_per_s or 0) > 0
        return Step(stand, look_in_ms=LOOK_MS if grows else IDLE_LOOK_MS)
    if tenths < _ENTER_TENTHS:
        # The kernel took cache at memory.high, or this was a look of our own.
        return Step(stand, high_bytes=soft)
    is_news, stand = _say(stand, Action.WARNED, seen.now_ms)
    warned = dataclasses.replace(stand, rung=Rung.WARNED)
    # Lifted: an honest call is not to be slowed down on its way to a limit that it may not even reach.
    return Step(warned, (Act(Action.WARNED, "its limit is near", is_news=is_news),), None, LOOK_MS)


def _braked(rules: Rules, stand: Stand, seen: Seen) -> Step:
    """A call whose memory.high is at what it has reserved."""
    high = rules.reserved_bytes
    held = seen.held_bytes
    tenths = 10 * held / high if held is not None else 10.0
    if tenths < _LEAVE_TENTHS and stand.rung is not Rung.CALM:
        return _released(rules, stand, "it is below its soft limit again")
    if stand.rung in (Rung.CALM, Rung.WARNED):
        if held is None or tenths < _ENTER_TENTHS:
            if stand.rung is Rung.WARNED:
                return _released(rules, stand, "its limits were changed")
            return Step(stand, high_bytes=high)
        if rules.on_exceed is OnExceed.EXTEND:
            return _extended(rules, stand, seen) or _climb(
                rules,
                stand,
                seen,
                Rung.CLAMPED,
                Action.CLAMPED,
                "there is no room to extend it",
                rules.throttle_limit_ms,
            )
        return _climb(
            rules,
            stand,
            seen,
            Rung.THROTTLED,
            Action.THROTTLED,
            "it is over what it declared",
            rules.throttle_limit_ms,
        )
    if rules.on_exceed is OnExceed.EXTEND:
        extended = _extended(rules, stand, seen)
        if extended is not None:
            return extended
    assert stand.deadline_ms is not None
    if seen.now_ms < stand.deadline_ms:
        pause_ms = IDLE_LOOK_MS if stand.rung is Rung.FROZEN else LOOK_MS
        acts: tuple[Act, ...] = ()
        if stand.untold is not None:
            action = stand.untold
            is_news, stand = _say(stand, action, seen.now_ms)
            acts = (Act(action, "it is still held back"),) if is_news else ()
        assert stand.deadline_ms is not None
        return Step(stand, acts, high, min(pause_ms, stand.deadline_ms - seen.now_ms))
    if stand.rung is Rung.CLAMPED and seen.others_hold_bytes > 0:
        return _climb(
            rules,
            stand,
            seen,
            Rung.FROZEN,
            Action.FROZEN,
            "other calls may still give memory back",
            rules.freeze_limit_ms,
        )
    reason = {
        Rung.THROTTLED: "it stayed over what it declared",
        Rung.CLAMPED: "no room came, and there is nobody who could give any",
    }.get(stand.rung, "no room came while it was frozen")
    return Step(stand, (Act(Action.KILLED, reason),), high)


def _climb(
    rules: Rules, stand: Stand, seen: Seen, rung: Rung, action: Action, reason: str, limit_ms: int
) -> Step:
    is_news, stand = _say(stand, action, seen.now_ms)
    higher = dataclasses.replace(stand, rung=rung, deadline_ms=seen.now_ms + limit_ms)
    look_in_ms = min(IDLE_LOOK_MS if rung is Rung.FROZEN else LOOK_MS, limit_ms)
    return Step(higher, (Act(action, reason, is_news=is_news),), rules.reserved_bytes, look_in_ms)


def _released(rules: Rules, stand: Stand, reason: str) -> Step:
    thaws = (Act(Action.THAWED, reason),) if stand.rung is Rung.FROZEN else ()
    calm = dataclasses.replace(stand, rung=Rung.CALM, deadline_ms=None, growth_bytes_per_s=None, untold=None)
    # Who was not told that it is held back need not hear that it no longer is.
    is_news = stand.rung is not Rung.WARNED and not thaws and stand.untold is None
    if is_news or thaws:
        calm = dataclasses.replace(calm, told=Action.RELEASED, told_ms=stand.seen_ms or 0)
    return Step(calm, (*thaws, Act(Action.RELEASED, reason, is_news=is_news)), rules.soft_bytes)


def _extended(rules: Rules, stand: Stand, seen: Seen) -> Step | None:
    """A step up in what the call has reserved; None: there is no room for one that is worth it."""
    wanted = max(
        rules.reserved_bytes // _EXTEND_DIVISOR, stand.growth_bytes_per_s or 0, _LEAST_EXTENSION_BYTES
    )
    ceiling = rules.max_bytes - rules.reserved_bytes if rules.max_bytes is not None else wanted
    given = min(wanted, seen.room_bytes, ceiling)
    if given < min(_LEAST_EXTENSION_BYTES, ceiling):
        return None
    to_bytes = rules.reserved_bytes + given
    higher = dataclasses.replace(rules, reserved_bytes=to_bytes)
    was_frozen = stand.rung is Rung.FROZEN
    is_news, stand = _say(stand, Action.EXTENDED, seen.now_ms)
    acts = [Act(Action.EXTENDED, "session and host have room", to_bytes, is_news)]
    if was_frozen:
        acts.append(Act(Action.THAWED, "there is room again", is_news=False))
    calm = dataclasses.replace(stand, rung=Rung.CALM, deadline_ms=None, untold=None)
    # It may have grown past the new limit already: one look of our own, then the kernel tells.
    return Step(calm, tuple(acts), higher.soft_bytes, LOOK_MS)
