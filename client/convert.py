"""Between protobuf and `values`, both ways; no other module of the client touches a field of a message.

Outwards None is an absent field, inwards an absent field is None. An enum number that this release does not know, from a
newer daemon, is None where the value may be unknown and IncompatibleDaemon where nothing makes sense without it.
"""

from collections.abc import Iterable
from dataclasses import fields
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final, TypeVar

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from agentcgroup.client import values
from agentcgroup.client.errors import IncompatibleDaemon
from agentcgroup.proto.v1 import agent_pb2, operator_pb2, types_pb2 as pb

Member = TypeVar("Member", bound=StrEnum)

# The members' names on the wire are PREFIX_NAME; the generated wrapper knows the numbers.
_WIRE: Final[dict[type[StrEnum], tuple[Any, str]]] = {
    values.CpuClass: (pb.CpuClass, "CPU_CLASS_"),
    values.OnExceed: (pb.OnExceed, "ON_EXCEED_"),
    values.Priority: (pb.Priority, "PRIORITY_"),
    values.Decision: (pb.Decision, "DECISION_"),
    values.Reason: (pb.Reason, "REASON_"),
    values.CallState: (pb.CallState, "CALL_STATE_"),
    values.SessionState: (pb.SessionState, "SESSION_STATE_"),
    values.TransparentScope: (pb.TransparentScope, "TRANSPARENT_SCOPE_"),
    values.Verdict: (pb.Verdict, "VERDICT_"),
    values.Level: (pb.Level, "LEVEL_"),
    values.Rung: (pb.Rung, "RUNG_"),
    values.FeedbackKind: (pb.FeedbackKind, "FEEDBACK_KIND_"),
}
_MEMBERS: Final[dict[tuple[type[StrEnum], int], StrEnum]] = {}
for _kind, (_wrapper, _prefix) in _WIRE.items():
    for _each in _kind:
        _MEMBERS[_kind, _wrapper.Value(f"{_prefix}{_each.name}")] = _each


def number(member: StrEnum | None) -> Any:
    """The number of `member` on the wire; None is UNSPECIFIED, 0."""
    if member is None:
        return 0
    wrapper, prefix = _WIRE[type(member)]
    return wrapper.Value(f"{prefix}{member.name}")


def _member(kind: type[Member], wire_number: int) -> Member | None:
    found = _MEMBERS.get((kind, wire_number))
    return found if isinstance(found, kind) else None


def _needed(kind: type[Member], wire_number: int) -> Member:
    found = _member(kind, wire_number)
    if found is None:
        raise IncompatibleDaemon(
            f"the daemon says {kind.__name__} {wire_number}, which this client does not know",
            "Install the same release of agentcgroup here and for the daemon",
        )
    return found


def _at(message: Message, field: str) -> datetime | None:
    if not message.HasField(field):
        return None
    stamp: Timestamp = getattr(message, field)
    return stamp.ToDatetime(tzinfo=UTC)


def _present(message: Message, kind: type[Any]) -> dict[str, int]:
    """The numbers of `message` that were sent, among the fields of the value class `kind` that have one there."""
    known = message.DESCRIPTOR.fields_by_name
    return {
        each.name: getattr(message, each.name)
        for each in fields(kind)
        if each.name in known and known[each.name].has_presence and message.HasField(each.name)
    }


def _given(value: Any, names: Iterable[str]) -> dict[str, Any]:
    return {name: number for name in names if (number := getattr(value, name)) is not None}


# ---- outwards: requests ----------------------------------------------------------------------------------------------

_INTENT_NUMBERS: Final = (
    "memory_bytes", "memory_max_bytes", "cpu_milli", "cpu_weight", "pids_max", "expected_duration_ms", "deadline_ms",
    "throttle_limit_ms",
)  # fmt: skip
_BUDGET_NUMBERS: Final = tuple(each.name for each in fields(values.Budget))


def intent_message(intent: values.Intent) -> pb.Intent:
    return pb.Intent(
        cpu_class=number(intent.cpu_class),
        on_exceed=number(intent.on_exceed),
        command=intent.command,
        labels=dict(intent.labels),
        **_given(intent, _INTENT_NUMBERS),
    )


def budget_message(budget: values.Budget) -> pb.Budget:
    return pb.Budget(**_given(budget, _BUDGET_NUMBERS))


def transparent_message(rule: values.TransparentRule | None) -> pb.TransparentRule | None:
    if rule is None:
        return None
    return pb.TransparentRule(scope=number(rule.scope), include=rule.include, exclude=rule.exclude)


def process_message(process: values.ProcessRef) -> pb.ProcessRef:
    return pb.ProcessRef(
        pid=process.pid, pidfd_inode=process.pidfd_inode, start_time_ticks=process.start_time_ticks
    )


# ---- inwards: nouns --------------------------------------------------------------------------------------------------


def intent(message: pb.Intent) -> values.Intent:
    return values.Intent(
        **{name: getattr(message, name) for name in _INTENT_NUMBERS if message.HasField(name)},
        cpu_class=_member(values.CpuClass, message.cpu_class),
        on_exceed=_member(values.OnExceed, message.on_exceed),
        command=tuple(message.command),
        labels=dict(message.labels),
    )


def limits(message: pb.Limits) -> values.Limits:
    return values.Limits(**_present(message, values.Limits), not_enforced=tuple(message.not_enforced))


def usage(message: pb.Usage) -> values.Usage:
    return values.Usage(**_present(message, values.Usage))


def budget(message: pb.Budget) -> values.Budget:
    return values.Budget(**_present(message, values.Budget))


def _trim(message: pb.Trim) -> values.Trim:
    return values.Trim(
        field=message.field,
        asked=message.asked,
        granted=message.granted,
        reason=_member(values.Reason, message.reason),
    )


def _queue(message: pb.Queue) -> values.Queue:
    waits_ms = message.estimated_wait_ms if message.HasField("estimated_wait_ms") else None
    return values.Queue(
        position=message.position, deadline_ms=message.deadline_ms, estimated_wait_ms=waits_ms
    )


def answer(message: pb.Answer) -> values.Answer:
    return values.Answer(
        decision=_needed(values.Decision, message.decision),
        call_id=message.call_id,
        granted=limits(message.granted) if message.HasField("granted") else None,
        trims=tuple(_trim(each) for each in message.trims),
        reason=_member(values.Reason, message.reason),
        message=message.message,
        suggestion=message.suggestion,
        queue=_queue(message.queue) if message.HasField("queue") else None,
        expires_at=_at(message, "expires_at"),
        notices=tuple(message.notices),
        learned=suggestion(message.learned) if message.HasField("learned") else None,
        learned_applied=message.learned_applied,
    )


def suggestion(message: pb.Suggestion) -> values.Suggestion:
    return values.Suggestion(
        **_present(message, values.Suggestion),
        project=message.project,
        command_class=message.command_class,
        runs=message.runs,
        killed_runs=message.killed_runs,
        reason=message.reason,
        memory_is_at_least=message.memory_is_at_least,
    )


def report(message: pb.Report) -> values.Report:
    return values.Report(
        call_id=message.call_id,
        session=message.session,
        # A verdict of a newer daemon is a verdict all the same; its message says it in words.
        verdict=_member(values.Verdict, message.verdict) or values.Verdict.UNKNOWN,
        exit_code=message.exit_code if message.HasField("exit_code") else None,
        signal=message.signal if message.HasField("signal") else None,
        usage=usage(message.usage),
        started_at=_at(message, "started_at"),
        ended_at=_at(message, "ended_at"),
        duration_ms=message.duration_ms,
        leftover_processes=message.leftover_processes,
        message=message.message,
        advice=message.advice,
    )


def call(message: pb.Call) -> values.Call:
    return values.Call(
        id=message.id,
        session=message.session,
        state=_needed(values.CallState, message.state),
        parent_call_id=message.parent_call_id,
        intent=intent(message.intent),
        limits=limits(message.limits),
        usage=usage(message.usage),
        declared_at=_at(message, "declared_at"),
        started_at=_at(message, "started_at"),
        pid=message.pid,
        cgroup=message.cgroup,
        report=report(message.report) if message.HasField("report") else None,
        placement_delay_ms=message.placement_delay_ms if message.HasField("placement_delay_ms") else None,
        was_held=message.was_held,
        held_after_us=message.held_after_us if message.HasField("held_after_us") else None,
        queue=_queue(message.queue) if message.HasField("queue") else None,
        ladder=_ladder(message.ladder) if message.HasField("ladder") else None,
    )


def transparent(message: pb.TransparentRule) -> values.TransparentRule:
    scope = _member(values.TransparentScope, message.scope) or values.TransparentScope.OFF
    return values.TransparentRule(scope, tuple(message.include), tuple(message.exclude))


def session(message: pb.Session) -> values.Session:
    return values.Session(
        name=message.name,
        state=_needed(values.SessionState, message.state),
        budget=budget(message.budget),
        priority=_member(values.Priority, message.priority),
        usage=usage(message.usage),
        memory_reserved_bytes=message.memory_reserved_bytes,
        calls_live=message.calls_live,
        calls_ended=message.calls_ended,
        created_at=_at(message, "created_at"),
        socket_dir=message.socket_dir,
        cgroup=message.cgroup,
        owner_uid=message.owner_uid,
        owner_gid=message.owner_gid,
        labels=dict(message.labels),
        container_id=message.container_id,
        ends_with_agent=message.ends_with_agent,
        transparent=transparent(message.transparent),
        transparent_placed=message.transparent_placed,
        transparent_missed=message.transparent_missed,
        transparent_left=message.transparent_left,
        memory_mark_bytes=message.memory_mark_bytes if message.HasField("memory_mark_bytes") else None,
        calls_held=message.calls_held,
    )


def session_limits(message: agent_pb2.GetLimitsResponse) -> values.SessionLimits:
    return values.SessionLimits(
        session=message.session,
        budget=budget(message.budget),
        priority=_member(values.Priority, message.priority),
        usage=usage(message.usage),
        memory_available_bytes=message.memory_available_bytes,
        cpu_available_milli=message.cpu_available_milli,
        pids_available=message.pids_available,
        level=_member(values.Level, message.level),
        not_enforced=tuple(message.not_enforced),
        memory_max_bytes=message.memory_max_bytes,
        call=call(message.call) if message.HasField("call") else None,
    )


def feedback(message: pb.Feedback) -> values.Feedback:
    return values.Feedback(
        sequence=message.sequence,
        at=_at(message, "at"),
        session=message.session,
        kind=_member(values.FeedbackKind, message.kind),
        message=message.message,
        call_id=message.call_id,
        level=_member(values.Level, message.level),
        advice=message.advice,
        answer=answer(message.answer) if message.HasField("answer") else None,
        report=report(message.report) if message.HasField("report") else None,
        lost=message.lost,
        limits=limits(message.limits) if message.HasField("limits") else None,
        usage=usage(message.usage) if message.HasField("usage") else None,
        time_to_limit_ms=message.time_to_limit_ms if message.HasField("time_to_limit_ms") else None,
        ladder=_ladder(message.ladder) if message.HasField("ladder") else None,
        held_until=_at(message, "held_until"),
    )


def _ladder(message: pb.Ladder) -> values.Ladder:
    return values.Ladder(
        rung=_member(values.Rung, message.rung),
        event_id=message.event_id,
        deadline_at=_at(message, "deadline_at"),
        memory_to_ask_bytes=message.memory_to_ask_bytes if message.HasField("memory_to_ask_bytes") else None,
    )


def _capability(message: operator_pb2.Capability) -> values.Capability:
    return values.Capability(
        name=message.name,
        available=message.available,
        tier=message.tier,
        detail=message.detail,
        cost=message.cost,
        remedy=message.remedy,
    )


def host(message: operator_pb2.GetHostResponse) -> values.Host:
    current_bytes = message.memory_current_bytes if message.HasField("memory_current_bytes") else None
    return values.Host(
        version=message.version,
        kernel=message.kernel,
        tier=message.tier,
        capabilities=tuple(_capability(each) for each in message.capabilities),
        memory_capacity_bytes=message.memory_capacity_bytes,
        memory_reserved_bytes=message.memory_reserved_bytes,
        memory_current_bytes=current_bytes,
        cpu_capacity_milli=message.cpu_capacity_milli,
        sessions=message.sessions,
        calls_live=message.calls_live,
        started_at=_at(message, "started_at"),
        dry_run=message.dry_run,
        cgroup_root=message.cgroup_root,
        daemon_usage=usage(message.daemon_usage),
        daemon_rss_bytes=message.daemon_rss_bytes,
        drain=_drain(message.drain) if message.HasField("drain") else None,
        scheduler=_scheduler(message.scheduler),
    )


def _scheduler(message: operator_pb2.Scheduler) -> values.Scheduler:
    return values.Scheduler(message.state, message.mode, message.reason, message.ejections)


def _drain(message: operator_pb2.Drain) -> values.Drain:
    return values.Drain(message.reason, _at(message, "began_at"), _at(message, "deadline"))


def configuration_change(message: operator_pb2.ConfigurationChange) -> values.ConfigurationChange:
    return values.ConfigurationChange(message.key, message.old_value, message.new_value, message.is_live)


def history_entry(message: operator_pb2.HistoryEntry) -> values.HistoryEntry:
    return values.HistoryEntry(
        report=report(message.report),
        intent=intent(message.intent),
        limits=limits(message.limits),
        decision=_member(values.Decision, message.decision),
        parent_call_id=message.parent_call_id,
        command_class=message.command_class,
        project=message.project,
        memory_samples=tuple(
            values.MemorySample(each.offset_ms, each.memory_bytes) for each in message.memory_samples
        ),
    )


def event(message: pb.Event) -> values.Event:
    return values.Event(
        id=message.id,
        at=_at(message, "at"),
        session=message.session,
        call_id=message.call_id,
        actor=message.actor,
        action=message.action,
        reason=message.reason,
        numbers=dict(message.numbers),
        words=dict(message.words),
        deadline_at=_at(message, "deadline_at"),
        dry_run=message.dry_run,
    )


def story(message: pb.Story) -> values.Story:
    return values.Story(
        call=call(message.call) if message.HasField("call") else None,
        events=tuple(event(each) for each in message.events),
        events_left_out=message.events_left_out,
    )
