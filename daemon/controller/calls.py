"""The verbs of a call's life up to its end: declare, begin, adjust, freeze."""

import dataclasses
from collections.abc import Sequence

from agentcgroup.daemon.controller.queue import Queueing, refusal
from agentcgroup.daemon.controller.rooms import Views
from agentcgroup.daemon.controller.timers import Timer
from agentcgroup.daemon.errors import Kind, RequestError
from agentcgroup.daemon.model import (
    Action,
    Actor,
    Answer,
    CallState,
    Decision,
    FeedbackKind,
    FreezeCause,
    Intent,
    ProcessRef,
    Session,
    SessionState,
    ToolCall,
    Usage,
)
from agentcgroup.daemon.policy import admission, grounds, resize
from agentcgroup.daemon.policy.intent import bounded_command, check
from agentcgroup.daemon.ports import Location, Process


class Calls(Queueing):
    # ---- asking

    def call(self, session: str | None, call_id: str) -> ToolCall:
        return self._ledger.call(session, call_id)

    def calls(self, session: str | None) -> list[ToolCall]:
        return list(self._ledger.calls(session))

    def call_usage(self, call: ToolCall) -> Usage:
        """Read now while the call lives; afterwards the final figures."""
        if call.report is not None:
            return call.report.usage
        if call.started_at_ns is None:
            return Usage()
        return self._host.call_usage(call.id)

    def locate(self, session: str, process: Process) -> Location:
        """Where the process lives: in a call, in the agent leaf, or outside. DENIED in another session."""
        return self._here(session, self._host.locate(process))

    @staticmethod
    def _here(session: str, location: Location) -> Location:
        if location.session and location.session != session:
            raise RequestError(
                Kind.DENIED,
                "the process belongs to another session",
                "use the socket of the session it runs in",
                "process",
            )
        return location

    # ---- declare

    def declare(
        self,
        session: str,
        intent: Intent,
        parent_id: str = "",
        wait_ms: int | None = None,
        *,
        runs_already: bool = False,
    ) -> Answer:
        """Rules on the intent; a grant becomes a declared call that lapses when it does not begin in time.

        One for which there is no room now, or whose session is frozen, is queued for `wait_ms` (0: refused at once; None: as
        configured). What `runs_already` stands still with a frozen session instead.
        """
        check(intent)
        owner = self._ledger.session(session)
        parent = self._parent(session, parent_id) if parent_id else None
        learned = self._learned(intent, owner)
        views = self._views_for(owner, parent, runs_already)
        defaults = self._defaults_of(intent, learned)
        ruling = admission.admit(intent, *views, defaults)
        if ruling.limits is not None and self._give_way(owner, 0 if parent else ruling.limits.memory_bytes):
            # What stood and was taken at this very moment has become a call.
            views = self._views_for(owner, parent, runs_already)
            ruling = admission.admit(intent, *views, defaults)
        because = grounds.of_ruling(intent, ruling.limits, *views) | grounds.of_learned(learned)
        if ruling.limits is None and not ruling.could_wait:
            answer = refusal(ruling, learned)
            self._say_refused(session, intent, answer, because)
            return answer
        call = ToolCall(
            id=self._ledger.new_call_id(),
            session=session,
            parent_id=parent_id,
            intent=intent,
            limits=ruling.limits or admission.limits_with_room(intent, *views, defaults),
            decision=ruling.decision,
            declared_at_ns=self._clock.now_ns(),
        )
        if ruling.limits is None or self.calls_waiting:
            call.state, call.decision = CallState.QUEUED, Decision.QUEUED
            return self._ask_queue(call, ruling.reason, self._wait_ms(wait_ms), learned)
        self.counters.answer(ruling.decision, ruling.reason)
        self._ledger.add_call(call)
        return self._grant(call, ruling, because, learned)

    def _views_for(self, owner: Session, parent: ToolCall | None, runs_already: bool) -> Views:
        here = self._session_view(owner)
        return here.thawed() if runs_already else here, self._host_view(), self._parent_view(parent)

    def _parent(self, session: str, call_id: str) -> ToolCall:
        parent = self._ledger.live_call(session, call_id)
        if parent.state is CallState.QUEUED:
            raise RequestError(
                Kind.STATE,
                f"call {call_id}, around it, is queued for room itself",
                "begin the outer call first",
                "parent_call_id",
            )
        return parent

    # ---- begin

    def ticket(self, session: str, call_id: str) -> str:
        """A ticket for the launcher, good once, until the grant lapses."""
        return self._ledger.new_ticket(self._declared(session, call_id))

    def redeem(self, session: str, ticket: str, command: Sequence[str] = ()) -> ToolCall:
        """The declared call of `ticket`. `command`, what is about to run, is kept when none was declared."""
        call = self._ledger.redeem(session, ticket)
        if command and not call.intent.command:
            call.intent = dataclasses.replace(call.intent, command=bounded_command(command))
            self._reserve_learned(call)
        return call

    def _declared(self, session: str, call_id: str) -> ToolCall:
        call = self._ledger.live_call(session, call_id)
        if call.state is CallState.QUEUED:
            raise RequestError(
                Kind.STATE, f"call {call.id} is still queued for room", "wait for its turn", "call_id"
            )
        if call.state is not CallState.DECLARED:
            raise RequestError(
                Kind.STATE, f"call {call.id} has begun already", "declare another call", "call_id"
            )
        if call.parent_id and self._ledger.live_call(session, call.parent_id).started_at_ns is None:
            raise RequestError(
                Kind.STATE,
                f"call {call.parent_id}, around call {call.id}, has not begun",
                "begin the outer call first",
                "parent_call_id",
            )
        return call

    def begin(self, session: str, call_id: str, process: ProcessRef) -> ToolCall:
        """Places a process of the session's own into a declared call."""
        call = self._declared(session, call_id)
        found = self._host.open_process(self._ledger.session(session), process)
        try:
            location = self._here(session, self._host.locate(found))
            if not location.session:
                raise RequestError(
                    Kind.DENIED,
                    f"process {process.pid} is not in this session",
                    "only processes started in the session can be placed; start others through `agentcg run`",
                    "process",
                )
            if location.call_id != call.parent_id:
                raise RequestError(
                    Kind.STATE,
                    f"process {process.pid} is in call {location.call_id or '(none)'} already",
                    f"declare the call with parent_call_id {location.call_id}"
                    if location.call_id
                    else "leave parent_call_id out",
                    "process",
                )
        except BaseException:
            self._host.forget_process(found.pidfd)
            raise
        return self.begin_pidfd(session, call_id, found.pid, found.pidfd)

    def begin_pidfd(self, session: str, call_id: str, pid: int, pidfd: int) -> ToolCall:
        """Makes the cgroup, writes the limits, moves the process in. Takes over `pidfd`, also when it raises.

        After an error nothing is left of the call: no cgroup, no reservation.
        """
        try:
            call = self._declared(session, call_id)
        except BaseException:
            self._host.forget_process(pidfd)
            raise
        try:
            call.cgroup = self._host.create_call(call)
            self._host.place(call.id, pid)
        except BaseException:
            self._host.forget_process(pidfd)
            self._host.kill_call(call.id)
            self._host.remove_call(call.id)
            self._close_unbegun(call)
            raise
        self._disarm(Timer.GRANT, call.id)
        self._run(call, Process(pid, pidfd), self._clock.now_ns())
        return call

    # ---- change

    def adjust(self, session: str | None, call_id: str, intent: Intent) -> Answer:
        """Other limits for a live call, answered like an intent; absent fields stay as they are."""
        check(intent)
        self.withdraw_standing()
        call = self._ledger.live_call(session, call_id)
        if call.state is CallState.QUEUED:
            raise RequestError(
                Kind.STATE,
                f"call {call.id} is queued and has no limits yet",
                "finish it and declare it anew",
                "call_id",
            )
        intent = dataclasses.replace(
            intent, on_exceed=call.intent.on_exceed, throttle_limit_ms=call.intent.throttle_limit_ms
        )
        session_view, host_view, parent_view = resize.without(
            call.limits.memory_bytes, *self._beside_the_queue(call)
        )
        is_begun = call.started_at_ns is not None
        ruling = resize.resize(
            intent,
            call.limits,
            self.call_usage(call),
            session_view,
            host_view,
            parent_view,
            self._defaults,
            self._host.call_memory(call.id).held_or_current_bytes if is_begun else None,
            call.children_reserved_bytes,
        )
        self.counters.answer(ruling.decision, ruling.reason)
        answer = Answer(
            ruling.decision,
            ruling.message,
            call_id=call.id,
            limits=ruling.limits or call.limits,
            trims=ruling.trims,
            reason=ruling.reason,
            suggestion=ruling.suggestion,
            notices=(*ruling.notices, *self._unenforced_notices()),
        )
        if ruling.limits is not None:
            budget = self._ledger.session(call.session).budget
            most_bytes = admission.nested_memory_bytes(ruling.limits.memory_max_bytes, budget)
            inside = self._ledger.descendants(call)
            self._shrink_within(inside, most_bytes, ruling.limits.cpu_milli, ruling.limits.pids_max)
            self._relimit(call, ruling.limits)
            self._look_soon(call)
        self._decided(
            Action.REFUSED if ruling.decision is Decision.REFUSED else Action.RELIMITED,
            call.session,
            ruling.message,
            call=call,
            actor=Actor.OPERATOR if session is None else Actor.AGENT,
            because=grounds.of_ruling(intent, ruling.limits, session_view, host_view, parent_view),
        )
        kind = FeedbackKind.REFUSED if ruling.decision is Decision.REFUSED else FeedbackKind.ADJUSTED
        self._say(kind, call.session, ruling.message, call=call, advice=ruling.suggestion, answer=answer)
        return answer

    def _shrink_within(
        self, calls: Sequence[ToolCall], memory_bytes: int, cpu_milli: int | None, pids_max: int | None
    ) -> None:
        """Before what is around `calls` (parents before their children) has these limits: the innermost shrink first."""
        for call in reversed(calls):
            if (limits := resize.within(call.limits, memory_bytes, cpu_milli, pids_max)) != call.limits:
                self._relimit(call, limits)
                self._look_soon(call)

    def freeze_call(self, call_id: str, reason: str) -> ToolCall:
        """Stops every process of the call where it stands; its deadline goes on."""
        call = self._ledger.live_call(None, call_id)
        if not call.is_running:
            raise RequestError(Kind.STATE, f"call {call.id} has not begun", "", "call_id")
        if self._freeze(call, FreezeCause.OPERATOR):
            words = f"Frozen by the operator{': ' + reason if reason else ''}; nothing is lost, it goes on when thawed."
            self._decided(Action.FROZEN, call.session, words, call=call, actor=Actor.OPERATOR)
            self._say(FeedbackKind.FROZEN, call.session, words, call=call)
        return call

    def thaw_call(self, call_id: str) -> ToolCall:
        """Takes back what `freeze_call` did; a call that the daemon itself has frozen stays so until the daemon thaws it."""
        call = self._ledger.live_call(None, call_id)
        if self._thaw(call, FreezeCause.OPERATOR):
            words = "Thawed by the operator; the call goes on."
            self._decided(Action.THAWED, call.session, words, call=call, actor=Actor.OPERATOR)
            self._say(FeedbackKind.THAWED, call.session, words, call=call)
        return call

    # ---- what the machine tells

    def events_lost(self) -> None:
        self.counters.lose_kernel_events()

    # ---- for the session verbs

    def _refuse_new_calls(self, session: Session) -> None:
        session.state = SessionState.CLOSING
        self.withdraw_standing(session.name)
        for call in list(session.calls.values()):
            if call.started_at_ns is None and call.is_live:
                self._close_unbegun(call)
