"""What sessions and calls share: the ledger, the host, the feed, the clock, and how they speak."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from agentcgroup.daemon import record
from agentcgroup.daemon.config import Config
from agentcgroup.daemon.controller.timers import Timers
from agentcgroup.daemon.counters import Counters
from agentcgroup.daemon.experience import Experience
from agentcgroup.daemon.feedback import Feed
from agentcgroup.daemon.ledger import Ledger
from agentcgroup.daemon.model import (
    Action,
    Actor,
    Answer,
    CallLimits,
    CallState,
    Drain,
    Event,
    Feedback,
    FeedbackKind,
    FreezeCause,
    Ladder,
    Level,
    MemoryBreach,
    Report,
    Session,
    Suggestion,
    ToolCall,
    Usage,
    event_id,
)
from agentcgroup.daemon.policy import guarding, suggest
from agentcgroup.daemon.policy.admission import CallDefaults, HostView, ParentView, Ruling, SessionView
from agentcgroup.daemon.policy.grounds import NO_GROUNDS, Grounds
from agentcgroup.daemon.policy.ladder import Stand
from agentcgroup.daemon.ports import Clock, Doors, History, Host

log = logging.getLogger("agentcgroup.controller")


@dataclass(slots=True)
class Climb:
    """Where a call stands on its ladder, and how it is listened to; see controller/ladder.py."""

    stand: Stand = field(default_factory=Stand)
    high_bytes: int | None = None  # memory.high as it stands
    listens_at_ms: int = 0
    listens: bool = False
    # An earlier daemon may have said something.
    is_taken_over: bool = False
    was_held_back: bool = False


@dataclass(slots=True)
class Refused:
    """New processes that the kernel refused a call, as far as the daemon has heard; see controller/process_limits.py.

    `around`: at a limit that it shares, and whose that is, as in "of the whole session".
    """

    own: int = 0
    told_at_ms: int | None = None
    around: int = 0
    around_pids_max: int | None = None
    around_whose: str = ""


@dataclass(slots=True)
class Life:
    """What a running call is waited for with, and its ladder; it goes when the call has ended."""

    status_known: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    # Pids of the processes that it lives as long as: the main process, or all of a shell's job.
    followed: set[int] = field(default_factory=set)
    climb: Climb = field(default_factory=Climb)
    refused: Refused = field(default_factory=Refused)


@dataclass(slots=True)
class Prepared:
    """A standing grant. `withdraw` says whether nobody has taken it; then nobody will."""

    call: ToolCall
    answer: Answer
    because: Grounds
    withdraw: Callable[[], bool]


@dataclass(frozen=True, slots=True)
class World:
    """What the controller is made with; `config` is the one it starts with, see `use_config`."""

    config: Config
    host: Host
    history: History
    clock: Clock
    counters: Counters
    feed: Feed


def _suggest_rules(config: Config) -> suggest.Rules:
    rules = config.suggest
    return suggest.Rules(rules.quantile, rules.headroom, rules.floor, rules.least_runs, rules.half_life)


class Core(Timers):
    """State and small words; the verbs are in Sessions, Calls and Endings, which together make the Controller."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.counters = world.counters
        self.feed = world.feed
        self._host = world.host
        self._history = world.history
        self._clock = world.clock
        self._doors: Doors | None = None
        self._ledger = Ledger(self._catch_up, self._promised)
        self._standing: dict[str, Prepared] = {}
        self._room_watchers: dict[str, Callable[[], None]] = {}
        self._lives: dict[str, Life] = {}
        # Names of sessions whose sockets are being opened: they are taken, but not in the ledger yet.
        self._opening: set[str] = set()
        self._started_at_ns = world.clock.now_ns()
        self._last_event_number = world.history.last_event_number
        self._drain: Drain | None = None
        self._experience = Experience(_suggest_rules(world.config))
        self.use_config(world.config)

    def use_config(self, config: Config) -> None:
        """From now on `config` is in force; what is granted already stays granted."""
        self.config = config
        self._experience.use_rules(_suggest_rules(config))
        defaults = config.call
        self._defaults = CallDefaults(
            memory_bytes=defaults.memory,
            memory_max_bytes=defaults.memory_max or None,
            pids_max=defaults.pids_max,
            deadline_ms=defaults.deadline or None,
            on_exceed=defaults.on_exceed,
            throttle_limit_ms=defaults.throttle_limit,
        )

    def use_doors(self, doors: Doors) -> None:
        """The sockets need the controller and the controller opens sockets: this closes the circle once, at start."""
        self._doors = doors

    def reconfigure(self, config: Config, changes: str) -> None:
        """`config` is in force after an operator's word; `changes` says in words what is different."""
        self.use_config(config)
        self._host.use_config(config)
        self._decided(Action.RELOADED, "", f"Configuration reloaded: {changes}.", actor=Actor.OPERATOR)

    # ---- views for the policies

    def _session_view(self, session: Session) -> SessionView:
        calls_live = len(session.calls) - session.calls_queued
        return SessionView(session.state, session.budget, session.memory_reserved_bytes, calls_live)

    def _host_view(self) -> HostView:
        return HostView(
            memory_capacity_bytes=self._host.memory_capacity_bytes,
            memory_reserved_bytes=self._ledger.memory_reserved_bytes,
            cpu_capacity_milli=self._host.cpu_capacity_milli,
            calls_live=self._ledger.calls_live,
            calls_max=self.config.host.calls_max,
            is_draining=self._drain is not None,
            drain_reason=self._drain.reason if self._drain else "",
        )

    @staticmethod
    def _parent_view(parent: ToolCall | None) -> ParentView | None:
        if parent is None:
            return None
        limits = parent.limits
        return ParentView(
            parent.id,
            limits.memory_max_bytes,
            parent.children_reserved_bytes,
            limits.cpu_milli,
            limits.pids_max,
        )

    def _views(self, call: ToolCall) -> tuple[SessionView, HostView, ParentView | None]:
        parent = self._ledger.call(call.session, call.parent_id) if call.parent_id else None
        return (
            self._session_view(self._ledger.session(call.session)),
            self._host_view(),
            self._parent_view(parent),
        )

    def _beside_the_queue(self, call: ToolCall) -> tuple[SessionView, HostView, ParentView | None]:
        """What there is for `call` to grow: what the queue keeps for those who have waited long is taken."""
        return self._views(call)

    def _has_grown(self, call: ToolCall) -> None:
        """`call` has reserved more than before."""

    def _promised(self, session: Session) -> None:
        """What `session` was promised, or its priority, is another now: the kernel's guard goes by it."""
        promised_bytes = session.budget.agent_memory_bytes + session.memory_reserved_bytes
        self._host.guard.promise(session.name, session.priority, promised_bytes)

    def memory_breached(self, breach: MemoryBreach) -> None:
        life = self._lives.get(breach.call_id)
        if life is None:
            return
        call = self._ledger.call(None, breach.call_id)
        reason = guarding.words(breach)
        self._decided(
            Action.SLOWED if breach.hold_us else Action.WARNED,
            call.session,
            reason,
            call=call,
            actor=Actor.KERNEL,
            because=guarding.grounds(breach),
        )
        self._say(FeedbackKind.THROTTLED, call.session, reason, call=call, advice=guarding.advice(breach))

    def _call_gone(self, call: ToolCall) -> None:
        """What `call` had reserved is free again."""

    def withdraw_standing(self, session: str | None = None) -> None:
        """What nobody has asked for yet gives way, in `session` or everywhere."""

    def _make_way(self, session: Session, memory_bytes: int) -> None:
        """Before so much more is reserved in `session`: what only stands by goes, if there is no room beside it.

        What the policies see as free is so only afterwards.
        """

    def _catch_up(self, call_id: str) -> bool:
        """Whether a call that the ledger does not know is in it now, because news of it had not been heard yet."""
        return False

    # ---- answering

    def _answer(
        self,
        ruling: Ruling,
        call: ToolCall,
        learned: Suggestion | None = None,
        expires_at_ns: int | None = None,
    ) -> Answer:
        """The answer that grants `call`; `learned` is what runs like it needed."""
        return Answer(
            ruling.decision,
            ruling.message,
            call_id=call.id,
            limits=ruling.limits,
            trims=ruling.trims,
            reason=ruling.reason,
            suggestion=ruling.suggestion,
            notices=(
                *ruling.notices,
                *suggest.notices(learned, call.limits),
                *self._unenforced_notices(),
            ),
            learned=learned,
            learned_applied=suggest.is_applied(learned, call.intent, call.limits),
            expires_at_ns=expires_at_ns,
        )

    def _unenforced_notices(self) -> tuple[str, ...]:
        missing = [field.partition(":")[0] for field in self._host.not_enforced]
        return (
            (f"not enforced on this host: {', '.join(missing)}; `agentcg check` says why",)
            if missing
            else ()
        )

    # ---- saying

    def _say(
        self,
        kind: FeedbackKind,
        session: str,
        message: str,
        *,
        call: ToolCall | None = None,
        level: Level | None = None,
        advice: str = "",
        answer: Answer | None = None,
        report: Report | None = None,
        held_until_ns: int | None = None,
        lineage: tuple[str, ...] = (),
        limits: CallLimits | None = None,
        usage: Usage | None = None,
        time_to_limit_ms: int | None = None,
        ladder: Ladder | None = None,
    ) -> None:
        """One line in the log and one message on the streams, with the same words."""
        call_id = call.id if call else answer.call_id if answer else ""
        log.info(
            "%s %s%s: %s",
            kind,
            session,
            f"/{call_id}" if call_id else "",
            message,
            extra={"session": session, "call_id": call_id, "kind": str(kind)},
        )
        self.feed.publish(
            Feedback(
                sequence=0,
                at_ns=self._clock.now_ns(),
                session=session,
                kind=kind,
                message=message,
                call_id=call_id,
                level=level,
                advice=advice,
                answer=answer,
                report=report,
                limits=limits,
                usage=usage,
                time_to_limit_ms=time_to_limit_ms,
                ladder=ladder,
                held_until_ns=held_until_ns,
            ),
            lineage or (self._ledger.lineage(call) if call else (call_id,) if call_id else ()),
        )

    def _decided(
        self,
        action: Action,
        session: str,
        reason: str,
        *,
        call: ToolCall | None = None,
        actor: Actor = Actor.POLICY,
        deadline_at_ns: int | None = None,
        because: Grounds = NO_GROUNDS,
        **inputs: int | str | None,
    ) -> str:
        """Writes a decision into the log; the id of its event.

        `because` and `inputs` are the numbers it was made from, with units in their names; None, unknown, is left out.
        `reason` is a sentence with the numbers that matter. `deadline_at_ns` is when the next rung follows.
        """
        at_ns = self._clock.now_ns()
        # Above every id given before, also when the clock was set back.
        self._last_event_number = max(self._last_event_number + 1, at_ns // 1000)
        event = Event(
            id=event_id(self._last_event_number),
            at_ns=at_ns,
            session=session,
            call_id=call.id if call else "",
            actor=actor,
            action=action,
            reason=reason,
            inputs=tuple(
                (name, value) for name, value in {**because, **inputs}.items() if value is not None
            ),
            deadline_at_ns=deadline_at_ns,
            dry_run=self.config.daemon.dry_run,
        )
        self._history.note(event)
        return event.id

    # ---- for the daemon after this one

    def _remember_session(self, session: Session) -> None:
        self._host.records.keep_session(session.name, record.encode_session(session))

    def _remember_call(self, call: ToolCall) -> None:
        """Of one that has begun, or is prepared. Off the path of a launch: an agent must not wait for it."""
        life = self._lives.get(call.id)
        self._host.records.keep_call(call.id, record.encode_call(call, tuple(life.followed) if life else ()))

    # ---- standing still

    def _freeze(self, call: ToolCall, cause: FreezeCause) -> bool:
        """Stops every process of a begun call for `cause`; False: `cause` held it already."""
        if cause in call.frozen_by:
            return False
        if not call.frozen_by:
            self._host.freeze_call(call.id, True)
            call.state = CallState.FROZEN
        call.frozen_by.add(cause)
        self._remember_call(call)
        return True

    def _thaw(self, call: ToolCall, cause: FreezeCause) -> bool:
        """Takes `cause` back; True: it was the last one and the call goes on."""
        if cause not in call.frozen_by:
            return False
        if call.frozen_by == {cause} and call.state is CallState.FROZEN:
            self._host.freeze_call(call.id, False)
            call.state = CallState.RUNNING
        call.frozen_by.discard(cause)
        self._remember_call(call)
        return not call.frozen_by
