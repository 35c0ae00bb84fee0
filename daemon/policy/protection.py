"""Protection between sessions: who is held back when memory runs short, and who goes on first.

What each may have is `policy.room`'s. It stands in the kernel as memory.high of the session's `calls/`, at use plus
allowance: nothing is read while everybody stays below, the sum of all cannot exceed the limit, and whoever crosses it is
slowed by the kernel itself until the daemon has looked.

When memory is short, the fastest grower of the lowest priority is slowed (no share of the free rest), then frozen, and at
last killed; a call that does not grow is left alone. It is undone, best rank first, once it would fit with twice the room.
Stall (PSI) counts only together with growth: a session that waits for memory while nobody below it grows is not helped by
holding anybody back.

The call of the best rank (priority, then age) is held only for equals that keep to their promise: somebody always gets
on, and what it gives back lets the next.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from agentcgroup.daemon.policy.room import (
    RANK,
    Budget,
    CallView,
    Hold,
    Rules,
    Rung,
    Shortage,
    View,
    borrowed_bytes,
    rank,
)
from agentcgroup.proto.quantity import format_size
from agentcgroup.proto.words import Action

_ROOM: Final = "There is room for it again."


@dataclass(frozen=True, slots=True)
class Step:
    """SLOWED, FROZEN, RELEASED or KILLED. `hold` is what the call is held by from now on."""

    action: Action
    call: CallView
    reason: str
    hold: Hold | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do now. `allowances`: bytes that the calls of each session may grow by. `is_calm`: nothing left to watch."""

    steps: tuple[Step, ...]
    allowances: tuple[tuple[str, int], ...]
    is_calm: bool


def _expendable(call: CallView) -> tuple[bool, int, int, tuple[int, int, str]]:
    """The greatest is ended first: beyond its promise, of the lowest priority, with the most beyond it, the youngest."""
    return borrowed_bytes(call) > 0, RANK[call.priority], borrowed_bytes(call), rank(call)


def most_expendable(calls: Iterable[CallView]) -> str | None:
    """The id of the call that would be ended first when nothing else helps; None: the kernel would have to choose."""
    found = max((call for call in calls if borrowed_bytes(call) > 0), key=_expendable, default=None)
    return found.id if found is not None else None


def decide(view: View, rules: Rules) -> Plan:
    """Rules on everybody at once. Pure: the same view gives the same plan."""
    return _Round(view, rules).plan()


class _Round:
    def __init__(self, view: View, rules: Rules) -> None:
        self._view, self._rules = view, rules
        self._calls = {call.id: call for call in view.calls}
        self._steps: list[Step] = []
        self._touched: set[str] = set()
        self._best: CallView | None = None

    def plan(self) -> Plan:
        self._let_somebody_run()
        self._best = min(
            (call for call in self._calls.values() if not call.is_frozen), key=rank, default=None
        )
        self._hold_back()
        self._end_deadlines()
        self._let_somebody_run()
        if not any(step.action is not Action.RELEASED for step in self._steps):
            self._release()
        budget = self._budget()
        held = any(call.hold for call in self._calls.values())
        growing = any(budget.demand_bytes(call) for call in self._calls.values())
        best = min((call for call in self._calls.values() if not call.is_frozen), key=rank, default=None)
        favoured = best.session if best is not None else ""
        return Plan(tuple(self._steps), budget.allowances(favoured), is_calm=not held and not growing)

    def _budget(self, calls: Iterable[CallView] | None = None) -> Budget:
        return Budget(self._view, self._rules, self._calls.values() if calls is None else calls)

    def _act(self, action: Action, call: CallView, reason: str, hold: Hold | None = None) -> None:
        self._steps.append(Step(action, call, reason, hold))
        self._touched.add(call.id)
        if action is Action.KILLED:
            del self._calls[call.id]
        else:
            self._calls[call.id] = replace(call, hold=hold)

    def _hold(self, rung: Rung, call: CallView, settle_ms: int | None = None, turns: int = 0) -> Hold:
        now_ns, rules = self._view.now_ns, self._rules
        limit_ms = rules.slow_limit_ms if rung is Rung.SLOWED else rules.freeze_limit_ms
        settle_ms = rules.settle_ms if settle_ms is None else settle_ms
        before = call.hold
        return Hold(
            rung,
            settled_at_ns=now_ns + settle_ms * 1_000_000,
            deadline_at_ns=now_ns + limit_ms * 1_000_000,
            growth_bytes_per_s=max(call.growth_bytes_per_s, before.growth_bytes_per_s if before else 0),
            turns=max(turns, before.turns if before else 0),
        )

    def _has_settled(self, call: CallView) -> bool:
        return call.hold is None or self._view.now_ns >= call.hold.settled_at_ns

    # ---- nobody may stop everybody

    def _let_somebody_run(self) -> None:
        if self._calls and all(call.is_frozen for call in self._calls.values()):
            best = min(self._calls.values(), key=rank)
            if best.id not in self._touched:
                self._act(Action.RELEASED, best, "It goes first now.")

    def _others_run(self, call: CallView) -> bool:
        return any(other.id != call.id and not other.is_frozen for other in self._calls.values())

    # ---- holding back

    def _hold_back(self) -> None:
        """Up the rungs, the lowest priority first and in it the fastest grower, until the rest fits."""
        while (shortage := (budget := self._budget()).shortage()) is not None:
            grower = self._grower(budget, RANK[shortage.priority])
            if grower is None:
                self._last_resort(budget, shortage)
                return
            self._escalate(grower, self._rules.settle_ms)
        stalled = min(
            (session for session in self._view.sessions if session.is_stalled),
            key=lambda session: RANK[session.priority],
            default=None,
        )
        # One at a time, and none of its equals: whether it helps shows in the stall.
        if stalled is not None and not self._is_settling():
            grower = self._grower(budget, RANK[stalled.priority] + 1)
            if grower is not None:
                self._escalate(grower, self._rules.stall_settle_ms)

    def _is_settling(self) -> bool:
        return any(not self._has_settled(call) for call in self._calls.values())

    def _below(self, highest: int) -> list[CallView]:
        best_id = self._best.id if self._best else ""
        return [
            call
            for call in self._calls.values()
            if call.id != best_id and call.id not in self._touched and RANK[call.priority] >= highest
        ]

    def _grower(self, budget: Budget, highest: int) -> CallView | None:
        return max(
            (call for call in self._below(highest) if budget.demand_bytes(call)),
            key=lambda call: (RANK[call.priority], call.growth_bytes_per_s, call.id),
            default=None,
        )

    def _escalate(self, call: CallView, settle_ms: int) -> None:
        room_bytes = max(0, self._view.room_bytes)
        is_below = any(RANK[other.priority] < RANK[call.priority] for other in self._calls.values())
        whom = "a session of higher priority" if is_below else "other calls"
        reason = (
            f"The host has {format_size(room_bytes)} of memory left, this call grows by"
            f" {format_size(call.growth_bytes_per_s)} a second, and {whom} may need it."
        )
        if call.hold is None and room_bytes > self._rules.margin_bytes(self._view.capacity_bytes):
            self._act(Action.SLOWED, call, reason, self._hold(Rung.SLOWED, call, settle_ms))
        elif self._others_run(call):
            self._act(Action.FROZEN, call, reason, self._hold(Rung.FROZEN, call, settle_ms))
        else:
            self._touched.add(call.id)

    def _last_resort(self, budget: Budget, shortage: Shortage) -> None:
        """Nobody is left to hold back, and the margin itself is being eaten."""
        if not self._is_last_reserve() or self._is_settling():
            return
        rank_short = RANK[shortage.priority]
        victim = self._whom_to_end(self._below(rank_short), rank_short)
        if victim is not None:
            self._act(
                Action.KILLED,
                victim,
                f"The host has {format_size(max(0, self._view.room_bytes))} of memory left, and holding calls back did"
                f" not help; this one used {format_size(victim.usage_bytes)} and was promised"
                f" {format_size(victim.promised_bytes)}.",
            )
            return
        self._let_the_best_wait(budget)

    def _whom_to_end(self, calls: Iterable[CallView], highest: int) -> CallView | None:
        """The most expendable of `calls`; of those of rank `highest` nobody goes who keeps to its promise."""
        return max(
            (call for call in calls if borrowed_bytes(call) > 0 or RANK[call.priority] > highest),
            key=_expendable,
            default=None,
        )

    def _is_last_reserve(self) -> bool:
        """Whether half of the margin is gone, and nothing that was ended is about to give memory back."""
        least_bytes = self._rules.margin_bytes(self._view.capacity_bytes) // 2
        return self._view.room_bytes + self._view.coming_bytes <= least_bytes

    def _let_the_best_wait(self, budget: Budget) -> None:
        """The best has taken more than its promise and wants more yet: it waits for its equals, who keep to theirs."""
        best = self._calls.get(self._best.id) if self._best else None
        if (
            best is None
            or best.id in self._touched
            or borrowed_bytes(best) <= 0
            or not budget.demand_bytes(best)
        ):
            return
        if not self._others_run(best):
            waiting = [
                call for call in self._calls.values() if call.is_frozen and call.id not in self._touched
            ]
            if not waiting:
                return
            self._act(
                Action.RELEASED, min(waiting, key=rank), "It keeps to its promise, which others do not."
            )
        self._escalate(best, self._rules.settle_ms)

    # ---- letting go

    def _end_deadlines(self) -> None:
        """A hold that has run out ends: what is slowed and still wants is frozen; what is frozen gets one turn.

        There are no turns from the last reserve: one that stands still is ended, and the others wait for what it gives back.
        """
        victim = self._whom_to_end_for_turns()
        if victim is not None:
            reason = "It stood still for others, and the host is about to run out of memory."
            self._act(Action.KILLED, victim, reason)
        for call in sorted(self._calls.values(), key=rank):
            hold = call.hold
            if hold is None or call.id in self._touched or self._view.now_ns < hold.deadline_at_ns:
                continue
            if self._fits(call) or (hold.rung is Rung.SLOWED and not self._wants(call)):
                self._act(Action.RELEASED, call, _ROOM)
            elif not self._others_run(call):
                self._act(Action.RELEASED, call, "It goes first now.")
            elif hold.rung is Rung.SLOWED:
                reason = "Slowed down, it still asks for memory that is not there."
                self._act(Action.FROZEN, call, reason, self._hold(Rung.FROZEN, call))
            elif victim is not None and hold.turns == 0:
                self._act(
                    Action.FROZEN,
                    call,
                    "There is no memory yet to go on with.",
                    self._hold(Rung.FROZEN, call),
                )
            elif hold.turns == 0:
                reason = "It has stood still for long; it goes on slowly, as far as it needs no more memory."
                self._act(Action.SLOWED, call, reason, self._hold(Rung.SLOWED, call, turns=1))
            else:
                seconds = 2 * self._rules.freeze_limit_ms / 1000
                self._act(
                    Action.KILLED,
                    call,
                    f"It stood still for {seconds:g} s and no memory came free for it.",
                )

    def _whom_to_end_for_turns(self) -> CallView | None:
        """One of those who stand still, when the turn of any has come and only the last reserve is left."""
        still = [call for call in self._calls.values() if call.is_frozen and call.id not in self._touched]
        is_turn = any(call.hold and self._view.now_ns >= call.hold.deadline_at_ns for call in still)
        if not is_turn or not self._is_last_reserve():
            return None
        return self._whom_to_end(still, min(RANK[call.priority] for call in self._calls.values()))

    def _wants(self, call: CallView) -> bool:
        stalled = any(session.is_stalled for session in self._view.sessions if session.name == call.session)
        return stalled or bool(self._budget().demand_bytes(call))

    def _release(self) -> None:
        """One call a round, the best first: the next look shows what it does with its freedom."""
        for call in sorted(self._calls.values(), key=rank):
            if call.hold is None or call.id in self._touched or not self._has_settled(call):
                continue
            if self._fits(call):
                self._act(Action.RELEASED, call, _ROOM)
            return

    def _fits(self, call: CallView) -> bool:
        """Whether it could run as it did before, and take twice a step, with everybody else as they are."""
        least = 2 * self._rules.step_bytes(self._view.capacity_bytes) * 1000 // self._rules.horizon_ms
        growth = call.hold.growth_bytes_per_s if call.hold else call.growth_bytes_per_s
        freed = replace(call, hold=None, growth_bytes_per_s=max(least, growth))
        others = [other for other in self._calls.values() if other.id != call.id]
        return self._budget([*others, freed]).shortage() is None
