"""The queue for room: who of the calls that wait is granted now, in which order the others stand, and for how long.

Sessions go by priority, then by the share of their own budget that they hold (the dominant share of DRF with memory as the
one resource: Ghodsi et al., NSDI 2011), inside a session by class and arrival. A call that does not fit is passed by those
behind it that do (backfilling: Feitelson, IPPS 1997), but only BYPASSES_MAX times: then it is overdue. Overdue calls go
before all others, and their need is claimed at each of their levels: what would delay them is not granted. Because a big
call may wait for minutes, interactive calls still pass through an express lane, a part of the level that the overdue call
does not need. So every call starts after a bounded number of others, as long as calls end.

Of lower priority nobody passes at first: for YIELDS_MS of its own wait a call leaves alone what a better one is short of,
as if that were overdue. Else one that waits for small calls to end would wait for those that come meanwhile, too. It is
bounded because the better one may wait for something long, or in vain.
"""

import heapq
import itertools
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from agentcgroup.daemon.model import CpuClass, Priority

# How often later calls may be granted room that an earlier one waits for.
BYPASSES_MAX: Final = 8
# For so long a call leaves room alone that one of higher priority waits for.
YIELDS_MS: Final = 10_000
# The express lane of a level is this part of it.
EXPRESS_PART: Final = 8
# Bounds of the look ahead: ends of running calls, and calls in the queue, that are considered.
LOOK_AHEAD_ENDS: Final = 32
LOOK_AHEAD_CALLS: Final = 64

_PRIORITY_RANK: Final = {Priority.HIGH: 0, Priority.NORMAL: 1, Priority.LOW: 2}
_CLASS_RANK: Final = {CpuClass.INTERACTIVE: 0, CpuClass.NORMAL: 1, CpuClass.BATCH: 2}


@dataclass(frozen=True, slots=True)
class Waiter:
    """A call that waits. `levels` names where its memory comes from: its session and the host, or the call around it."""

    id: str
    session: str
    levels: tuple[str, ...]
    memory_bytes: int  # the least it can be granted with
    cpu_class: CpuClass
    arrived: int  # rises with each arrival
    passed: int = 0
    runs_ms: int | None = None  # how long it is expected to run
    waited_ms: int = 0


@dataclass(frozen=True, slots=True)
class Level:
    """Memory of a session's calls, of the host, or of a call with others in it. `free_bytes` may be below 0."""

    total_bytes: int
    free_bytes: int
    express_bytes: int = 0  # what running interactive calls have reserved


@dataclass(frozen=True, slots=True)
class Share:
    """How a session stands against the others."""

    priority: Priority
    entitled_bytes: int
    reserved_bytes: int
    calls_free: int
    is_open: bool = True  # a frozen session's calls keep their place and are not granted


@dataclass(frozen=True, slots=True)
class View:
    levels: Mapping[str, Level]
    sessions: Mapping[str, Share]
    calls_free: int
    waiting: Sequence[Waiter]


@dataclass(frozen=True, slots=True)
class Running:
    """A call that holds room and is expected to give it back in `ends_in_ms`."""

    session: str
    levels: tuple[str, ...]
    memory_bytes: int
    cpu_class: CpuClass
    ends_in_ms: int


@dataclass(frozen=True, slots=True)
class Plan:
    """Who is granted now, in that order; who stands how in the queue; how often each of these was passed."""

    granted: tuple[Waiter, ...]
    standing: tuple[Waiter, ...]


@dataclass(slots=True)
class _Room:
    """What is left while the plan is made."""

    levels: dict[str, Level]
    sessions: dict[str, Share]
    calls_free: int
    claimed: Counter[str] = field(default_factory=Counter)  # for those that are overdue
    preferred: Counter[str] = field(
        default_factory=Counter
    )  # for those of higher priority than who is looked at
    largest_claim: dict[str, int] = field(default_factory=dict)

    def rank(self, waiter: Waiter) -> tuple[float, ...]:
        if is_overdue(waiter):
            return (0, waiter.arrived)
        share = self.sessions[waiter.session]
        return (
            1,
            _PRIORITY_RANK[share.priority],
            share.reserved_bytes / max(1, share.entitled_bytes),
            _CLASS_RANK[waiter.cpu_class],
            waiter.arrived,
        )

    def precedence(self, waiter: Waiter) -> tuple[float, ...]:
        """Of those before it in `rank`: the part in which nobody may pass."""
        return self.rank(waiter)[:1] if is_overdue(waiter) else self.rank(waiter)[:2]

    def fits(self, waiter: Waiter) -> bool:
        if self.calls_free <= 0 or self.sessions[waiter.session].calls_free <= 0:
            return False
        yields = waiter.waited_ms < YIELDS_MS
        return all(
            self._fits_at(key, waiter, self.claimed[key] + (self.preferred[key] if yields else 0))
            for key in waiter.levels
        )

    def _fits_at(self, key: str, waiter: Waiter, kept_bytes: int) -> bool:
        level = self.levels[key]
        if level.free_bytes - kept_bytes >= waiter.memory_bytes:
            return True
        if level.free_bytes < waiter.memory_bytes or waiter.cpu_class is not CpuClass.INTERACTIVE:
            return False
        # What is left beside the largest claim, so that the lane, even when it is full, never keeps the claimant out.
        lane_bytes = min(level.total_bytes // EXPRESS_PART, level.total_bytes - self.largest_claim[key])
        return level.express_bytes + waiter.memory_bytes <= lane_bytes

    def claim(self, waiter: Waiter) -> None:
        for key in waiter.levels:
            self._keep(self.claimed, key, waiter)

    def claim_all(self, waiting: Iterable[Waiter]) -> None:
        """What is kept for those of `waiting` that are overdue, and for nobody else."""
        self.unclaim()
        for each in _claimants(waiting, self.sessions):
            self.claim(each)

    def prefer(self, waiter: Waiter) -> None:
        """Keeps what `waiter` is short of from those of lower priority; where it is not, they are in nobody's way."""
        for key in waiter.levels:
            if self.levels[key].free_bytes - self.claimed[key] < waiter.memory_bytes:
                self._keep(self.preferred, key, waiter)

    def _keep(self, kept: Counter[str], key: str, waiter: Waiter) -> None:
        kept[key] += waiter.memory_bytes
        self.largest_claim[key] = max(self.largest_claim.get(key, 0), waiter.memory_bytes)

    def unclaim(self) -> None:
        self.claimed.clear()
        self.preferred.clear()
        self.largest_claim.clear()

    def take(self, call: Waiter | Running, sign: int = 1) -> None:
        """Books `call` in; with -1 out."""
        memory_bytes = sign * call.memory_bytes
        express_bytes = memory_bytes if call.cpu_class is CpuClass.INTERACTIVE else 0
        for key in call.levels:
            level = self.levels[key]
            self.levels[key] = replace(
                level,
                free_bytes=level.free_bytes - memory_bytes,
                express_bytes=level.express_bytes + express_bytes,
            )
        share = self.sessions[call.session]
        self.sessions[call.session] = replace(
            share, reserved_bytes=share.reserved_bytes + memory_bytes, calls_free=share.calls_free - sign
        )
        self.calls_free -= sign

    def is_passed(self, waiter: Waiter, chosen: Waiter) -> bool:
        """Whether `chosen`, just booked in, came later and took room at a level where `waiter` does not fit."""
        return (
            waiter.arrived < chosen.arrived
            and not is_overdue(waiter)
            and any(
                key in waiter.levels and not self._fits_at(key, waiter, self.claimed[key])
                for key in chosen.levels
            )
        )


def is_overdue(waiter: Waiter) -> bool:
    return waiter.passed >= BYPASSES_MAX


def _claimants(waiting: Iterable[Waiter], sessions: Mapping[str, Share]) -> list[Waiter]:
    return [each for each in waiting if is_overdue(each) and sessions[each.session].is_open]


def hopeless(view: View) -> list[Waiter]:
    """Those that never fit, because a level has become smaller than what they need."""
    return [
        each
        for each in view.waiting
        if any(each.memory_bytes > view.levels[key].total_bytes for key in each.levels)
    ]


def claims(view: View) -> Counter[str]:
    """What is kept at each level for calls that were passed too often: nobody else may take it, nor grow into it."""
    claimed: Counter[str] = Counter()
    for each in _claimants(view.waiting, view.sessions):
        claimed.update(dict.fromkeys(each.levels, each.memory_bytes))
    return claimed


def passed_by(view: View, levels: Collection[str]) -> list[Waiter]:
    """Those who do not fit at one of `levels`, where a running call has just grown: it has passed them."""
    return [
        each
        for each in view.waiting
        if any(view.levels[key].free_bytes < each.memory_bytes for key in each.levels if key in levels)
    ]


def plan(view: View) -> Plan:
    """Grants what fits, in order; counts for each of the others how often it was passed."""
    room = _Room(dict(view.levels), dict(view.sessions), view.calls_free)
    granted, standing = _fill(room, list(view.waiting))
    return Plan(tuple(granted), tuple(standing))


def _fill(room: _Room, waiting: list[Waiter]) -> tuple[list[Waiter], list[Waiter]]:
    granted: list[Waiter] = []
    while True:
        # Anew after each grant: the share of its session has changed, and whom it passed.
        waiting.sort(key=room.rank)
        chosen = _first(room, waiting)
        if chosen is None:
            return granted, waiting
        room.take(chosen)
        granted.append(chosen)
        waiting = _passed(room, [each for each in waiting if each is not chosen], chosen)


def _passed(room: _Room, waiting: list[Waiter], chosen: Waiter) -> list[Waiter]:
    """`waiting` with everybody counted whom `chosen` passes.

    What is kept for those who become overdue by it keeps others waiting, too, so they are counted with it: else calls that
    are kept out by one after the other of these would never be overdue themselves.
    """
    counted: set[str] = set()
    while True:
        room.claim_all(waiting)
        passed = {each.id for each in waiting if each.id not in counted and room.is_passed(each, chosen)}
        waiting = [replace(each, passed=each.passed + 1) if each.id in passed else each for each in waiting]
        if not any(is_overdue(each) for each in waiting if each.id in passed):
            return waiting
        counted |= passed


def _first(room: _Room, waiting: Sequence[Waiter]) -> Waiter | None:
    room.unclaim()
    for _, equals in itertools.groupby(waiting, key=room.precedence):
        short: list[Waiter] = []
        for each in equals:
            if not room.sessions[each.session].is_open:
                continue
            if room.fits(each):
                return each
            if is_overdue(each):
                room.claim(each)
            else:
                short.append(each)
        for each in short:
            room.prefer(each)
    return None


def wait_estimates_ms(view: View, running: Iterable[Running]) -> dict[str, int]:
    """When each waiting call is likely to start, in ms from now; those of which nobody can say are left out.

    Plays the plan forward over the expected ends of `running` and of what is granted on the way. Calls whose end is unknown
    are taken to hold their room, so an estimate is not too early on their account.
    """
    room = _Room(dict(view.levels), dict(view.sessions), view.calls_free)
    ends = [(each.ends_in_ms, number, each) for number, each in enumerate(running)]
    heapq.heapify(ends)
    waiting = sorted(view.waiting, key=room.rank)[:LOOK_AHEAD_CALLS]
    starts: dict[str, int] = {}
    now_ms = 0
    for number in range(len(ends), len(ends) + LOOK_AHEAD_ENDS):
        granted, waiting = _fill(room, waiting)
        for order, each in enumerate(granted):
            starts[each.id] = now_ms
            if each.runs_ms is not None:
                end = Running(
                    each.session, each.levels, each.memory_bytes, each.cpu_class, now_ms + each.runs_ms
                )
                heapq.heappush(ends, (end.ends_in_ms, number * LOOK_AHEAD_CALLS + order, end))
        if not waiting or not ends:
            break
        now_ms, _, ended = heapq.heappop(ends)
        room.take(ended, -1)
    return starts
