"""A HistoryEntry as a row and back: what later queries ask for in columns, the rest as JSON."""

import dataclasses
from typing import Any, Final

import msgspec

from agentcgroup.daemon.model import (
    CallLimits,
    Decision,
    ExitStatus,
    HistoryEntry,
    Intent,
    Report,
    Usage,
    Verdict,
)
from agentcgroup.daemon.policy.commands import command_class

# Columns in the order of `encode`, without the row's own id.
COLUMNS: Final = (
    *("call_id", "session", "parent_call_id", "verdict", "decision", "exit_code", "signal"),
    *("started_at_ns", "ended_at_ns", "duration_ms", "memory_peak_bytes", "cpu_usage_us"),
    *("leftover_processes", "cpu_class", "command_class", "message", "advice", "usage", "intent", "limits"),
    *("project", "memory_samples"),
)

# SQLite integers are signed 64 bit (https://www.sqlite.org/datatype3.html).
_INT64_MAX: Final = (1 << 63) - 1

Samples = tuple[tuple[int, int], ...]
Row = tuple[int | str | None, ...]


class BadRow(Exception):
    """No entry can be made of this row; the message says what is wrong with it."""


def encode(entry: HistoryEntry) -> Row:
    """`entry` as values for COLUMNS. Raises ValueError when no row can be made of it."""
    try:
        return _row(entry)
    except UnicodeEncodeError:
        # A command line may hold bytes that are no UTF-8, which Python carries as lone surrogates.
        return _row(_printable(entry))


def decode(row: Row) -> HistoryEntry:
    """The entry that `encode` made `row` of. Raises BadRow."""
    column: dict[str, Any] = dict(zip(COLUMNS, row, strict=True))
    try:
        report = Report(
            call_id=column["call_id"],
            session=column["session"],
            verdict=Verdict(column["verdict"]),
            exit_status=ExitStatus(column["exit_code"], column["signal"]),
            usage=msgspec.json.decode(column["usage"], type=Usage),
            started_at_ns=column["started_at_ns"],
            ended_at_ns=column["ended_at_ns"],
            duration_ms=column["duration_ms"],
            leftover_processes=column["leftover_processes"],
            message=column["message"],
            advice=column["advice"],
        )
        return HistoryEntry(
            report=report,
            intent=msgspec.json.decode(column["intent"], type=Intent),
            limits=None
            if column["limits"] is None
            else msgspec.json.decode(column["limits"], type=CallLimits),
            decision=Decision(column["decision"]),
            parent_call_id=column["parent_call_id"],
            project=column["project"],
            memory_samples=msgspec.json.decode(column["memory_samples"], type=Samples)
            if column["memory_samples"]
            else (),
        )
    except (ValueError, TypeError, msgspec.MsgspecError) as error:
        raise BadRow(f"call {column['call_id']}: {error}") from error


def _row(entry: HistoryEntry) -> Row:
    report, intent = entry.report, entry.intent
    row: Row = (
        report.call_id,
        report.session,
        entry.parent_call_id,
        report.verdict.value,
        entry.decision.value,
        report.exit_status.exit_code,
        report.exit_status.signal,
        report.started_at_ns,
        report.ended_at_ns,
        report.duration_ms,
        _int64(report.usage.memory_peak_bytes),
        _int64(report.usage.cpu_usage_us),
        report.leftover_processes,
        None if intent.cpu_class is None else intent.cpu_class.value,
        command_class(intent.command),
        report.message,
        report.advice,
        _json(report.usage),
        _json(intent),
        None if entry.limits is None else _json(entry.limits),
        entry.project,
        msgspec.json.encode(entry.memory_samples).decode() if entry.memory_samples else None,
    )
    return checked(row)


def checked(row: Row) -> Row:
    """`row`, when SQLite will take it: it would refuse a whole batch for one value. Raises ValueError."""
    for value in row:
        if isinstance(value, str):
            value.encode()
        elif value is not None and abs(value) > _INT64_MAX:
            raise ValueError(f"{value} does not fit 64 bits")
    return row


def _int64(value: int | None) -> int | None:
    return None if value is None else min(value, _INT64_MAX)


def _json(value: Usage | Intent | CallLimits) -> str:
    return msgspec.json.encode(value).decode()


def clean(text: str) -> str:
    """`text` as UTF-8, what is none written with backslashes."""
    return text.encode("utf-8", "backslashreplace").decode()


def _printable(entry: HistoryEntry) -> HistoryEntry:
    report, intent = entry.report, entry.intent
    return dataclasses.replace(
        entry,
        report=dataclasses.replace(
            report,
            call_id=clean(report.call_id),
            session=clean(report.session),
            message=clean(report.message),
            advice=clean(report.advice),
        ),
        intent=dataclasses.replace(
            intent,
            command=tuple(clean(word) for word in intent.command),
            labels=tuple((clean(key), clean(value)) for key, value in intent.labels),
        ),
        parent_call_id=clean(entry.parent_call_id),
        project=clean(entry.project),
    )
