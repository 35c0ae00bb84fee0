"""Calls that are refused processes, as their agent meets it: on the stream, at the end, on standard error, in the log."""

import os
import signal
from typing import Any

import pytest

from agentcgroup.daemon.controller import process_limits
from agentcgroup.daemon.model import Action, ExitStatus, Refusals
from agentcgroup.proto.v1 import agent_pb2 as pb, types_pb2 as t
from agentcgroup.proto.words import Limit
from tests.integration.harness import MIB, Daemon, until
from tests.integration.test_ladder import begin, decisions, hello

# So long that no machine is too slow for what a test says of it.
NEVER_MS = 3_600_000


@pytest.fixture
async def web(daemon: Daemon) -> Daemon:
    await daemon.open("web", memory=1256 * MIB)
    return daemon


async def ended(daemon: Daemon, call_id: str, stream: Any, exit_code: int) -> t.Feedback:
    """The main process ends so; the message about it."""
    pid = daemon.controller.call("web", call_id).pid
    daemon.host.statuses[pid] = ExitStatus(exit_code=exit_code)
    os.kill(pid, signal.SIGKILL)
    found: t.Feedback = await stream.until(t.FEEDBACK_KIND_ENDED)
    return found


async def test_a_call_hears_while_it_runs_and_at_its_end_that_it_was_refused_processes(
    web: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_limits, "QUIET_MS", NEVER_MS)
    stream = await hello(web)
    call_id = await begin(web, pids_max=20)
    web.host.refuse(call_id, 2)
    warning = await stream.until(t.FEEDBACK_KIND_WARNING)
    assert warning.call_id == call_id and warning.level == t.LEVEL_CRITICAL
    assert "a new process 2 times: it may have 20 processes" in warning.message
    assert f"agentcg call set {call_id} --pids 40" in warning.advice and "make -jN" in warning.advice
    assert warning.limits.pids_max == 20 and warning.usage.pids_max_events == 2
    (event,) = [each for each in web.history.noted if each.action is Action.WARNED]
    assert event.call_id == call_id and dict(event.inputs) == {"pids_max_events": 2, "pids_max": 20}
    web.host.refuse(call_id, 3)
    end = await ended(web, call_id, stream, 0)
    assert end.report.verdict == t.VERDICT_OK and end.level == t.LEVEL_TIGHT
    assert "refused it a new process 5 times" in end.message and "--pids 40" in end.advice
    assert web.host.last_words[call_id].startswith(f"agentcg: call {call_id}: Ended well")
    assert decisions(web, call_id).count(Action.WARNED) == 1, "the same is not said twice within seconds"
    assert web.controller.counters.warnings[Limit.CALL_PROCESSES] == 1


@pytest.mark.parametrize(("pause_ms", "is_heard"), [(NEVER_MS, False), (1, True)])
async def test_what_is_refused_too_often_to_be_news_is_not_listened_to_for_a_moment(
    web: Daemon, monkeypatch: pytest.MonkeyPatch, pause_ms: int, is_heard: bool
) -> None:
    monkeypatch.setattr(process_limits, "_PAUSE_MS", pause_ms)
    stream = await hello(web)
    call_id = await begin(web, pids_max=20)
    assert "web" in web.host.refusals_heard
    web.host.refuse(call_id)
    await stream.until(t.FEEDBACK_KIND_WARNING)
    await until(lambda: ("web" in web.host.refusals_heard) is is_heard)


async def test_at_the_sessions_limit_the_agent_hears_of_it_and_failed_calls_say_so(web: Daemon) -> None:
    stream = await hello(web)
    calls = [await begin(web), await begin(web)]
    web.host.refuse(calls[0], 4, at_session=True)
    warning = await stream.until(t.FEEDBACK_KIND_WARNING)
    assert not warning.call_id and "processes of this session a new one 4 times" in warning.message
    assert "agentcg call tree" in warning.advice
    assert web.controller.counters.warnings[Limit.SESSION_PROCESSES] == 1
    end = await ended(web, calls[1], stream, 1)
    assert "4 times at the limit of 4096 processes and threads of the whole session" in end.message
    assert calls[1] in web.host.last_words and "no limit was involved" not in end.message


async def test_a_failed_call_is_not_reported_before_news_of_refusals_has_come(web: Daemon) -> None:
    stream = await hello(web)
    call_id = await begin(web)
    # The kernel tells of it later than of the end.
    web.host.refused["web"] = Refusals(1)
    end = await ended(web, call_id, stream, 1)
    assert "once at the limit of 4096" in end.message


async def test_while_nothing_is_refused_nobody_looks(web: Daemon) -> None:
    stream = await hello(web)
    for _ in range(2):
        end = await ended(web, await begin(web), stream, 0)
        assert end.level == t.LEVEL_AMPLE and not end.advice
    assert not web.host.done["refusals"]


async def test_what_a_call_is_refused_the_calls_nested_in_it_know(web: Daemon) -> None:
    stream = await hello(web)
    outer = await begin(web, pids_max=20)
    pid = web.process("web")
    web.host.calls[outer].pids.add(pid)
    request = pb.BeginCallRequest(
        intent=t.Intent(command=["cc"]), parent_call_id=outer, process=t.ProcessRef(pid=pid)
    )
    inner = (await web.agent("web").BeginCall(request)).call.id
    await until(lambda: web.host.calls[inner].is_watched)
    web.host.refuse(outer, 2)
    await stream.until(t.FEEDBACK_KIND_WARNING)
    end = await ended(web, inner, stream, 1)
    assert f"2 times at the limit of 20 processes and threads of the call around it, {outer}" in end.message
