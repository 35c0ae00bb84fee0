"""The transparent door: execs that become calls without having asked; what becomes of each is policy/transparent.py's.

The tool is never refused: what cannot become a call runs on where it is, in the agent's own cgroup, and the agent is told.
"""

import logging
from typing import Final

from agentcgroup.daemon.controller.calls import Calls
from agentcgroup.daemon.controller.core import World
from agentcgroup.daemon.controller.timers import Timer
from agentcgroup.daemon.counters import Door
from agentcgroup.daemon.errors import Kind, RequestError
from agentcgroup.daemon.model import (
    DoorHold,
    FeedbackKind,
    Intent,
    Knock,
    Level,
    Placement,
    Session,
    SessionState,
    ToolCall,
    TransparentRule,
    TransparentScope,
)
from agentcgroup.daemon.policy import transparent
from agentcgroup.daemon.policy.intent import bounded_command
from agentcgroup.daemon.policy.transparent import Job, Outcome
from agentcgroup.daemon.ports import Location, Process
from agentcgroup.proto.transparent import OFF, parse_rule

log = logging.getLogger("agentcgroup.controller")

# Of processes that had ended before they were placed, an agent is told once in this time, with how many there were.
_SAY_MISSED_EVERY_MS: Final = 60_000


class TransparentDoor(Calls):
    def __init__(self, world: World) -> None:
        super().__init__(world)
        # Jobs that are calls, by session and call.
        self._jobs: dict[str, dict[str, Job]] = {}

    # ---- the rule of a session

    def _rule_for(self, asked: TransparentRule | None) -> TransparentRule:
        """What a new session gets. Raises RequestError(HOST) when this host cannot do what was asked for."""
        why_not = self._host.door.why_not
        if asked is None:
            default = parse_rule(self.config.session.transparent)
            if default != OFF and why_not:
                log.warning("session.transparent is %s, but no session gets it: %s", default, why_not)
                return OFF
            return default
        if asked.scope is not TransparentScope.OFF and why_not:
            raise RequestError(
                Kind.HOST,
                f"transparent is {asked.scope}: {why_not}",
                "leave it out and start tools through `agentcg run`; `agentcg check` shows what this host can do",
                "transparent",
            )
        return asked

    def _set_rule(self, session: Session, rule: TransparentRule) -> None:
        """From now on. What is a call stays one. Raises RequestError(HOST)."""
        self._host.door.set(session.name, rule.scope)
        session.transparent = rule

    # ---- an exec

    def knocked(self, knock: Knock) -> None:
        """Makes a call of the process, lets it join one, or leaves it. It runs on in any case."""
        session = self._ledger.sessions.get(knock.session)
        call = hold = None
        try:
            if session is not None and session.state is not SessionState.CLOSING:
                call = self._answer_knock(session, knock)
        finally:
            hold = self._host.door.release(knock.pid)
        if session is not None and call is not None:
            self._placed(session, call, knock, hold)

    def _answer_knock(self, session: Session, knock: Knock) -> ToolCall | None:
        """The call that the process has been placed in; None: in none."""
        jobs = self._live_jobs(session)
        ruling = transparent.decide(knock, session.transparent, jobs.values())
        if ruling.outcome is Outcome.STAYS:
            log.debug("%s: %s (%d) stays: %s", knock.session, knock.filename, knock.pid, ruling.reason)
            return None
        process = self._host.door.catch(knock.pid)
        if process is None:
            self._missed(session)
            return None
        location = self._host.locate(process)
        if location == (Location() if knock.is_visitor else Location(session.name)):
            if ruling.outcome is Outcome.JOINS:
                return self._join(session, self._ledger.call(session.name, ruling.call_id), knock, process)
            return self._begin_knocked(session, knock, process)
        self._host.forget_process(process.pidfd)
        # Else it has been placed meanwhile: through the launcher, or with whoever forked it.
        if not location.call_id:
            self._missed(session)
        return None

    def _live_jobs(self, session: Session) -> dict[str, Job]:
        jobs = self._jobs.setdefault(session.name, {})
        for call_id in list(jobs):
            call = session.calls.get(call_id)
            if call is None or not call.is_running:
                del jobs[call_id]
        return jobs

    def _begin_knocked(self, session: Session, knock: Knock, process: Process) -> ToolCall | None:
        # It runs already, or is held: it cannot wait.
        intent = Intent(command=bounded_command(knock.command))
        answer = self.declare(session.name, intent, wait_ms=0, runs_already=True)
        if answer.limits is None:
            self._leave(session, knock, process, answer.message, answer.suggestion)
            return None
        try:
            # Closes the pidfd, whatever happens.
            call = self.begin_pidfd(session.name, answer.call_id, process.pid, process.pidfd)
        except RequestError as error:
            self._failed(session, knock, error)
            return None
        self._host.door.gather(session.name, call.id, process.pid, knock.is_visitor)
        self._jobs[session.name][call.id] = Job.of(call.id, knock)
        return call

    def _join(self, session: Session, call: ToolCall, knock: Knock, process: Process) -> ToolCall | None:
        try:
            self._host.place(call.id, process.pid)
        except RequestError as error:
            self._host.forget_process(process.pidfd)
            self._failed(session, knock, error)
            return None
        self._follow(call, process)
        self._host.door.gather(session.name, call.id, process.pid, knock.is_visitor)
        self._jobs[session.name][call.id].add(knock)
        return call

    def _placed(self, session: Session, call: ToolCall, knock: Knock, hold: DoorHold | None) -> None:
        delay_ns = max(0, self._clock.now_ns() - knock.executed_at_ns)
        session.transparent_placed += 1
        self.counters.placed(Door.TRANSPARENT, delay_ns / 1e9)
        if call.placement is None:
            call.placement = Placement(delay_ns // 1_000_000, hold)
        self._remember_call(call)

    # ---- what did not become one

    def _leave(self, session: Session, knock: Knock, process: Process, why: str, suggestion: str) -> None:
        """What it starts stays with it."""
        self._host.door.let_be(process)
        self._host.forget_process(process.pidfd)
        self._explain(session, knock, why, suggestion)

    def _failed(self, session: Session, knock: Knock, error: RequestError) -> None:
        if error.kind is Kind.NOT_FOUND:
            self._missed(session)
        else:
            self._explain(session, knock, error.cause, error.next_step)

    def _explain(self, session: Session, knock: Knock, why: str, suggestion: str) -> None:
        session.transparent_left += 1
        self.counters.transparent_left += 1
        command = " ".join(knock.command) or knock.filename
        self._say(
            FeedbackKind.WARNING,
            session.name,
            f"{command[:120]!r} runs without limits of its own, in the agent's memory: {why}",
            level=Level.TIGHT,
            advice=suggestion,
        )

    def _missed(self, session: Session) -> None:
        """It ended before it could be placed: nothing is left of it, and nothing was made for it."""
        session.transparent_missed += 1
        self.counters.transparent_missed += 1
        if not self._is_armed(Timer.MISSED, session.name):
            before = session.transparent_missed - 1
            self._arm(
                Timer.MISSED, session.name, _SAY_MISSED_EVERY_MS, lambda: self._say_missed(session, before)
            )

    def _say_missed(self, session: Session, before: int) -> None:
        if session.name not in self._ledger.sessions:
            return
        count = session.transparent_missed - before
        self._say(
            FeedbackKind.SESSION,
            session.name,
            f"{count} command{'' if count == 1 else 's'} of the last minute ended before they could become calls;"
            " what they used is on the agent's account.",
        )
