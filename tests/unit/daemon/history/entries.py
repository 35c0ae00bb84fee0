"""Ended calls for the history's tests, and what makes stores of them."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from agentcgroup.daemon.history import HistoryStore
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

# Where `from tests...` is imported from, for programs of their own.
ROOT = Path(__file__).parents[4]

DAY_NS = 86_400 * 10**9
NOW_NS = 1_795_000_000 * 10**9

Make = Callable[..., HistoryStore]


def entry(number: int, session: str = "alpha", **changes: object) -> HistoryEntry:
    report = Report(
        call_id=f"c{number}",
        session=session,
        verdict=Verdict.OK,
        exit_status=ExitStatus(exit_code=0),
        usage=Usage(memory_peak_bytes=number << 20, cpu_usage_us=1000),
        started_at_ns=NOW_NS - 5_000_000,
        ended_at_ns=NOW_NS + number,
        duration_ms=5,
        leftover_processes=0,
        message="ended well",
        advice="",
    )
    return HistoryEntry(
        report=dataclasses.replace(report, **changes),  # type: ignore[arg-type]
        intent=Intent(memory_bytes=1 << 30, command=("pytest", "-q")),
        limits=CallLimits(memory_bytes=1 << 30, memory_max_bytes=2 << 30),
        decision=Decision.GRANTED,
        parent_call_id="",
    )


def ids(entries: list[HistoryEntry]) -> list[str]:
    return [item.report.call_id for item in entries]
