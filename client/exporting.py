"""A recording made of the history: what is known of ended calls, and no more than that."""

from collections.abc import Iterable, Mapping
from dataclasses import fields

from agentcgroup.client.operator_client import OperatorClient
from agentcgroup.client.recordings import Call, Curve, Recording, Session, Source, peak_curve
from agentcgroup.client.values import HistoryEntry, Intent

# Decisions in which the opening of a session is looked for.
_OPENINGS_MAX = 1000


def priorities(client: OperatorClient, sessions: Iterable[str]) -> dict[str, str]:
    """The priority with which each session was opened last, as far as the event log still knows."""
    found: dict[str, str] = {}
    for session in sessions:
        for event in client.events(session, limit=_OPENINGS_MAX):
            if event.action == "opened" and "priority" in event.words:
                found.setdefault(session, event.words["priority"])
    return found


def recording_of(
    entries: Iterable[HistoryEntry], priority_of: Mapping[str, str], note: str = ""
) -> Recording:
    """`entries`, in any order, as a recording that begins with the first call.

    Calls inside another one of them are left out: what they took is in its counters, and would be played twice.
    """
    begun = [each for each in entries if each.report.started_at is not None]
    ids = {each.report.call_id for each in begun}
    begun = [each for each in begun if each.parent_call_id not in ids]
    starts = [
        each.report.started_at.timestamp() * 1000 for each in begun if each.report.started_at is not None
    ]
    origin_ms = min(starts, default=0.0)
    calls = [
        _call(each, round(start_ms - origin_ms, 3)) for each, start_ms in zip(begun, starts, strict=True)
    ]
    projects = {each.report.session: each.project for each in begun}
    sessions = tuple(
        Session(name, priority_of.get(name, "normal"), project) for name, project in sorted(projects.items())
    )
    return Recording(sessions, tuple(calls), note)


def _call(entry: HistoryEntry, start_ms: float) -> Call:
    report, peak_bytes = entry.report, entry.report.usage.memory_peak_bytes
    return Call(
        call=report.call_id,
        session=report.session,
        start_ms=start_ms,
        duration_ms=report.duration_ms,
        command_class=entry.command_class,
        verdict=report.verdict,
        memory=_curve(entry, peak_bytes),
        memory_peak_bytes=peak_bytes,
        cpu_usage_us=report.usage.cpu_usage_us,
        intent=_declared(entry.intent),
    )


def _curve(entry: HistoryEntry, peak_bytes: int | None) -> Curve:
    samples = entry.memory_samples
    if not samples:
        return Curve() if peak_bytes is None else peak_curve(peak_bytes, entry.report.duration_ms)
    sizes = [each.memory_bytes for each in samples]
    if peak_bytes is not None:
        # The kernel saw every moment, the samples one a second: the highest of them stands for the peak.
        sizes[sizes.index(max(sizes))] = max(peak_bytes, *sizes)
    return Curve(Source.SAMPLED, tuple(float(each.offset_ms) for each in samples), tuple(sizes))


def _declared(intent: Intent) -> dict[str, int | str]:
    """What was declared; the command line and labels are nobody's business."""
    return {
        each.name: value
        for each in fields(intent)
        if each.name not in ("command", "labels") and (value := getattr(intent, each.name)) is not None
    }
