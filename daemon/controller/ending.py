"""The end of a call: main process gone or told to stop, leftovers killed, counters read, cgroup removed, report given."""

import asyncio
import dataclasses
import logging
from typing import Final

from agentcgroup.daemon.controller.core import Life
from agentcgroup.daemon.controller.learning import Learning
from agentcgroup.daemon.controller.timers import Timer
from agentcgroup.daemon.model import (
    Action,
    Actor,
    CallLimits,
    CallState,
    ExitStatus,
    FeedbackKind,
    HistoryEntry,
    KillReason,
    Ladder,
    Level,
    OomCounters,
    OomVictim,
    Report,
    Rung,
    ToolCall,
    Usage,
    Verdict,
)
from agentcgroup.daemon.policy import admission, advice, deadline, grounds
from agentcgroup.daemon.policy.grounds import NO_GROUNDS, Grounds
from agentcgroup.daemon.policy.suggest import project_of
from agentcgroup.daemon.policy.verdict import judge
from agentcgroup.proto.quantity import format_size
from agentcgroup.proto.words import Limit

log = logging.getLogger("agentcgroup.controller")

# A killed process is gone as soon as it leaves the kernel; one in uninterruptible sleep may take long. Then
# the report does not wait for it, and the cgroup stays until its session goes.
DRAIN_DEADLINE_S: Final = 5.0
# The exit status of a process is known when its parent has reaped it; a parent that does not must not hold
# up the report.
STATUS_DEADLINE_S: Final = 2.0

# Ends that are the agent's business at once, not only when it asks.
_CALM: Final = frozenset({Verdict.OK, Verdict.EXIT_CODE, Verdict.NOT_BEGUN})

# On whose account the daemon kills, and who else ends calls.
_KILLERS: Final = {
    KillReason.DEADLINE: Actor.POLICY,
    KillReason.THROTTLE_LIMIT: Actor.POLICY,
    KillReason.PROTECTION: Actor.POLICY,
    KillReason.OPERATOR: Actor.OPERATOR,
    KillReason.FINISHED: Actor.AGENT,
}
_BY_KERNEL: Final = frozenset(
    {Verdict.MEMORY_LIMIT_CALL, Verdict.MEMORY_LIMIT_SESSION, Verdict.MEMORY_LIMIT_HOST, Verdict.PIDS_LIMIT}
)


class Endings(Learning):
    # ---- what begins an end

    def _main_ended(self, call: ToolCall) -> None:
        if call.is_live:
            self._begin_end(call)

    def _status_known(self, call: ToolCall, status: ExitStatus) -> None:
        life = self._lives.get(call.id)
        if life is not None and not life.status_known.is_set():
            call.exit_status = status
            life.status_known.set()

    def _kill(
        self, call: ToolCall, reason: KillReason, note: str = "", because: Grounds = NO_GROUNDS
    ) -> None:
        """Stops a begun call, its whole tree; one that has not begun gives its grant back."""
        if not call.is_live:
            return
        if call.started_at_ns is None:
            if call.kill_reason is None:
                call.kill_reason, call.kill_note = reason, note
            self._close_unbegun(call)
            return
        # What an operator or the session's end takes, it takes all of; a deadline or a Finish was the outer
        # call's own.
        whole = reason in (KillReason.OPERATOR, KillReason.SESSION_END)
        for nested in self._ledger.descendants(call):
            # One that is ending already ends by its own cause.
            if nested.is_live:
                nested.kill_reason, nested.kill_note = (
                    (reason, note) if whole else (KillReason.PARENT_END, "")
                )
        call.kill_reason, call.kill_note = reason, note
        if reason is not KillReason.FINISHED:
            self._hold_stderr(call)
        # What is killed and reported only by the next daemon was not seen to end, but it is known why.
        self._remember_call(call)
        self.counters.killed(reason)
        self._decided(
            Action.KILLED,
            call.session,
            grounds.kill_words(reason, note, call.limits),
            call=call,
            actor=_KILLERS.get(reason, Actor.DAEMON),
            because=because,
            kill_reason=reason,
        )
        self._begin_end(call)

    def _begin_end(self, call: ToolCall) -> None:
        call.state = CallState.ENDING
        for timer in (Timer.DEADLINE_NEAR, Timer.DEADLINE, Timer.LADDER):
            self._disarm(timer, call.id)
        self._spawn(self._end(call))

    def _arm_deadline(self, call: ToolCall, deadline_ms: int) -> float:
        """Ends a begun call `deadline_ms` after its begin, and says so before; how long that is from now."""
        assert call.started_at_ns is not None
        elapsed_ms = (self._clock.now_ns() - call.started_at_ns) / 1e6
        left_ms = max(0.0, deadline_ms - elapsed_ms)
        self._arm(Timer.DEADLINE, call.id, left_ms, lambda: self._kill(call, KillReason.DEADLINE))
        notice_ms = deadline.notice_ms(deadline_ms)
        if notice_ms is not None and left_ms > 0:
            wait_ms = max(0.0, left_ms - notice_ms)
            self._arm(Timer.DEADLINE_NEAR, call.id, wait_ms, lambda: self._warn_of_deadline(call))
        else:
            self._disarm(Timer.DEADLINE_NEAR, call.id)
        return left_ms

    def _warn_of_deadline(self, call: ToolCall) -> None:
        deadline_ms = call.limits.deadline_ms
        if call.started_at_ns is None or deadline_ms is None:
            return
        at_ns = call.started_at_ns + deadline_ms * 1_000_000
        left_ms = max(0, at_ns - self._clock.now_ns()) // 1_000_000
        message, words = deadline.word(call.id, deadline_ms, left_ms)
        self._warn(
            Limit.CALL_DEADLINE,
            call.session,
            message,
            Level.TIGHT,
            words,
            {"deadline_ms": deadline_ms},
            call=call,
            deadline_at_ns=at_ns,
        )

    def _warn(
        self,
        limit: Limit,
        session: str,
        message: str,
        level: Level,
        advice: str,
        because: Grounds,
        *,
        call: ToolCall | None = None,
        actor: Actor = Actor.POLICY,
        deadline_at_ns: int | None = None,
        usage: Usage | None = None,
        time_to_limit_ms: int | None = None,
        rung: Rung | None = None,
    ) -> None:
        """Writes down, counts and says that `limit` is near, or has begun to refuse: to the call, or to the agent."""
        event_id = self._decided(
            Action.WARNED,
            session,
            message,
            call=call,
            actor=actor,
            deadline_at_ns=deadline_at_ns,
            because=because,
        )
        self.counters.warned(limit)
        if call is not None:
            self._hold_stderr(call)
        self._say(
            FeedbackKind.WARNING,
            session,
            message,
            call=call,
            level=level,
            advice=advice,
            limits=call.limits if call is not None else None,
            usage=usage,
            time_to_limit_ms=time_to_limit_ms,
            ladder=Ladder(rung, event_id) if rung is not None else None,
        )

    def _relimit(self, call: ToolCall, limits: CallLimits) -> None:
        if call.started_at_ns is not None:
            self._host.apply_limits(call, limits)
            if limits.deadline_ms != call.limits.deadline_ms and limits.deadline_ms is not None:
                self._arm_deadline(call, limits.deadline_ms)
        grows = limits.memory_bytes > call.limits.memory_bytes
        self._ledger.relimit(call, limits)
        if call.started_at_ns is not None:
            self._remember_call(call)
        if grows:
            self._has_grown(call)

    # ---- the end itself

    async def _end(self, call: ToolCall) -> None:
        """Ends the call whatever the machine says: who waits for the report gets one, and what was reserved is free."""
        life = self._lives[call.id]
        usage, oom = Usage(), OomCounters()
        try:
            usage, oom = await self._wind_up(call, life)
        except Exception:
            self.counters.internal_error()
            log.exception("%s/%s: its end is reported without figures", call.session, call.id)
        if call.exit_status.exit_code != 0:
            self._hear_refusals(call)
        self._report(call, usage, oom)
        del self._lives[call.id]
        life.ended.set()

    async def _wind_up(self, call: ToolCall, life: Life) -> tuple[Usage, OomCounters]:
        """Kills what is left, reads the counters, removes the cgroup. Raises what the machine raises."""
        nested = self._ledger.descendants(call)
        for inner in nested:
            if inner.is_live:
                self._kill(inner, inner.kill_reason or KillReason.PARENT_END)
        killed = self._host.kill_call(call.id)
        if call.kill_reason in (None, KillReason.FINISHED):
            call.leftover_processes = killed
        await self._host.drained(call.id, DRAIN_DEADLINE_S)
        for inner in nested:
            await self._until_ended(inner)
        usage, oom = self._host.call_usage(call.id), self._host.oom_counters(call.id)
        if not self._host.remove_call(call.id):
            log.warning(
                "%s/%s: its cgroup cannot be removed: a process in it does not die; it goes with its session",
                call.session,
                call.id,
            )
        try:
            async with asyncio.timeout(STATUS_DEADLINE_S):
                await life.status_known.wait()
        except TimeoutError:
            pass
        return usage, oom

    def _hear_refusals(self, call: ToolCall) -> None:
        """The call has failed: whether it was refused processes is to be known before its report."""

    async def _until_ended(self, call: ToolCall) -> None:
        """Waits for the report of a call that has begun; one that has ended, or never began, is not waited for."""
        life = self._lives.get(call.id)
        if life is not None:
            await life.ended.wait()

    def _report(self, call: ToolCall, usage: Usage, oom: OomCounters) -> None:
        session = self._ledger.session(call.session)
        verdict = judge(call.exit_status, oom, usage, call.kill_reason, session.oom_attributed)
        if verdict is Verdict.MEMORY_LIMIT_SESSION:
            session.oom_attributed += 1
        call.state = CallState.ENDED
        lineage = self._ledger.lineage(call)
        self._ledger.remove_call(call)
        self._call_gone(call)
        report = self._worded(call, verdict, usage, oom.victim)
        call.report = report
        entry = HistoryEntry(
            report,
            call.intent,
            call.limits,
            call.decision,
            call.parent_id,
            project_of(call.intent.labels, session.labels),
            tuple(call.memory_samples),
        )
        self._remember_session(session)
        self._history.record(entry)
        self._experience.learn((entry,))
        self._decided(
            Action.ENDED,
            call.session,
            report.message,
            call=call,
            actor=Actor.KERNEL if verdict in _BY_KERNEL else Actor.DAEMON,
            because=grounds.of_end(report, oom, call.kill_reason),
        )
        self.counters.call_ended(report, session.priority, call.intent.cpu_class)
        was_refused = self._was_refused(call, usage)
        self._say(
            FeedbackKind.ENDED,
            call.session,
            report.message,
            call=call,
            lineage=lineage,
            level=Level.AMPLE if verdict in _CALM and not was_refused else Level.TIGHT,
            advice=report.advice,
            report=report,
            limits=call.limits,
            ladder=self._last_rung(call, verdict),
        )
        self._say_last(call, report)

    def _was_refused(self, call: ToolCall, usage: Usage) -> bool:
        """Whether the kernel refused it processes, or somebody at a limit that it shares."""
        return bool(usage.pids_max_events or self._lives[call.id].refused.around)

    def _hold_stderr(self, call: ToolCall) -> None:
        if self.config.call.last_word:
            self._host.hold_stderr(call)

    def _say_last(self, call: ToolCall, report: Report) -> None:
        """A line on the tool's standard error for harnesses that look nowhere else, when the call was limited."""
        life = self._lives[call.id]
        line = ""
        if report.verdict not in _CALM or self._was_refused(call, report.usage):
            line = f"agentcg: call {call.id}: {report.message} {report.advice}"
        elif life.climb.was_held_back:
            most = format_size(call.limits.memory_bytes)
            line = f"agentcg: call {call.id}: {report.message} It was held back on the way: it had {most} reserved."
        self._host.say_last(call.id, line.strip())

    def _last_rung(self, call: ToolCall, verdict: Verdict) -> Ladder | None:
        """What to declare next time, for a call that ended at a memory limit of its own."""
        exceeded = advice.exceeded_bytes(verdict, call.limits)
        if exceeded is None:
            return None
        session = self._ledger.session(call.session)
        grantable = admission.memory_available_bytes(self._session_view(session), self._host_view())
        rung = self._lives[call.id].climb.stand.rung
        return Ladder(rung, memory_to_ask_bytes=advice.memory_to_ask_bytes(exceeded, grantable))

    def _worded(
        self, call: ToolCall, verdict: Verdict, usage: Usage, victim: OomVictim | None = None
    ) -> Report:
        session = self._ledger.session(call.session)
        life = self._lives.get(call.id)
        ended_at_ns = self._clock.now_ns()
        agent_bytes = 0
        if verdict is Verdict.MEMORY_LIMIT_SESSION:
            agent_bytes = self._host.memory.agent_memory(session.name).held_or_current_bytes or 0
        began_ns = call.started_at_ns if call.started_at_ns is not None else call.declared_at_ns
        duration_ms = max(0, ended_at_ns - began_ns) // 1_000_000
        message, words = advice.word(
            advice.EndedCall(
                verdict=verdict,
                status=call.exit_status,
                usage=usage,
                limits=call.limits,
                duration_ms=duration_ms,
                leftover_processes=call.leftover_processes,
                victim=victim,
                placement=call.placement,
                command=call.intent.command,
                unseen=call.ended_unseen,
                finished=call.kill_reason is KillReason.FINISHED,
                kill_note=call.kill_note,
                memory_grantable_bytes=admission.memory_available_bytes(
                    self._session_view(session), self._host_view()
                ),
                session_memory_bytes=session.budget.calls_memory_bytes,
                agent_beyond_bytes=max(0, agent_bytes - session.budget.agent_memory_bytes),
                session_pids_max=session.budget.pids_max,
                unwarned_bytes=self._unwarned_bytes(call),
                refused_around=life.refused.around if life is not None else 0,
                around_pids_max=life.refused.around_pids_max if life is not None else None,
                around_whose=life.refused.around_whose if life is not None else "",
            )
        )
        return Report(
            call_id=call.id,
            session=call.session,
            verdict=verdict,
            exit_status=call.exit_status,
            usage=usage,
            started_at_ns=call.started_at_ns,
            ended_at_ns=ended_at_ns,
            duration_ms=duration_ms,
            leftover_processes=call.leftover_processes,
            message=message,
            advice=words,
        )

    def _unwarned_bytes(self, call: ToolCall) -> int | None:
        """See advice.EndedCall: of a call that the daemon listened to, and had said nothing about its memory."""
        life, max_bytes = self._lives.get(call.id), call.limits.memory_max_bytes
        if life is None or max_bytes is None or life.climb.high_bytes is None:
            return None
        is_silent = life.climb.stand.told is None and not life.climb.is_taken_over
        return max_bytes - life.climb.high_bytes if is_silent else None

    def _close_unbegun(self, call: ToolCall) -> None:
        """Gives back a grant."""
        self._disarm(Timer.GRANT, call.id)
        is_operators = call.kill_reason is KillReason.OPERATOR
        why = f": {call.kill_note}" if call.kill_note else ""
        words = f"Never begun: the operator took the grant back{why}." if is_operators else ""
        report = self._end_unbegun(call, words)
        actor = Actor.OPERATOR if is_operators else Actor.DAEMON
        self._decided(Action.LAPSED, call.session, report.message, call=call, actor=actor)

    def _end_unbegun(self, call: ToolCall, words: str = "") -> Report:
        """Takes a call that never ran out of the ledger; nothing ran, so nothing goes into the history of calls."""
        call.state = CallState.ENDED
        self._ledger.remove_call(call)
        self._call_gone(call)
        report = self._worded(call, Verdict.NOT_BEGUN, Usage())
        call.report = dataclasses.replace(report, message=words) if words else report
        return call.report

    # ---- told to end

    async def finish(self, session: str | None, call_id: str, exit_code: int | None) -> Report:
        """Ends a call of the caller's and returns its report; the report again when it has ended already.

        `exit_code` is what the caller saw; it is believed only where the kernel says nothing else.
        """
        call = self._ledger.call(session, call_id)
        life = self._lives.get(call.id)
        if call.is_live:
            self._kill(call, KillReason.FINISHED)
            if life is not None:
                # The kernel would say "signal 9", which is the daemon's own doing and not how the tool
                # ended.
                call.exit_status = ExitStatus(exit_code=exit_code)
                life.status_known.set()
        await self._until_ended(call)
        assert call.report is not None
        return call.report

    async def kill_call(self, call_id: str, reason: str) -> Report:
        """Kills exactly this call, with what is nested in it, on an operator's word."""
        call = self._ledger.call(None, call_id)
        self._kill(call, KillReason.OPERATOR, reason)
        await self._until_ended(call)
        assert call.report is not None
        return call.report
