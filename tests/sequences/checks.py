"""The invariants of the design, on what the daemon says and on what the kernel has."""

import subprocess
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from agentcgroup.client.values import Budget, Call, CallState, Event, Feedback, FeedbackKind, Report, Session

# What running calls demonstrably do not use is lent, up to this; the default of host.oversubscription.
OVERSUBSCRIPTION: Final = 1.5

# On a machine that is busy with something else.
_MOST_LATE_S: Final = 30.0

# The first word about a call, and the last: one that never began gives its grant or its place back, or is refused.
_FIRST: Final = {"granted", "trimmed", "queued"}
_UNBEGUN: Final = {"lapsed", "refused"}


def calls_fit(calls: Collection[Call], budget: Budget) -> None:
    """What a session's live calls were granted is within its budget, and within the call around them."""
    held = [call for call in calls if call.state is not CallState.QUEUED]
    assert budget.memory_max_bytes is not None and budget.agent_memory_bytes is not None
    calls_bytes = budget.memory_max_bytes - budget.agent_memory_bytes
    inside: Counter[str] = Counter()
    for call in held:
        assert call.limits.memory_bytes is not None
        inside[call.parent_call_id] += call.limits.memory_bytes
        maximum = call.limits.memory_max_bytes
        assert maximum is None or call.limits.memory_bytes <= maximum <= calls_bytes, call
    assert inside[""] <= OVERSUBSCRIPTION * calls_bytes, (
        f"{inside['']} bytes were granted of {calls_bytes}: {calls}"
    )
    for call in held:
        maximum = call.limits.memory_max_bytes or calls_bytes
        assert inside[call.id] <= maximum, f"calls inside {call.id} were granted {inside[call.id]}"
    assert budget.calls_max is None or len(held) <= budget.calls_max
    waiting = sorted(call.queue.position for call in calls if call.queue is not None)
    assert len(set(waiting)) == len(waiting) and all(place >= 1 for place in waiting), waiting


def sessions_fit(sessions: Iterable[Session], capacity_bytes: int) -> None:
    """What was granted on the host, and what agents were promised, is within what there is."""
    agents = reserved = 0
    for session in sessions:
        agents += session.budget.agent_memory_bytes or 0
        reserved += session.memory_reserved_bytes
        assert (session.budget.memory_max_bytes or 0) <= capacity_bytes
    assert agents <= capacity_bytes
    assert agents + reserved <= OVERSUBSCRIPTION * capacity_bytes, (
        f"{agents} + {reserved} were granted of {capacity_bytes}"
    )


def files_agree(mount: Path, calls: Iterable[Call]) -> None:
    """The kernel holds running calls to what they were answered; without controllers there is nothing to compare."""
    for call in calls:
        if call.state not in (CallState.RUNNING, CallState.FROZEN):
            continue
        try:
            told = (mount / call.cgroup.lstrip("/") / "memory.max").read_text().strip()
        except OSError:
            continue  # it has ended since, or there is no memory controller
        expected = call.limits.memory_max_bytes
        assert told == ("max" if expected is None else str(expected)), f"{call.id}: {told} is not {expected}"


def none_is_stuck(calls: Iterable[Call]) -> None:
    """Whoever stands on a rung leaves it by its deadline; while it is frozen for another cause that waits, too."""
    now = datetime.now(UTC)
    for call in calls:
        if call.ladder is None or call.ladder.deadline_at is None or call.state is not CallState.RUNNING:
            continue
        late_s = (now - call.ladder.deadline_at).total_seconds()
        assert late_s < _MOST_LATE_S, f"{late_s:g} s after its deadline: {call}"


def lives_in(agent: "subprocess.Popen[bytes]", leaf: str) -> None:
    """The agent runtime outlives its tools, and stays where nothing but an operator can end it."""
    assert agent.poll() is None, "the agent runtime is dead"
    where = Path(f"/proc/{agent.pid}/cgroup").read_text()
    assert f"0::{leaf}\n" in where, f"the agent runtime is not in its leaf: {where}"


def stream_is_whole(heard: Sequence[Feedback]) -> tuple[set[str], list[Report]]:
    """Each call that started on the stream ended on it, once and later; the calls that began, and the reports."""
    began: list[str] = []
    reports: list[Report] = []
    for message in heard:
        if message.kind is FeedbackKind.STARTED:
            began.append(message.call_id)
        elif message.kind is FeedbackKind.ENDED:
            assert message.call_id in began, f"{message.call_id} ended and never began"
            assert message.report is not None and message.report.message
            reports.append(message.report)
    ended = sorted(report.call_id for report in reports)
    assert sorted(began) == ended, f"of the calls {sorted(began)} there are reports of {ended}"
    assert len(set(ended)) == len(ended), f"more than one report: {ended}"
    return set(began), reports


def stories(events: Iterable[Event], begun: Collection[str]) -> dict[str, list[Event]]:
    """The decisions about each call that began. `events` oldest first."""
    found: dict[str, list[Event]] = {call_id: [] for call_id in begun}
    for event in events:
        if event.call_id in found:
            found[event.call_id].append(event)
    return found


def stories_are_whole(events: Iterable[Event], begun: Collection[str]) -> None:
    """The log tells each call from its answer to its end. `events` oldest first."""
    stories: defaultdict[str, list[str]] = defaultdict(list)
    for event in events:
        assert event.reason, event
        if event.call_id:
            stories[event.call_id].append(event.action)
    assert set(begun) <= set(stories), f"of {set(begun) - set(stories)} the log knows nothing"
    for call_id, actions in stories.items():
        assert actions[0] in _FIRST and "queued" not in actions[1:], f"{call_id}: {actions}"
        if call_id in begun:
            assert actions.count("begun") == 1 and actions.count("ended") == 1, f"{call_id}: {actions}"
            assert actions[-1] == "ended" and not _UNBEGUN & {"lapsed"} & set(actions), (
                f"{call_id}: {actions}"
            )
        else:
            assert actions[-1] in _UNBEGUN and "begun" not in actions, f"{call_id}: {actions}"
