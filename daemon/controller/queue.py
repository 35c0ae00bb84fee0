"""The queue for room: joining it, being granted from it, leaving it. Who is next says agentcgroup.daemon.policy.queue.

It is looked at whenever room may have come free (the ledger says so) and, while somebody waits, once a second, because
running calls give back what they do not use.
"""

import asyncio
import dataclasses
from typing import Final

from agentcgroup.daemon.controller.core import World
from agentcgroup.daemon.controller.rooms import Views, levels_of
from agentcgroup.daemon.controller.standing import Offer
from agentcgroup.daemon.controller.timers import Timer
from agentcgroup.daemon.controller.waits import LOOK_EVERY_MS, Wait, Waits
from agentcgroup.daemon.model import (
    Action,
    Actor,
    Answer,
    CallState,
    Decision,
    FeedbackKind,
    Intent,
    KillReason,
    QueueOutcome,
    QueuePlace,
    Reason,
    SessionState,
    Suggestion,
    ToolCall,
)
from agentcgroup.daemon.policy import admission, grounds, queue, waiting
from agentcgroup.daemon.policy.admission import Ruling
from agentcgroup.daemon.policy.grounds import Grounds
from agentcgroup.proto.quantity import format_duration

# How much of a command stands in the log of decisions.
MOST_OF_COMMAND: Final = 120
# In a longer queue a newcomer's wait is estimated at the next look, not at once.
LONG_QUEUE: Final = 16


def refusal(ruling: Ruling, learned: Suggestion | None) -> Answer:
    """The answer to an intent that is not granted."""
    return Answer(
        ruling.decision,
        ruling.message,
        reason=ruling.reason,
        suggestion=ruling.suggestion,
        notices=ruling.notices,
        learned=learned,
    )


class Queueing(Waits):
    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._arrivals = 0
        self._look_is_due = False
        self._estimates_ms: dict[str, int] = {}
        self._estimated_s = float("-inf")
        self._ledger.on_room = self._room_came_free

    def prepare(self, session: str, intent: Intent, offer: Offer) -> bool:
        return not self._waits and super().prepare(session, intent, offer)

    # ---- joining

    def _wait_ms(self, asked_ms: int | None) -> int:
        config = self.config.queue
        return min(config.wait if asked_ms is None else asked_ms, config.wait_max) if config.enabled else 0

    def _ask_queue(
        self, call: ToolCall, reason: Reason | None, wait_ms: int, learned: Suggestion | None
    ) -> Answer:
        """Asks the queue for a new call that does not fit, or not before others: granted, queued, or refused after all."""
        # What only stands by gives way to whoever waits, and nothing more is made ready while somebody does.
        self.withdraw_standing()
        self._ledger.add_call(call)
        self._arrivals += 1
        wait = Wait(call, self._arrivals, self._now_s(), wait_ms, reason, learned)
        self._waits[call.id] = wait
        answer = self._serve(newcomer=wait)
        if answer is not None:
            self.counters.answer(answer.decision, answer.reason)
            return answer
        views = self._counted_views(self._ledger.session(call.session), self._ledger.find(call.parent_id))
        refused = self._no_place(wait) if wait_ms else self._no_time(wait, views)
        if refused is None:
            return self._stand(wait, views)
        del self._waits[call.id]
        self._ledger.withdraw(call)
        self._say_refused(call.session, call.intent, refused, grounds.of_ruling(call.intent, None, *views))
        return refused

    def _say_refused(self, session: str, intent: Intent, answer: Answer, because: Grounds) -> None:
        """No call, and so no entry of the history: the log of decisions tells of it."""
        self.counters.answer(answer.decision, answer.reason)
        self._decided(
            Action.REFUSED,
            session,
            answer.message,
            because=because,
            refused_for=answer.reason,
            command=" ".join(intent.command)[:MOST_OF_COMMAND] or None,
        )
        self._say(FeedbackKind.REFUSED, session, answer.message, advice=answer.suggestion, answer=answer)

    def _stand(self, wait: Wait, views: Views) -> Answer:
        call = wait.call
        wait.stands = True
        answer = self._queued(wait)
        wait.told_s, wait.told = self._now_s(), answer.message
        self._arm(Timer.WAIT, call.id, wait.deadline_ms, lambda: self._give_up(wait))
        self._tick()
        self.counters.answer(Decision.QUEUED, wait.reason)
        self._decided(
            Action.QUEUED,
            call.session,
            answer.message,
            call=call,
            deadline_at_ns=call.declared_at_ns + wait.deadline_ms * 1_000_000,
            because=grounds.of_ruling(call.intent, None, *views),
            position=call.queue.position if call.queue else None,
            waiting=len(self._waits),
        )
        self._say(
            FeedbackKind.QUEUED,
            call.session,
            answer.message,
            call=call,
            advice=answer.suggestion,
            answer=answer,
        )
        return answer

    def _no_place(self, wait: Wait) -> Answer | None:
        """A refusal when the queue is full; the newcomer is in it already."""
        config = self.config.queue
        here = sum(other.call.session == wait.call.session for other in self._waits.values())
        if here <= config.session_length and len(self._waits) <= config.length:
            return None
        is_session = here > config.session_length
        return Answer(
            Decision.REFUSED,
            waiting.full((here if is_session else len(self._waits)) - 1, is_session),
            reason=Reason.QUEUE_FULL,
            suggestion="Start fewer calls at once: let those that wait (`agentcg call list`) go first, then declare again.",
        )

    def _no_time(self, wait: Wait, views: Views) -> Answer:
        """The refusal of a call that does not want to wait, with what would be granted."""
        ruling = admission.admit(wait.call.intent, *views, self._defaults_of(wait.call.intent, wait.learned))
        if ruling.limits is None:
            return refusal(ruling, wait.learned)
        return Answer(
            Decision.REFUSED,
            f"Refused: calls that go before it wait for this room ({len(self._waits) - 1} in all).",
            reason=Reason.QUEUE_FULL,
            suggestion="Declare it with --wait 1m, so that it gets its turn, or again in a few seconds.",
        )

    # ---- looking

    def _tick(self) -> None:
        if self._waits and not self._is_armed(Timer.QUEUE_LOOK, ""):
            self._arm(Timer.QUEUE_LOOK, "", LOOK_EVERY_MS, self._look_again)

    def _look_again(self) -> None:
        self._look_is_due = False
        self._serve()
        self._tick()

    def _room_came_free(self) -> None:
        """Looks at the queue soon, once for all that happens in this turn of the loop."""
        if self._waits and not self._look_is_due:
            self._look_is_due = True
            asyncio.get_running_loop().call_soon(self._look_again)

    def _serve(self, newcomer: Wait | None = None) -> Answer | None:
        """Grants what the plan grants and tells the others where they stand. The answer to `newcomer` when it is granted."""
        if not self._waits:
            return None
        self._measure()
        view = self._waiting_view()
        answer: Answer | None = None
        if hopeless := queue.hopeless(view):
            # The budget has shrunk: the admission refuses them, with what would be granted.
            for each in hopeless:
                without_hope = self._waits[each.id]
                given = self._let_in(without_hope)
                answer = given if without_hope is newcomer else answer
            view = self._waiting_view()
        while True:
            found, kept_out = queue.plan(view), []
            for each in found.granted:
                wait = self._waits.get(each.id)
                given = self._let_in(wait) if wait is not None else None
                if given is None:
                    kept_out.append(each)
                elif wait is newcomer:
                    answer = given
            for each in found.standing:
                if each.id in self._waits:
                    self._waits[each.id].passed = each.passed
            # Who declared nothing may have got more than the least that it was planned with: then it is planned anew.
            if len(kept_out) in (0, len(found.granted)):
                break
            view = self._waiting_view()
        self._estimate(newcomer)
        for position, each in enumerate((*kept_out, *found.standing), 1):
            wait_of = self._waits.get(each.id)
            if wait_of is not None:
                wait_of.call.queue = QueuePlace(
                    position, wait_of.deadline_ms, self._estimates_ms.get(each.id)
                )
                self._tell_place(wait_of)
        return answer

    # ---- what there is

    def _waiting_view(self) -> queue.View:
        return self._queue_view([*map(self._waiter, self._waits.values())])

    def _waiter(self, wait: Wait) -> queue.Waiter:
        call = wait.call
        return queue.Waiter(
            call.id,
            call.session,
            levels_of(call),
            admission.least_memory_bytes(call.intent, self._defaults_of(call.intent, wait.learned)),
            self._class_of(call),
            wait.arrived,
            wait.passed,
            self._expected_ms(call, wait.learned),
            int((self._now_s() - wait.since_s) * 1000),
        )

    def _beside_the_queue(self, call: ToolCall) -> Views:
        session, host, parent = self._views(call)
        if not self._waits:
            return session, host, parent
        claimed = queue.claims(self._waiting_view())
        if parent is not None:
            (key,) = levels_of(call)
            taken = parent.memory_reserved_bytes + claimed[key]
            return session, host, dataclasses.replace(parent, memory_reserved_bytes=taken)
        here, there = (claimed[key] for key in levels_of(call))
        return (
            dataclasses.replace(session, memory_reserved_bytes=session.memory_reserved_bytes + here),
            dataclasses.replace(host, memory_reserved_bytes=host.memory_reserved_bytes + there),
            None,
        )

    def _has_grown(self, call: ToolCall) -> None:
        if self._waits:
            for each in queue.passed_by(self._waiting_view(), levels_of(call)):
                self._waits[each.id].passed += 1

    def _estimate(self, newcomer: Wait | None) -> None:
        """Estimates the waits, at most once a second, and for the newcomer of a short queue at once."""
        now_s = self._now_s()
        is_due = now_s - self._estimated_s >= LOOK_EVERY_MS / 1000
        if not self._waits or not (is_due or (newcomer is not None and len(self._waits) <= LONG_QUEUE)):
            return
        self._estimated_s = now_s
        now_ns = self._clock.now_ns()
        running = []
        for call in self._ledger.calls(None):
            expected_ms = self._expected_ms(call, self._learned_of(call))
            if call.state is CallState.QUEUED or expected_ms is None:
                continue
            age_ms = (now_ns - call.started_at_ns) // 1_000_000 if call.started_at_ns is not None else 0
            # Nobody knows when a call will end that is over its time.
            if age_ms < expected_ms:
                memory_bytes = call.limits.memory_bytes - min(
                    self._given_back.get(call.id, 0), call.limits.memory_bytes
                )
                running.append(
                    queue.Running(
                        call.session,
                        levels_of(call),
                        memory_bytes,
                        self._class_of(call),
                        expected_ms - age_ms,
                    )
                )
        self._estimates_ms = queue.wait_estimates_ms(self._waiting_view(), running)

    # ---- leaving

    def _grant(self, call: ToolCall, ruling: Ruling, because: Grounds, learned: Suggestion | None) -> Answer:
        """`call` is in the ledger with its limits reserved: it may begin until the grant lapses."""
        lifetime_ms = self.config.call.grant_lifetime
        call.decision = ruling.decision
        call.expires_at_ns = self._clock.now_ns() + lifetime_ms * 1_000_000
        self._arm(Timer.GRANT, call.id, lifetime_ms, lambda: self._lapse(call))
        self._decided(Action(ruling.decision), call.session, ruling.message, call=call, because=because)
        return self._answer(ruling, call, learned, call.expires_at_ns)

    def _lapse(self, call: ToolCall) -> None:
        if call.state is CallState.DECLARED:
            self._close_unbegun(call)

    def _let_in(self, wait: Wait) -> Answer | None:
        """Grants what the plan says fits. None: the admission does not agree, and it goes on waiting or is refused."""
        call = wait.call
        views = self._counted_views(self._ledger.session(call.session), self._ledger.find(call.parent_id))
        ruling = admission.admit(call.intent, *views, self._defaults_of(call.intent, wait.learned))
        if ruling.limits is None:
            if wait.stands and not ruling.could_wait:
                self._refuse(wait, QueueOutcome.REFUSED, ruling.message, ruling.reason, ruling.suggestion)
            return None
        del self._waits[call.id]
        self._ledger.grant(call, ruling.limits)
        call.queue = None
        because = grounds.of_ruling(call.intent, ruling.limits, *views) | grounds.of_learned(wait.learned)
        answer = self._grant(call, ruling, because, wait.learned)
        if wait.stands:
            self._disarm(Timer.WAIT, call.id)
            waited_s = self._now_s() - wait.since_s
            self.counters.queue_left(QueueOutcome.GRANTED, waited_s)
            words = f"Its turn after {format_duration(int(waited_s * 1000))} in the queue. {answer.message}"
            answer = dataclasses.replace(answer, message=words)
            self._say(FeedbackKind.DECLARED, call.session, words, call=call, answer=answer)
            self._notify(wait.listeners, answer)
        return answer

    def _give_up(self, wait: Wait) -> None:
        """Its time is over: refused, with what would be granted now."""
        call = wait.call
        views = self._counted_views(self._ledger.session(call.session), self._ledger.find(call.parent_id))
        ruling = admission.admit(call.intent, *views, self._defaults_of(call.intent, wait.learned))
        words = waiting.gave_up("" if ruling.limits else ruling.message, wait.deadline_ms)
        suggestion = ruling.suggestion or "Declare again, with a longer --wait."
        self._refuse(wait, QueueOutcome.DEADLINE, words, wait.reason, suggestion)

    def _close_unbegun(self, call: ToolCall) -> None:
        wait = self._waits.get(call.id)
        if wait is None:
            super()._close_unbegun(call)
        elif self._ledger.session(call.session).state is SessionState.CLOSING:
            words = "Refused: the session is being removed."
            self._refuse(wait, QueueOutcome.SESSION_END, words, Reason.SESSION_CLOSING)
        elif self._drain is not None and not call.parent_id:
            closed = admission.drained(self._drain.reason)
            self._refuse(wait, QueueOutcome.REFUSED, closed.message, closed.reason, closed.suggestion)
        elif call.kill_reason is KillReason.OPERATOR:
            why = f": {call.kill_note}" if call.kill_note else ""
            words = f"Refused: the operator took the call out of the queue{why}."
            advice = "Ask the operator before you declare it again."
            self._refuse(wait, QueueOutcome.REFUSED, words, wait.reason, advice, actor=Actor.OPERATOR)
        elif call.kill_reason is KillReason.PARENT_END:
            words = "Refused: the call around it has ended."
            self._refuse(wait, QueueOutcome.PARENT_END, words, Reason.PARENT_CALL)
        else:
            self._refuse(
                wait, QueueOutcome.CANCELLED, "The call left the queue before its turn.", wait.reason
            )

    def _refuse(
        self,
        wait: Wait,
        outcome: QueueOutcome,
        words: str,
        reason: Reason | None,
        suggestion: str = "",
        actor: Actor = Actor.POLICY,
    ) -> None:
        """Takes a call that waits out of the queue for good; whoever follows it is told."""
        call = wait.call
        del self._waits[call.id]
        self._disarm(Timer.WAIT, call.id)
        waited_s = self._now_s() - wait.since_s
        self.counters.queue_left(outcome, waited_s)
        answer = Answer(Decision.REFUSED, words, reason=reason, suggestion=suggestion)
        call.queue, call.refusal, call.decision = None, answer, Decision.REFUSED
        self._end_unbegun(call, words)
        action = Action.LAPSED if outcome is QueueOutcome.CANCELLED else Action.REFUSED
        self._decided(
            action,
            call.session,
            words,
            call=call,
            actor=actor,
            outcome=outcome,
            waited_ms=int(waited_s * 1000),
        )
        self._say(FeedbackKind.REFUSED, call.session, words, call=call, advice=suggestion, answer=answer)
        self._notify(wait.listeners, answer)
