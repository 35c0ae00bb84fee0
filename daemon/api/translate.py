"""Between protobuf and the model, both ways; nothing else in the daemon sees a protobuf message of a noun.

Inwards, a field that is absent is None, and every value is checked (see agentcgroup.daemon.policy.intent):
the core gets only what makes sense. Outwards, None is an absent field. Times are Unix nanoseconds in the
model, Timestamp on the wire.
"""

from collections.abc import Mapping
from typing import Any, Final

from google.protobuf.timestamp_pb2 import Timestamp

from agentcgroup.daemon import model
from agentcgroup.daemon.api.enums import (
    CALL_STATES,
    CPU_CLASSES,
    DECISIONS,
    FEEDBACK_KINDS,
    LEVELS,
    ON_EXCEED,
    PRIORITIES,
    REASONS,
    RUNGS,
    SESSION_STATES,
    TRANSPARENT_SCOPES,
    VERDICTS,
)
from agentcgroup.daemon.errors import Kind, RequestError
from agentcgroup.daemon.policy import intent as intent_rules
from agentcgroup.daemon.policy.bounds import check_budget, check_labels
from agentcgroup.proto.transparent import BadRule, parse_rule
from agentcgroup.proto.v1 import types_pb2 as pb

_INTENT_NUMBERS: Final = (
    "memory_bytes", "memory_max_bytes", "cpu_milli", "cpu_weight", "pids_max", "expected_duration_ms",
    "deadline_ms", "throttle_limit_ms",
)  # fmt: skip
_LIMIT_NUMBERS: Final = (
    "memory_bytes", "memory_high_bytes", "memory_max_bytes", "swap_max_bytes", "cpu_milli", "cpu_weight",
    "pids_max", "deadline_ms", "throttle_limit_ms",
)  # fmt: skip
_BUDGET_NUMBERS: Final = tuple(model.BudgetRequest.__dataclass_fields__)
_USAGE_NUMBERS: Final = tuple(model.Usage.__dataclass_fields__)


# What this host does not enforce, for the reader of limits.
NotEnforced = tuple[str, ...]


def _present(message: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """The numbers of `message` that were sent."""
    return {name: getattr(message, name) for name in names if message.HasField(name)}


def _known(value: object, names: tuple[str, ...]) -> dict[str, Any]:
    """The numbers of a model value that are known."""
    return {name: number for name in names if (number := getattr(value, name)) is not None}


def _labels(labels: Mapping[str, str]) -> model.Labels:
    return tuple(sorted(labels.items()))


def timestamp(at_ns: int | None) -> Timestamp | None:
    """Unix nanoseconds as a Timestamp; None is an absent field."""
    if at_ns is None:
        return None
    seconds, nanos = divmod(at_ns, 1_000_000_000)
    return Timestamp(seconds=seconds, nanos=nanos)


# ---- inwards ----------------------------------------------------------------------------------------------


def read_intent(message: pb.Intent) -> model.Intent:
    """The intent in `message`, checked. Raises RequestError(INVALID) with the field."""
    intent = model.Intent(
        **_present(message, _INTENT_NUMBERS),
        cpu_class=CPU_CLASSES.member(message.cpu_class, "cpu_class"),
        on_exceed=ON_EXCEED.member(message.on_exceed, "on_exceed"),
        command=intent_rules.bounded_command(message.command),
        labels=_labels(message.labels),
    )
    intent_rules.check(intent)
    return intent


# What a running call can be given anew; AgentService.AdjustCall.
_ADJUSTABLE: Final = (
    "memory_bytes",
    "memory_max_bytes",
    "cpu_milli",
    "cpu_weight",
    "pids_max",
    "deadline_ms",
)


def read_adjustment(message: pb.Intent) -> model.Intent:
    """The limits that `message` asks for anew. Raises RequestError(INVALID), also when it asks for none."""
    intent = model.Intent(**_present(message, _ADJUSTABLE))
    if intent == model.Intent():
        raise RequestError(
            Kind.INVALID, "intent asks for no other limit", f"set one of {', '.join(_ADJUSTABLE)}", "intent"
        )
    intent_rules.check(intent)
    return intent


def read_budget(message: pb.Budget) -> model.BudgetRequest:
    """The budget in `message`, checked by itself. Raises RequestError(INVALID)."""
    request = model.BudgetRequest(**_present(message, _BUDGET_NUMBERS))
    check_budget(request)
    return request


def read_transparent(message: pb.TransparentRule) -> model.TransparentRule:
    """The rule in `message`. Raises RequestError(INVALID)."""
    scope = TRANSPARENT_SCOPES.member(message.scope, "transparent.scope")
    if scope is None:
        raise RequestError(
            Kind.INVALID,
            "transparent has no scope",
            f"set one of {', '.join(model.TransparentScope)}, or leave transparent out",
            "transparent.scope",
        )
    rule = model.TransparentRule(scope, tuple(message.include), tuple(message.exclude))
    try:
        read = parse_rule(str(rule))
    except BadRule as error:
        raise RequestError(Kind.INVALID, f"transparent: {error}", "", "transparent") from error
    if read != rule:
        raise RequestError(
            Kind.INVALID,
            "transparent has a pattern with a comma, or with space around it",
            "match these with ?",
            "transparent",
        )
    return rule


def read_labels(labels: Mapping[str, str]) -> model.Labels:
    """Labels, checked. Raises RequestError(INVALID)."""
    read = _labels(labels)
    check_labels(read)
    return read


def read_process(message: pb.ProcessRef) -> model.ProcessRef:
    """The process that `message` names, if it names one; whether it lives is the host's to say."""
    if message.pid < 1:
        raise RequestError(
            Kind.INVALID,
            f"process.pid is {message.pid}",
            "name a process by its pid, 1 or more",
            "process.pid",
        )
    return model.ProcessRef(
        pid=message.pid,
        pidfd_inode=message.pidfd_inode if message.HasField("pidfd_inode") else None,
        start_time_ticks=message.start_time_ticks if message.HasField("start_time_ticks") else None,
    )


# ---- outwards ---------------------------------------------------------------------------------------------


def write_intent(intent: model.Intent) -> pb.Intent:
    return pb.Intent(
        **_known(intent, _INTENT_NUMBERS),
        cpu_class=CPU_CLASSES.number(intent.cpu_class),
        on_exceed=ON_EXCEED.number(intent.on_exceed),
        command=intent.command,
        labels=dict(intent.labels),
    )


def write_limits(limits: model.CallLimits | None, not_enforced: NotEnforced = ()) -> pb.Limits | None:
    if limits is None:
        return None
    return pb.Limits(**_known(limits, _LIMIT_NUMBERS), not_enforced=not_enforced)


def write_budget(budget: model.Budget) -> pb.Budget:
    return pb.Budget(**_known(budget, _BUDGET_NUMBERS))


def write_usage(usage: model.Usage) -> pb.Usage:
    return pb.Usage(**_known(usage, _USAGE_NUMBERS))


def write_answer(answer: model.Answer, not_enforced: NotEnforced = ()) -> pb.Answer:
    return pb.Answer(
        decision=DECISIONS.number(answer.decision),
        call_id=answer.call_id,
        granted=write_limits(answer.limits, not_enforced),
        trims=[
            pb.Trim(
                field=trim.field, asked=trim.asked, granted=trim.granted, reason=REASONS.number(trim.reason)
            )
            for trim in answer.trims
        ],
        reason=REASONS.number(answer.reason),
        message=answer.message,
        suggestion=answer.suggestion,
        expires_at=timestamp(answer.expires_at_ns),
        notices=answer.notices,
        learned=None if answer.learned is None else write_suggestion(answer.learned),
        learned_applied=answer.learned_applied,
        queue=write_queue(answer.queue),
    )


def write_queue(place: model.QueuePlace | None) -> pb.Queue | None:
    if place is None:
        return None
    return pb.Queue(
        position=place.position, estimated_wait_ms=place.estimated_wait_ms, deadline_ms=place.deadline_ms
    )


_SUGGESTED: Final = (
    "memory_bytes", "memory_seen_bytes", "memory_median_bytes", "expected_duration_ms", "cpu_milli",
)  # fmt: skip


def write_suggestion(suggestion: model.Suggestion) -> pb.Suggestion:
    return pb.Suggestion(
        project=suggestion.project,
        command_class=suggestion.command_class,
        runs=suggestion.runs,
        killed_runs=suggestion.killed_runs,
        reason=suggestion.reason,
        memory_is_at_least=suggestion.memory_is_at_least,
        **_known(suggestion, _SUGGESTED),
    )


def write_report(report: model.Report) -> pb.Report:
    return pb.Report(
        call_id=report.call_id,
        session=report.session,
        verdict=VERDICTS.number(report.verdict),
        exit_code=report.exit_status.exit_code,
        signal=report.exit_status.signal,
        usage=write_usage(report.usage),
        started_at=timestamp(report.started_at_ns),
        ended_at=timestamp(report.ended_at_ns),
        duration_ms=report.duration_ms,
        leftover_processes=report.leftover_processes,
        message=report.message,
        advice=report.advice,
    )


def write_call(call: model.ToolCall, usage: model.Usage, not_enforced: NotEnforced = ()) -> pb.Call:
    """`usage` is read now for a live call and the report's for an ended one."""
    placement = call.placement
    hold = placement.hold if placement else None
    return pb.Call(
        id=call.id,
        session=call.session,
        parent_call_id=call.parent_id,
        state=CALL_STATES.number(call.state),
        intent=write_intent(call.intent),
        # One that is queued has none in force.
        limits=None if call.state is model.CallState.QUEUED else write_limits(call.limits, not_enforced),
        usage=write_usage(usage),
        declared_at=timestamp(call.declared_at_ns),
        started_at=timestamp(call.started_at_ns),
        pid=call.pid,
        cgroup=call.cgroup,
        report=None if call.report is None else write_report(call.report),
        placement_delay_ms=placement.delay_ms if placement else None,
        was_held=hold.lasted if hold else False,
        held_after_us=hold.began_us if hold else None,
        queue=write_queue(call.queue),
        ladder=write_ladder(call.ladder) if call.ladder is not None and call.is_live else None,
    )


def write_session(session: model.Session, usage: model.Usage) -> pb.Session:
    return pb.Session(
        name=session.name,
        state=SESSION_STATES.number(session.state),
        budget=write_budget(session.budget),
        priority=PRIORITIES.number(session.priority),
        usage=write_usage(usage),
        memory_reserved_bytes=session.memory_reserved_bytes,
        calls_live=len(session.calls),
        calls_ended=session.calls_ended,
        created_at=timestamp(session.created_at_ns),
        socket_dir=session.socket_dir,
        cgroup=session.cgroup,
        owner_uid=session.owner_uid,
        owner_gid=session.owner_gid,
        labels=dict(session.labels),
        container_id=session.container_id,
        ends_with_agent=session.ends_with_agent,
        transparent=pb.TransparentRule(
            scope=TRANSPARENT_SCOPES.number(session.transparent.scope),
            include=session.transparent.include,
            exclude=session.transparent.exclude,
        ),
        transparent_placed=session.transparent_placed,
        transparent_missed=session.transparent_missed,
        transparent_left=session.transparent_left,
        memory_mark_bytes=session.memory_mark_bytes,
        calls_held=session.calls_held,
    )


def write_feedback(feedback: model.Feedback) -> pb.Feedback:
    return pb.Feedback(
        sequence=feedback.sequence,
        at=timestamp(feedback.at_ns),
        session=feedback.session,
        call_id=feedback.call_id,
        kind=FEEDBACK_KINDS.number(feedback.kind),
        level=LEVELS.number(feedback.level),
        message=feedback.message,
        advice=feedback.advice,
        answer=None if feedback.answer is None else write_answer(feedback.answer),
        report=None if feedback.report is None else write_report(feedback.report),
        lost=feedback.lost,
        limits=write_limits(feedback.limits),
        usage=None if feedback.usage is None else write_usage(feedback.usage),
        time_to_limit_ms=feedback.time_to_limit_ms,
        ladder=None if feedback.ladder is None else write_ladder(feedback.ladder),
        held_until=timestamp(feedback.held_until_ns),
    )


def write_ladder(ladder: model.Ladder) -> pb.Ladder:
    return pb.Ladder(
        rung=RUNGS.number(ladder.rung),
        event_id=ladder.event_id,
        deadline_at=timestamp(ladder.deadline_at_ns),
        memory_to_ask_bytes=ladder.memory_to_ask_bytes,
    )


def write_event(event: model.Event) -> pb.Event:
    return pb.Event(
        id=event.id,
        at=timestamp(event.at_ns),
        session=event.session,
        call_id=event.call_id,
        actor=event.actor,
        action=event.action,
        reason=event.reason,
        numbers={name: value for name, value in event.inputs if isinstance(value, int)},
        words={name: value for name, value in event.inputs if isinstance(value, str)},
        deadline_at=timestamp(event.deadline_at_ns),
        dry_run=event.dry_run,
    )


def write_recorded_call(entry: model.HistoryEntry) -> pb.Call:
    """An ended call that is known from the history alone."""
    report = entry.report
    return pb.Call(
        id=report.call_id,
        session=report.session,
        parent_call_id=entry.parent_call_id,
        state=CALL_STATES.number(model.CallState.ENDED),
        intent=write_intent(entry.intent),
        limits=write_limits(entry.limits),
        usage=write_usage(report.usage),
        started_at=timestamp(report.started_at_ns),
        report=write_report(report),
    )
