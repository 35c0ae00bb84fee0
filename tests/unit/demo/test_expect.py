"""Expectations: all hold for a run in which everything happened, and each one notices what it is there for."""

from collections.abc import Callable

import msgspec
import pytest

from agentcgroup.client import Verdict
from demo import expect
from demo.records import Remains, Run
from demo.story import MIB, StepName
from tests.unit.demo.runs import good_run, with_end, with_step

Spoil = Callable[[Run], Run]


def failing(run: Run) -> list[str]:
    return [verdict.sentence for verdict in expect.judge(run) if not verdict.holds]


def test_all_hold_when_everything_happened() -> None:
    verdicts = expect.judge(good_run())

    assert [verdict.sentence for verdict in verdicts if not verdict.holds] == []
    assert len(verdicts) == len(expect.EXPECTATIONS) > 20
    assert all(verdict.sentence.endswith(".") and verdict.seen for verdict in verdicts)


def test_none_but_the_clean_end_holds_when_nothing_happened() -> None:
    run = good_run()
    bare = [
        msgspec.structs.replace(agent, exit_status=None, transcript=type(agent.transcript)())
        for agent in run.agents
    ]
    nothing = msgspec.structs.replace(run, agents=tuple(bare), history=(), metrics={})

    holding = [verdict.sentence for verdict in expect.judge(nothing) if verdict.holds]

    assert holding == ["No session, no cgroup and no process is left."]


def _exit(run: Run) -> Run:
    first, *others = run.agents
    return msgspec.structs.replace(run, agents=(msgspec.structs.replace(first, exit_status=1), *others))


def _lose_call(run: Run) -> Run:
    return msgspec.structs.replace(run, history=run.history[1:])


def _lose_nested(run: Run) -> Run:
    return msgspec.structs.replace(run, history=run.history[:-1])


def _leave(run: Run) -> Run:
    return msgspec.structs.replace(run, remains=Remains((), ("builder/calls",), ()))


def _change(name: StepName, **fields: object) -> Spoil:
    return lambda run: with_step(run, name, **fields)


def _end(agent: str, **fields: object) -> Spoil:
    return lambda run: with_end(run, agent, **fields)


SPOILT: list[tuple[str, Spoil]] = [
    ("Every agent runtime", _exit),
    ("Every call of the high-priority agent", _change(StepName.BUILD, verdict=Verdict.EXIT_CODE)),
    ("Every call of the high-priority agent", _change(StepName.BUILD, decision="refused")),
    ("The peaks of the three sessions", _end("builder", memory_peak_bytes=40 * MIB)),
    ("The peaks of the three sessions", _end("builder", memory_peak_bytes=None)),
    ("The call that declared too little", _change(StepName.INSTALL, verdict=Verdict.MEMORY_LIMIT_HOST)),
    ("It was stopped at its own limit", _change(StepName.LOAD_TOO_LITTLE, memory_peak_bytes=100 * MIB)),
    ("It was stopped at its own limit", _change(StepName.LOAD_TOO_LITTLE, memory_peak_bytes=None)),
    ("Its agent read the advice", _change(StepName.LOAD, declared={"memory": "400M"})),
    ("What it asked beyond", _change(StepName.LOAD, decision="granted")),
    ("What it asked beyond", _change(StepName.LOAD, suggestion="")),
    ("With the memory advised", _change(StepName.LOAD, memory_peak_bytes=150 * MIB)),
    ("Doing less", _end("analyst", findings={"advised_memory": "384M", "loaded": "a", "streamed": "b"})),
    ("An intent for more than the host", _change(StepName.TESTS_REFUSED, reason="session_memory")),
    ("Its agent followed", _change(StepName.TESTS, declared={"memory": "65M"})),
    ("The test suite", _change(StepName.TESTS, output_tail="1 failed, 890 passed in 30 s")),
    ("A server left in the background", _change(StepName.SERVE, leftover_processes=0)),
    ("The call that forked without end", _change(StepName.FORK_WITHOUT_END, pids_peak=25)),
    ("With few workers", _change(StepName.FORK_FEW, verdict=Verdict.PIDS_LIMIT)),
    ("The call that slept", _change(StepName.WAIT, verdict=Verdict.OK)),
    ("Its agent did less per call", _change(StepName.LOOK, because_of="")),
    ("No message was lost", _end("tester", messages_lost=2)),
    ("The metrics count", lambda run: msgspec.structs.replace(run, metrics={})),
    ("No session", _leave),
]


@pytest.mark.parametrize(("sentence", "spoil"), SPOILT)
def test_each_notices_what_it_is_there_for(sentence: str, spoil: Spoil) -> None:
    found = failing(spoil(good_run()))

    assert len(found) == 1
    assert found[0].startswith(sentence)


def test_a_call_that_the_daemon_forgot_is_noticed() -> None:
    assert "Agents' streams and the daemon's history tell the same of every call." in failing(
        _lose_call(good_run())
    )


def test_a_nested_call_that_is_missing_is_noticed() -> None:
    assert "The sub-agent's two calls ran nested in its own." in failing(_lose_nested(good_run()))


def test_what_was_seen_names_the_figures() -> None:
    run = with_step(good_run(), StepName.LOAD_TOO_LITTLE, memory_peak_bytes=100 * MIB)

    seen = next(verdict.seen for verdict in expect.judge(run) if not verdict.holds)

    assert "100 MiB" in seen
    assert "memory_limit_call" in seen
