"""The invariants as the kernel's own files tell them. Without a memory controller there are none, and nothing to compare."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Final

from agentcgroup.client.values import Budget, Call, CallState, Event
from agentcgroup.proto.words import Action, Actor, Verdict

# What the kernel charges beyond a limit: what it may not refuse (mm/memcontrol.c, try_charge_memcg).
_FORCED_BYTES: Final = 2 << 20
_BY_LIMIT: Final = {
    Verdict.MEMORY_LIMIT_CALL,
    Verdict.MEMORY_LIMIT_SESSION,
    Verdict.MEMORY_LIMIT_HOST,
}
# Ends by the daemon: the verdict is the reason of the kill.
_BY_DAEMON: Final = {
    Verdict.DEADLINE,
    Verdict.THROTTLE_LIMIT,
    Verdict.OPERATOR,
    Verdict.SESSION_END,
    Verdict.PARENT_END,
    Verdict.PROTECTION,
}


def limit(cgroup: Path, name: str = "memory.max") -> int | None:
    """None: it has no such file, or no limit."""
    try:
        told = (cgroup / name).read_text().strip()
    except OSError:
        return None
    return None if told == "max" else int(told)


def counts(cgroup: Path, name: str = "memory.events") -> dict[str, int]:
    """A file of names and numbers; empty when there is none."""
    try:
        lines = (cgroup / name).read_text().splitlines()
    except OSError:
        return {}
    return {key: int(value) for key, _, value in (line.partition(" ") for line in lines)}


def is_within(cgroup: Path, most_bytes: int) -> None:
    """Neither now nor at any time was more in use than `most_bytes`."""
    for name in ("memory.current", "memory.peak"):
        used = limit(cgroup, name)
        assert used is None or used <= most_bytes + _FORCED_BYTES, (
            f"{cgroup.name}: {name} is {used} of {most_bytes}"
        )


def budget_holds(session: Path, budget: Budget, most_bytes: int) -> None:
    """The budget stands in the files, and no more was ever in use than the largest there was, `most_bytes`."""
    maximum = limit(session)
    if maximum is None:
        return
    assert budget.memory_max_bytes is not None and budget.agent_memory_bytes is not None
    calls = limit(session / "calls")
    assert maximum == budget.memory_max_bytes, f"{maximum} is not {budget}"
    assert calls == budget.memory_max_bytes - budget.agent_memory_bytes, f"{calls} is not {budget}"
    is_within(session, most_bytes)


def agent_is_spared(session: Path) -> None:
    """Whatever ran out of memory, the agent runtime's leaf was never chosen."""
    told = counts(session / "agent")
    assert not told.get("oom_kill"), f"the kernel killed in the agent's leaf: {told}"


def stands_still(mount: Path, call: Call) -> bool | None:
    """Whether the kernel holds the call's own cgroup frozen; None: it is gone."""
    try:
        return (mount / call.cgroup.lstrip("/") / "cgroup.freeze").read_text().strip() == "1"
    except OSError:
        return None


def freezing_agrees(mount: Path, calls: Collection[Call]) -> list[str]:
    """Calls that the daemon says are frozen and the kernel says are not, or the other way round."""
    found = []
    for call in calls:
        if call.state in (CallState.RUNNING, CallState.FROZEN):
            frozen = stands_still(mount, call)
            if frozen is not None and frozen is not (call.state is CallState.FROZEN):
                found.append(call.id)
    return found


def ends_are_true(stories: Mapping[str, Sequence[Event]], outermost: Collection[str]) -> None:
    """Each verdict follows from what the kernel counted in the call and from who killed it, as the log has both."""
    for call_id, story in stories.items():
        kills = [event.words.get("kill_reason", "") for event in story if event.action == Action.KILLED]
        (end,) = [event for event in story if event.action == Action.ENDED]
        verdict, told = end.words["verdict"], (call_id, end.words, end.numbers, kills)
        killed, own = end.numbers.get("call_oom_kill", 0), end.numbers.get("call_oom_local", 0)
        assert len(kills) <= 1 and (not kills or kills == [end.words.get("kill_reason")]), told
        if verdict in _BY_LIMIT:
            assert killed > 0 and kills in ([], ["finished"]), told
        if verdict == Verdict.MEMORY_LIMIT_CALL:
            assert own > 0, told
        if verdict in _BY_DAEMON:
            # What is nested goes with the kill of the call around it.
            assert kills == [verdict] or (not kills and call_id not in outermost), told
        if verdict == Verdict.THROTTLE_LIMIT:
            assert {Action.THROTTLED, Action.CLAMPED} & {event.action for event in story}, told


def rungs(story: Sequence[Event]) -> list[str]:
    """What the policies did to a call, in order; what an operator did is not theirs."""
    done = {Action.WARNED, Action.EXTENDED, Action.THROTTLED, Action.CLAMPED, Action.SLOWED, Action.FROZEN}
    return [event.action for event in story if event.actor == Actor.POLICY and event.action in done]


def oom_kills(story: Sequence[Event]) -> int:
    """Processes of the call that the kernel killed for memory, by the call's report."""
    return sum(event.numbers.get("call_oom_kill", 0) for event in story if event.action == Action.ENDED)
