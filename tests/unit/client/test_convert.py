"""Protobuf to values and back: nothing is lost, nothing is mixed up, absent is None."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, is_dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import pytest
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given, strategies as st

from agentcgroup.client import convert, values
from agentcgroup.client.errors import IncompatibleDaemon
from agentcgroup.proto.v1 import agent_pb2, operator_pb2, types_pb2 as pb
from tests.unit.client.messages import filled

READERS: list[tuple[type[Message], Callable[[Any], Any]]] = [
    (pb.Intent, convert.intent),
    (pb.Limits, convert.limits),
    (pb.Usage, convert.usage),
    (pb.Budget, convert.budget),
    (pb.Answer, convert.answer),
    (pb.Report, convert.report),
    (pb.Call, convert.call),
    (pb.Session, convert.session),
    (pb.Feedback, convert.feedback),
    (pb.Suggestion, convert.suggestion),
    (pb.Event, convert.event),
    (pb.Story, convert.story),
    (agent_pb2.GetLimitsResponse, convert.session_limits),
    (operator_pb2.GetHostResponse, convert.host),
    (operator_pb2.HistoryEntry, convert.history_entry),
    (operator_pb2.ConfigurationChange, convert.configuration_change),
]


def _same(value: Any, sent: Any, path: str) -> None:
    """Fails unless the value has every field of the message, equal, all the way down."""
    if isinstance(sent, Timestamp):
        assert value == sent.ToDatetime(tzinfo=UTC), path
    elif isinstance(sent, Message):
        names = {field.name for field in sent.DESCRIPTOR.fields}
        assert is_dataclass(value), path
        assert {field.name for field in fields(value)} == names, path
        for field in sent.DESCRIPTOR.fields:
            got, expected = getattr(value, field.name), getattr(sent, field.name)
            if isinstance(got, StrEnum):
                assert field.enum_type is not None
                assert field.enum_type.values_by_number[expected].name.endswith(f"_{got.name}"), path
            else:
                _same(got, expected, f"{path}.{field.name}")
    elif isinstance(value, Mapping):
        assert dict(value) == dict(sent), path
    elif isinstance(value, tuple):
        assert len(value) == len(sent), path
        for index, (got, expected) in enumerate(zip(value, sent, strict=True)):
            _same(got, expected, f"{path}[{index}]")
    else:
        assert value == sent, path


@pytest.mark.parametrize(("kind", "read"), READERS, ids=[kind.DESCRIPTOR.name for kind, _ in READERS])
def test_every_field_of_a_message_is_in_its_value(kind: type[Message], read: Callable[[Any], Any]) -> None:
    message = filled(kind)
    _same(read(message), message, kind.DESCRIPTOR.name)


def test_what_was_not_sent_is_none_and_not_zero() -> None:
    assert set(asdict(convert.usage(pb.Usage())).values()) == {None}
    assert convert.usage(pb.Usage(memory_peak_bytes=0)).memory_peak_bytes == 0
    report = convert.report(pb.Report(verdict=pb.VERDICT_OK))
    assert (report.exit_code, report.signal, report.started_at) == (None, None, None)
    assert convert.call(pb.Call(state=pb.CALL_STATE_RUNNING)).report is None
    assert convert.intent(pb.Intent()) == values.Intent()


def test_every_member_has_a_number_and_every_number_a_member() -> None:
    for kind, (wrapper, _) in convert._WIRE.items():
        numbers = {convert.number(member) for member in kind}
        assert numbers == {number for number in wrapper.values() if number}, kind
    assert convert.number(None) == 0


def test_numbers_of_a_newer_daemon_are_unknown_where_that_makes_sense_and_an_error_where_not() -> None:
    assert convert.report(pb.Report(verdict=99)).verdict is values.Verdict.UNKNOWN  # type: ignore[arg-type]
    assert convert.feedback(pb.Feedback(kind=99)).kind is None  # type: ignore[arg-type]
    with pytest.raises(IncompatibleDaemon, match="Decision 99.*same release"):
        convert.answer(pb.Answer(decision=99))  # type: ignore[arg-type]


_numbers = st.none() | st.integers(0, 2**32 - 1)
_texts = st.text(st.characters(codec="utf-8"), max_size=20)


@given(
    st.builds(
        values.Intent,
        memory_bytes=_numbers,
        memory_max_bytes=_numbers,
        cpu_milli=_numbers,
        cpu_weight=_numbers,
        cpu_class=st.none() | st.sampled_from(values.CpuClass),
        pids_max=_numbers,
        expected_duration_ms=_numbers,
        deadline_ms=_numbers,
        on_exceed=st.none() | st.sampled_from(values.OnExceed),
        throttle_limit_ms=_numbers,
        command=st.lists(_texts, max_size=3).map(tuple),
        labels=st.dictionaries(_texts, _texts, max_size=3),
    )
)
def test_an_intent_comes_back_as_it_was(intent: values.Intent) -> None:
    sent = convert.intent_message(intent).SerializeToString()
    assert convert.intent(pb.Intent.FromString(sent)) == intent


@given(st.builds(values.Budget, **dict.fromkeys((each.name for each in fields(values.Budget)), _numbers)))
def test_a_budget_comes_back_as_it_was(budget: values.Budget) -> None:
    sent = convert.budget_message(budget).SerializeToString()
    assert convert.budget(pb.Budget.FromString(sent)) == budget


def test_a_process_is_named_with_what_is_known_of_it() -> None:
    assert convert.process_message(values.ProcessRef(7)) == pb.ProcessRef(pid=7)
    full = convert.process_message(values.ProcessRef(7, 8, 9))
    assert full == pb.ProcessRef(pid=7, pidfd_inode=8, start_time_ticks=9)


def test_times_are_aware_and_in_utc() -> None:
    stamp = Timestamp(seconds=1_800_000_000)
    assert convert.report(pb.Report(ended_at=stamp)).ended_at == datetime(2027, 1, 15, 8, 0, tzinfo=UTC)
