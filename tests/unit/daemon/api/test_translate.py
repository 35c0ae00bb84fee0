"""api/translate.py and api/enums.py: nothing gets lost or invented between protobuf and the model."""

import dataclasses
from enum import StrEnum
from typing import Any

import pytest
from google.protobuf.descriptor import EnumDescriptor
from hypothesis import given, strategies as st

from agentcgroup.daemon import model
from agentcgroup.daemon.api import enums, translate
from agentcgroup.daemon.errors import Kind, RequestError
from agentcgroup.proto.v1 import types_pb2 as pb

TABLES: list[tuple[enums.Table[Any, Any], type[StrEnum], EnumDescriptor]] = [
    (enums.CPU_CLASSES, model.CpuClass, pb.CpuClass.DESCRIPTOR),
    (enums.ON_EXCEED, model.OnExceed, pb.OnExceed.DESCRIPTOR),
    (enums.PRIORITIES, model.Priority, pb.Priority.DESCRIPTOR),
    (enums.DECISIONS, model.Decision, pb.Decision.DESCRIPTOR),
    (enums.REASONS, model.Reason, pb.Reason.DESCRIPTOR),
    (enums.CALL_STATES, model.CallState, pb.CallState.DESCRIPTOR),
    (enums.SESSION_STATES, model.SessionState, pb.SessionState.DESCRIPTOR),
    (enums.VERDICTS, model.Verdict, pb.Verdict.DESCRIPTOR),
    (enums.LEVELS, model.Level, pb.Level.DESCRIPTOR),
    (enums.FEEDBACK_KINDS, model.FeedbackKind, pb.FeedbackKind.DESCRIPTOR),
]


@pytest.mark.parametrize(
    ("table", "members", "descriptor"), TABLES, ids=lambda each: getattr(each, "__name__", "")
)
def test_every_member_has_a_number_and_every_number_a_member(
    table: enums.Table[Any, Any], members: type[StrEnum], descriptor: EnumDescriptor
) -> None:
    numbers = {table.number(member) for member in members}
    assert numbers == {value.number for value in descriptor.values} - {0}
    assert [table.member(table.number(member), "field") for member in members] == list(members)
    assert table.number(None) == 0
    assert table.member(0, "field") is None


@pytest.mark.parametrize(
    ("table", "members", "descriptor"), TABLES, ids=lambda each: getattr(each, "__name__", "")
)
@pytest.mark.parametrize("number", [-1, 99, 2**31 - 1])
def test_a_number_without_meaning_is_invalid(
    table: enums.Table[Any, Any], members: type[StrEnum], descriptor: EnumDescriptor, number: int
) -> None:
    with pytest.raises(RequestError) as caught:
        table.member(number, "the_field")
    assert (caught.value.kind, caught.value.field) == (Kind.INVALID, "the_field")
    assert str(next(iter(members))) in caught.value.next_step


def test_the_reasons_of_a_kill_are_verdicts_where_they_end_a_call() -> None:
    # FINISHED is the caller's own word and gets the verdict of how the tool ended.
    assert {each.value for each in model.KillReason} - {"finished"} <= {each.value for each in model.Verdict}


def optional(largest: int, least: int = 1) -> st.SearchStrategy[int | None]:
    return st.none() | st.integers(least, largest)


_TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20)
_LABELS = st.dictionaries(st.from_regex(r"[a-z][a-z0-9_.-]{0,8}", fullmatch=True), _TEXT, max_size=3)


@st.composite
def intents(draw: st.DrawFn) -> model.Intent:
    memory = draw(optional(1 << 40, 1 << 20))
    on_exceed = draw(st.none() | st.sampled_from(model.OnExceed))
    throttles = on_exceed in (None, model.OnExceed.THROTTLE)
    return model.Intent(
        memory_bytes=memory,
        memory_max_bytes=draw(optional(1 << 62, memory or 1 << 20)),
        cpu_milli=draw(optional(2**31 - 1, 10)),
        cpu_weight=draw(optional(10_000)),
        cpu_class=draw(st.none() | st.sampled_from(model.CpuClass)),
        pids_max=draw(optional(4_194_304)),
        expected_duration_ms=draw(optional(10**11)),
        deadline_ms=draw(optional(10**11)),
        on_exceed=on_exceed,
        throttle_limit_ms=draw(optional(10**11)) if throttles else None,
        command=tuple(draw(st.lists(_TEXT, max_size=5))),
        labels=tuple(sorted(draw(_LABELS).items())),
    )


@given(intents())
def test_an_intent_comes_back_as_it_went(intent: model.Intent) -> None:
    wire = translate.write_intent(intent).SerializeToString()
    assert translate.read_intent(pb.Intent.FromString(wire)) == intent


def test_what_is_absent_is_none_and_what_is_0_is_refused() -> None:
    assert translate.read_intent(pb.Intent()) == model.Intent()
    for name in ("memory_bytes", "cpu_milli", "pids_max", "deadline_ms"):
        zero = pb.Intent()
        setattr(zero, name, 0)
        with pytest.raises(RequestError) as caught:
            translate.read_intent(zero)
        assert caught.value.field == name


@pytest.mark.parametrize("name", ["cpu_class", "on_exceed"])
def test_an_enum_of_a_newer_release_is_invalid(name: str) -> None:
    intent = pb.Intent()
    setattr(intent, name, 77)
    with pytest.raises(RequestError) as caught:
        translate.read_intent(intent)
    assert (caught.value.kind, caught.value.field) == (Kind.INVALID, name)


def test_an_adjustment_takes_limits_only_and_at_least_one() -> None:
    asked = pb.Intent(memory_max_bytes=1 << 30, command=["ignored"], cpu_class=pb.CPU_CLASS_BATCH)
    assert translate.read_adjustment(asked) == model.Intent(memory_max_bytes=1 << 30)
    with pytest.raises(RequestError) as caught:
        translate.read_adjustment(pb.Intent(command=["x"]))
    assert caught.value.field == "intent"


def test_a_budget_tells_absent_from_0() -> None:
    assert translate.read_budget(pb.Budget()) == model.BudgetRequest()
    assert translate.read_budget(pb.Budget(swap_max_bytes=0)) == model.BudgetRequest(swap_max_bytes=0)
    every = {field.name: 100 for field in dataclasses.fields(model.BudgetRequest)} | {
        "memory_max_bytes": 1 << 20
    }
    assert dataclasses.asdict(translate.read_budget(pb.Budget(**every))) == every


@pytest.mark.parametrize("pid", [0, -1])
def test_a_process_without_a_pid_is_none(pid: int) -> None:
    with pytest.raises(RequestError) as caught:
        translate.read_process(pb.ProcessRef(pid=pid))
    assert caught.value.field == "process.pid"


def test_a_process_keeps_its_guards() -> None:
    assert translate.read_process(pb.ProcessRef(pid=5)) == model.ProcessRef(5)
    assert translate.read_process(
        pb.ProcessRef(pid=5, pidfd_inode=0, start_time_ticks=7)
    ) == model.ProcessRef(5, 0, 7)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (model.Usage, pb.Usage),
        (model.CallLimits, pb.Limits),
        (model.Budget, pb.Budget),
        (model.BudgetRequest, pb.Budget),
    ],
)
def test_every_number_of_the_model_has_a_field_of_that_name(kind: type[Any], message: type[Any]) -> None:
    assert {field.name for field in dataclasses.fields(kind)} <= set(message.DESCRIPTOR.fields_by_name)


def test_usage_that_is_unknown_is_absent_and_0_is_0() -> None:
    written = translate.write_usage(model.Usage(memory_peak_bytes=0, cpu_usage_us=7))
    assert [descriptor.name for descriptor, _ in written.ListFields()] == [
        "memory_peak_bytes",
        "cpu_usage_us",
    ]
    full = model.Usage(**{field.name: 3 for field in dataclasses.fields(model.Usage)})
    assert {value for _, value in translate.write_usage(full).ListFields()} == {3}


def test_limits_say_what_is_not_limited_by_absence() -> None:
    written = translate.write_limits(model.CallLimits(memory_bytes=5), ("pids_max: no pids controller",))
    assert written is not None
    assert written.memory_bytes == 5
    assert not written.HasField("memory_max_bytes")
    assert list(written.not_enforced) == ["pids_max: no pids controller"]


def test_times_are_exact_to_the_nanosecond() -> None:
    at_ns = 1_800_000_000_123_456_789
    written = translate.timestamp(at_ns)
    assert written is not None
    assert written.ToNanoseconds() == at_ns
    assert translate.timestamp(None) is None


_LIMITS = model.CallLimits(1 << 30, 2 << 30, cpu_milli=500, pids_max=9)
_ANSWER = model.Answer(
    model.Decision.TRIMMED,
    "less",
    call_id="c-1",
    limits=_LIMITS,
    trims=(model.Trim("cpu_milli", 900, 500, model.Reason.SESSION_CPU),),
    reason=model.Reason.SESSION_CPU,
    suggestion="fit",
    notices=("a notice",),
    expires_at_ns=5_000_000_001,
)
_REPORT = model.Report(
    call_id="c-1",
    session="s",
    verdict=model.Verdict.MEMORY_LIMIT_CALL,
    exit_status=model.ExitStatus(signal=9),
    usage=model.Usage(memory_peak_bytes=77),
    started_at_ns=1,
    ended_at_ns=2_000_000_000,
    duration_ms=1999,
    leftover_processes=3,
    message="killed",
    advice="more",
)


def test_an_answer_is_written_in_full() -> None:
    written = translate.write_answer(_ANSWER)
    assert written.decision == pb.DECISION_TRIMMED
    assert written.reason == pb.REASON_SESSION_CPU
    assert (written.call_id, written.message, written.suggestion) == ("c-1", "less", "fit")
    assert written.granted.memory_max_bytes == 2 << 30
    assert [(trim.field, trim.asked, trim.granted) for trim in written.trims] == [("cpu_milli", 900, 500)]
    assert written.expires_at.ToNanoseconds() == 5_000_000_001
    assert list(written.notices) == ["a notice"]
    refused = translate.write_answer(model.Answer(model.Decision.REFUSED, "no"))
    assert not refused.HasField("granted")
    assert not refused.HasField("expires_at")


def test_a_report_says_signal_or_exit_code_or_neither() -> None:
    written = translate.write_report(_REPORT)
    assert (written.verdict, written.signal, written.leftover_processes) == (
        pb.VERDICT_MEMORY_LIMIT_CALL,
        9,
        3,
    )
    assert not written.HasField("exit_code")
    ended = dataclasses.replace(_REPORT, exit_status=model.ExitStatus(exit_code=0), started_at_ns=None)
    written = translate.write_report(ended)
    assert written.HasField("exit_code") and not written.HasField("signal")
    assert not written.HasField("started_at")


def test_a_call_and_its_session_are_written_in_full() -> None:
    call = model.ToolCall(
        id="c-1",
        session="s",
        parent_id="c-0",
        intent=model.Intent(memory_bytes=1, command=("true",)),
        limits=_LIMITS,
        decision=model.Decision.GRANTED,
        declared_at_ns=1,
        state=model.CallState.ENDED,
        pid=42,
        report=_REPORT,
    )
    written = translate.write_call(call, model.Usage(pids_current=2))
    assert (written.parent_call_id, written.pid, written.state) == ("c-0", 42, pb.CALL_STATE_ENDED)
    assert written.report.call_id == "c-1"
    assert written.usage.pids_current == 2
    budget = model.Budget(4 << 30, 1 << 29, 0, None, 100, 10, 5)
    session = model.Session(
        name="s",
        budget=budget,
        priority=model.Priority.HIGH,
        owner_uid=1,
        owner_gid=2,
        created_at_ns=3,
        socket_dir="/x",
        labels=(("k", "v"),),
        calls={"c-1": call},
    )
    shown = translate.write_session(session, model.Usage())
    assert (shown.name, shown.priority, shown.calls_live, dict(shown.labels)) == (
        "s",
        pb.PRIORITY_HIGH,
        1,
        {"k": "v"},
    )
    assert shown.budget.HasField("swap_max_bytes") and not shown.budget.HasField("cpu_milli")


def test_feedback_carries_its_report_and_answer() -> None:
    feedback = model.Feedback(
        7, 8, "s", model.FeedbackKind.ENDED, "m", "c-1", model.Level.TIGHT, "a", _ANSWER, _REPORT, 2
    )
    written = translate.write_feedback(feedback)
    assert (written.sequence, written.kind, written.level, written.lost) == (
        7,
        pb.FEEDBACK_KIND_ENDED,
        pb.LEVEL_TIGHT,
        2,
    )
    assert written.report.message == "killed"
    assert written.answer.call_id == "c-1"
    bare = translate.write_feedback(model.Feedback(1, 2, "s", model.FeedbackKind.SESSION, "m"))
    assert not bare.HasField("report") and not bare.HasField("answer")
