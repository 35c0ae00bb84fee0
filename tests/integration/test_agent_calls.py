"""The agent's socket: a tool call from its declaration to its report, over real gRPC."""

import asyncio

import grpc
import pytest

from agentcgroup.daemon.errors import Kind, RequestError
from agentcgroup.daemon.model import ExitStatus, OomCounters, Usage
from agentcgroup.proto.launch import Request, Status
from agentcgroup.proto.v1 import agent_pb2 as pb, types_pb2 as t
from tests.integration.harness import DEADLINE_S, GIB, MIB, Daemon, refusal, until


async def begin_nested(daemon: Daemon) -> tuple[str, str, int]:
    """A call of session web and one that is nested in it: their ids, and the pid of the inner one."""
    agent = daemon.agent("web")
    outer_pid, inner_pid = daemon.process("web"), daemon.process("web")
    begin = pb.BeginCallRequest(intent=t.Intent(memory_bytes=GIB), process=t.ProcessRef(pid=outer_pid))
    outer = (await agent.BeginCall(begin)).call.id
    daemon.host.calls[outer].pids.add(inner_pid)
    begin = pb.BeginCallRequest(
        intent=t.Intent(memory_bytes=MIB), process=t.ProcessRef(pid=inner_pid), parent_call_id=outer
    )
    inner = (await agent.BeginCall(begin)).call.id
    return outer, inner, inner_pid


async def test_an_agent_sees_the_true_limits_of_its_session(daemon: Daemon) -> None:
    await daemon.open("web", cpu_milli=1500)
    daemon.host.not_enforced = ("pids_max: no pids controller",)
    limits = await daemon.agent("web").GetLimits(pb.GetLimitsRequest())
    assert limits.session == "web"
    assert limits.budget.memory_max_bytes == 4 * GIB
    assert limits.memory_available_bytes == 4 * GIB - 256 * MIB
    assert limits.cpu_available_milli == 1500
    assert limits.level == t.LEVEL_AMPLE
    assert limits.usage.pids_current == 1
    assert not limits.usage.HasField("memory_peak_bytes")
    assert list(limits.not_enforced) == ["pids_max: no pids controller"]


async def test_in_a_call_the_true_limits_are_those_of_the_call(daemon: Daemon) -> None:
    await daemon.open("web", cpu_milli=1500)
    agent = daemon.agent("web")
    intent = t.Intent(memory_bytes=MIB, memory_max_bytes=200 * MIB, cpu_milli=500, pids_max=7)
    begin = pb.BeginCallRequest(intent=intent, process=t.ProcessRef(pid=daemon.process("web")))
    outer = (await agent.BeginCall(begin)).call.id
    inside = t.ProcessRef(pid=daemon.process("web"))
    daemon.host.calls[outer].pids.add(inside.pid)
    begin = pb.BeginCallRequest(intent=t.Intent(memory_bytes=50 * MIB), process=inside, parent_call_id=outer)
    inner = (await agent.BeginCall(begin)).call.id

    limits = await agent.GetLimits(pb.GetLimitsRequest(call_id=outer))
    assert (limits.call.id, limits.call.limits.memory_bytes) == (outer, MIB)
    assert (limits.memory_max_bytes, limits.memory_available_bytes) == (200 * MIB, 150 * MIB)
    assert (limits.cpu_available_milli, limits.pids_available) == (500, 7 - limits.call.usage.pids_current)

    # What is around a call binds it, too.
    limits = await agent.GetLimits(pb.GetLimitsRequest(call_id=inner))
    assert (limits.memory_max_bytes, limits.memory_available_bytes) == (200 * MIB, 200 * MIB)
    assert (limits.cpu_available_milli, limits.pids_available) == (500, 7)

    await agent.FinishCall(pb.FinishCallRequest(call_id=outer))
    error = await refusal(agent.GetLimits(pb.GetLimitsRequest(call_id=outer)))
    assert error.code is grpc.StatusCode.FAILED_PRECONDITION


async def test_a_call_goes_from_declared_to_reported(daemon: Daemon) -> None:
    await daemon.open("web")
    agent = daemon.agent("web")
    intent = t.Intent(memory_bytes=GIB, memory_max_bytes=2 * GIB, pids_max=50, command=["pytest", "-q"])
    answer = (await agent.DeclareIntent(pb.DeclareIntentRequest(intent=intent))).answer
    assert answer.decision == t.DECISION_GRANTED
    assert answer.granted.memory_max_bytes == 2 * GIB
    assert answer.expires_at.ToNanoseconds() > 0

    pid = daemon.process("web")
    begun = await agent.BeginCall(pb.BeginCallRequest(call_id=answer.call_id, process=t.ProcessRef(pid=pid)))
    assert begun.answer.decision == t.DECISION_GRANTED
    assert begun.call.state == t.CALL_STATE_RUNNING
    assert begun.call.pid == pid
    assert daemon.host.calls[answer.call_id].pids == {pid}

    wanted = t.Intent(memory_max_bytes=3 * GIB)
    adjusted = (await agent.AdjustCall(pb.AdjustCallRequest(call_id=answer.call_id, intent=wanted))).answer
    assert adjusted.decision == t.DECISION_GRANTED
    assert adjusted.granted.memory_max_bytes == 3 * GIB
    assert daemon.host.calls[answer.call_id].limits.memory_max_bytes == 3 * GIB

    daemon.host.calls[answer.call_id].usage = Usage(memory_peak_bytes=700 * MIB, cpu_usage_us=5)
    shown = (await agent.GetCall(pb.GetCallRequest(call_id=answer.call_id))).call
    assert shown.usage.memory_peak_bytes == 700 * MIB

    finished = await agent.FinishCall(pb.FinishCallRequest(call_id=answer.call_id, exit_code=0))
    assert finished.report.call_id == answer.call_id
    assert finished.report.usage.memory_peak_bytes == 700 * MIB
    assert finished.report.verdict == t.VERDICT_OK
    assert answer.call_id not in daemon.host.calls
    assert [entry.report.call_id for entry in daemon.history.entries] == [answer.call_id]
    # Asking again is answered again: the caller may have lost the first answer.
    again = await agent.FinishCall(pb.FinishCallRequest(call_id=answer.call_id))
    assert again.report == finished.report


async def test_a_call_over_its_limit_is_explained_to_its_agent(daemon: Daemon) -> None:
    await daemon.open("web")
    agent = daemon.agent("web")
    stream = agent.WatchFeedback(pb.WatchFeedbackRequest(), timeout=DEADLINE_S)
    messages = aiter(stream)
    hello = (await anext(messages)).feedback
    assert (hello.kind, hello.sequence) == (t.FEEDBACK_KIND_HELLO, 0)
    assert "3.75 GiB" in hello.message

    pid = daemon.process("web")
    begin = pb.BeginCallRequest(
        intent=t.Intent(memory_bytes=MIB, memory_max_bytes=2 * MIB), process=t.ProcessRef(pid=pid)
    )
    call_id = (await agent.BeginCall(begin)).call.id
    assert (await anext(messages)).feedback.kind == t.FEEDBACK_KIND_STARTED
    daemon.host.statuses[pid] = ExitStatus(signal=9)
    daemon.host.calls[call_id].oom = OomCounters(1, 1, 0)
    daemon.host.calls[call_id].usage = Usage(memory_peak_bytes=2 * MIB, oom_kill_events=1)
    daemon.host.kill_call(call_id)
    ended = (await anext(messages)).feedback
    assert ended.kind == t.FEEDBACK_KIND_ENDED
    assert ended.call_id == call_id
    assert ended.report.verdict == t.VERDICT_MEMORY_LIMIT_CALL
    assert ended.advice
    assert ended.sequence > 0
    stream.cancel()


async def test_an_intent_that_does_not_fit_is_refused_in_a_normal_response(daemon: Daemon) -> None:
    await daemon.open("web", memory=GIB)
    agent = daemon.agent("web")
    intent = t.Intent(memory_bytes=2 * GIB)
    answer = (await agent.DeclareIntent(pb.DeclareIntentRequest(intent=intent))).answer
    assert answer.decision == t.DECISION_REFUSED
    assert answer.reason == t.REASON_SESSION_MEMORY
    assert answer.call_id == "" and not answer.HasField("granted")
    assert answer.message and answer.suggestion
    begun = await agent.BeginCall(pb.BeginCallRequest(intent=intent, ticket=True))
    assert begun.answer.decision == t.DECISION_REFUSED
    assert begun.ticket == "" and not begun.HasField("call")


async def test_a_ticket_lets_the_launcher_run_a_call_declared_over_grpc(daemon: Daemon) -> None:
    await daemon.open("web")
    agent = daemon.agent("web")
    begun = await agent.BeginCall(pb.BeginCallRequest(intent=t.Intent(memory_bytes=GIB), ticket=True))
    assert begun.ticket
    assert begun.call.state == t.CALL_STATE_DECLARED
    caller, reply = await daemon.launch("web", Request(ticket=begun.ticket))
    assert reply.status is Status.GRANTED
    assert reply.call_id == begun.call.id
    assert dict(reply.environment)["AGENTCGROUP_MEMORY_BYTES"] == str(GIB)
    assert daemon.host.calls[begun.call.id].pids == {caller.pid}
    _, again = await daemon.launch("web", Request(ticket=begun.ticket))
    assert again.status is Status.INVALID
    assert "ticket" in again.message
    await caller.exit()


async def test_a_call_that_cannot_begin_leaves_no_reservation(daemon: Daemon) -> None:
    await daemon.open("web")
    agent = daemon.agent("web")
    gone = t.ProcessRef(pid=daemon.ended_process())
    error = await refusal(
        agent.BeginCall(pb.BeginCallRequest(intent=t.Intent(memory_bytes=GIB), process=gone))
    )
    assert error.code is grpc.StatusCode.NOT_FOUND
    assert error.field == "process.pid"
    limits = await agent.GetLimits(pb.GetLimitsRequest())
    assert limits.memory_available_bytes == 4 * GIB - 256 * MIB
    assert daemon.controller.calls("web") == []


async def test_a_sub_agents_call_is_listed_under_its_parent_and_ends_with_it(daemon: Daemon) -> None:
    await daemon.open("web")
    agent = daemon.agent("web")
    outer, inner, _ = await begin_nested(daemon)
    lone = (await agent.DeclareIntent(pb.DeclareIntentRequest(intent=t.Intent()))).answer.call_id

    tree = (await agent.GetCallTree(pb.GetCallTreeRequest())).calls
    assert [(call.id, call.parent_call_id) for call in tree] == [(outer, ""), (inner, outer), (lone, "")]
    below = (await agent.GetCallTree(pb.GetCallTreeRequest(call_id=outer))).calls
    assert [call.id for call in below] == [outer, inner]

    await agent.FinishCall(pb.FinishCallRequest(call_id=outer))
    ended = (await agent.GetCall(pb.GetCallRequest(call_id=inner))).call
    assert ended.state == t.CALL_STATE_ENDED
    assert ended.report.verdict == t.VERDICT_PARENT_END


async def test_a_process_in_a_call_cannot_leave_it_for_a_call_beside_it(daemon: Daemon) -> None:
    await daemon.open("web")
    agent = daemon.agent("web")
    pid = daemon.process("web")
    begin = pb.BeginCallRequest(intent=t.Intent(memory_bytes=MIB), process=t.ProcessRef(pid=pid))
    first = (await agent.BeginCall(begin)).call.id
    error = await refusal(agent.BeginCall(begin))
    assert error.code is grpc.StatusCode.FAILED_PRECONDITION
    assert first in error.message
    assert [call.id for call in daemon.controller.calls("web")] == [first]


async def test_a_stream_can_be_narrowed_to_one_call(daemon: Daemon) -> None:
    await daemon.open("web")
    agent = daemon.agent("web")
    begin = pb.BeginCallRequest(
        intent=t.Intent(memory_bytes=MIB), process=t.ProcessRef(pid=daemon.process("web"))
    )
    watched, other = (await agent.BeginCall(begin)).call.id, pb.BeginCallRequest(
        intent=t.Intent(memory_bytes=MIB), process=t.ProcessRef(pid=daemon.process("web"))
    )  # fmt: skip
    stream = agent.WatchFeedback(pb.WatchFeedbackRequest(call_id=watched), timeout=DEADLINE_S)
    messages = aiter(stream)
    await anext(messages)
    noise = (await agent.BeginCall(other)).call.id
    await agent.FinishCall(pb.FinishCallRequest(call_id=noise))
    await agent.FinishCall(pb.FinishCallRequest(call_id=watched))
    assert (await anext(messages)).feedback.call_id == watched
    stream.cancel()


async def test_streams_end_with_their_session_and_leave_no_subscriber(daemon: Daemon) -> None:
    await daemon.open("web")
    stream = daemon.agent("web").WatchFeedback(pb.WatchFeedbackRequest(), timeout=DEADLINE_S)
    messages = aiter(stream)
    await anext(messages)
    removing = asyncio.create_task(daemon.controller.remove_session("web", "over"))
    kinds = [message.feedback.kind async for message in messages]
    await removing
    assert kinds == [t.FEEDBACK_KIND_SESSION]
    assert daemon.controller.feed.subscribers == 0


async def test_a_reader_that_goes_away_is_forgotten(daemon: Daemon) -> None:
    await daemon.open("web")
    streams = [daemon.agent("web").WatchFeedback(pb.WatchFeedbackRequest()) for _ in range(5)]
    for stream in streams:
        await anext(aiter(stream))
    assert daemon.controller.feed.subscribers == 5
    for stream in streams:
        stream.cancel()
    await until(lambda: not daemon.controller.feed.subscribers)


async def test_one_session_cannot_open_streams_without_end(daemon: Daemon) -> None:
    await daemon.open("web")
    agent = daemon.agent("web")
    streams = [agent.WatchFeedback(pb.WatchFeedbackRequest()) for _ in range(64)]
    await asyncio.gather(*(anext(aiter(stream)) for stream in streams))
    error = await refusal(anext(aiter(agent.WatchFeedback(pb.WatchFeedbackRequest()))))
    assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error.reason == "EXHAUSTED"
    assert (await agent.GetLimits(pb.GetLimitsRequest())).session == "web"
    for stream in streams:
        stream.cancel()


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.BeginCallRequest(), "target"),
        (pb.BeginCallRequest(call_id="c-1"), "target"),
        (pb.BeginCallRequest(ticket=True), "call"),
        (pb.BeginCallRequest(call_id="c-1", ticket=False), "target"),
        (pb.BeginCallRequest(call_id="c-1", ticket=True, parent_call_id="c-2"), "parent_call_id"),
        (pb.BeginCallRequest(call_id="c-1", process=t.ProcessRef()), "process.pid"),
        (pb.BeginCallRequest(intent=t.Intent(memory_bytes=0), ticket=True), "memory_bytes"),
    ],
)
async def test_a_contradictory_begin_names_what_is_wrong(
    daemon: Daemon, request_: pb.BeginCallRequest, field: str
) -> None:
    await daemon.open("web")
    error = await refusal(daemon.agent("web").BeginCall(request_))
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert (error.reason, error.field) == ("INVALID", field)
    assert error.next_step
    assert daemon.controller.calls("web") == []


@pytest.mark.parametrize("code", [-1, 256, 2**31 - 1])
async def test_an_exit_code_is_a_byte(daemon: Daemon, code: int) -> None:
    await daemon.open("web")
    agent = daemon.agent("web")
    call_id = (await agent.DeclareIntent(pb.DeclareIntentRequest())).answer.call_id
    error = await refusal(agent.FinishCall(pb.FinishCallRequest(call_id=call_id, exit_code=code)))
    assert error.field == "exit_code"
    assert len(daemon.controller.calls("web")) == 1


async def test_a_grant_is_given_back_by_finish(daemon: Daemon) -> None:
    await daemon.open("web")
    agent = daemon.agent("web")
    call_id = (await agent.DeclareIntent(pb.DeclareIntentRequest())).answer.call_id
    report = (await agent.FinishCall(pb.FinishCallRequest(call_id=call_id))).report
    assert report.verdict == t.VERDICT_NOT_BEGUN
    assert daemon.history.entries == []


async def test_a_long_tree_comes_in_pages(daemon: Daemon) -> None:
    await daemon.open("web", calls_max=30)
    agent = daemon.agent("web")
    ids = [(await agent.DeclareIntent(pb.DeclareIntentRequest(intent=t.Intent(memory_bytes=MIB)))).answer.call_id
           for _ in range(25)]  # fmt: skip
    seen: list[str] = []
    token = ""
    while True:
        page = await agent.GetCallTree(pb.GetCallTreeRequest(page_size=10, page_token=token))
        seen += [call.id for call in page.calls]
        token = page.next_page_token
        if not token:
            break
        # The call at the end of a page may end before the next is asked for.
        await agent.FinishCall(pb.FinishCallRequest(call_id=seen[-1]))
    assert seen == ids
    error = await refusal(agent.GetCallTree(pb.GetCallTreeRequest(page_token="nonsense")))
    assert error.field == "page_token"


async def test_a_call_whose_end_fails_on_the_machine_still_gets_its_report_and_gives_its_memory_back(
    daemon: Daemon,
) -> None:
    await daemon.open("web")
    agent = daemon.agent("web")
    process = t.ProcessRef(pid=daemon.process("web"))
    begin = pb.BeginCallRequest(intent=t.Intent(memory_bytes=GIB), process=process)
    call_id = (await agent.BeginCall(begin)).call.id
    before = (await agent.GetLimits(pb.GetLimitsRequest())).memory_available_bytes
    daemon.host.failures["kill_call"] = RequestError(Kind.HOST, "the cgroup was removed by somebody else")
    report = (await agent.FinishCall(pb.FinishCallRequest(call_id=call_id, exit_code=0))).report
    assert report.call_id == call_id
    assert not report.usage.HasField("memory_peak_bytes")
    after = (await agent.GetLimits(pb.GetLimitsRequest())).memory_available_bytes
    assert after == before + GIB


async def test_a_nested_call_that_is_ending_keeps_its_own_verdict_when_the_outer_one_is_killed(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    await daemon.open("web")
    outer, inner, inner_pid = await begin_nested(daemon)
    daemon.host.statuses[inner_pid] = ExitStatus(signal=9)
    daemon.host.calls[inner].oom = OomCounters(1, 1, 0)
    is_ending, may_end = asyncio.Event(), asyncio.Event()
    drained = daemon.host.drained

    async def drained_late(call_id: str, deadline_s: float) -> bool:
        is_ending.set()
        await may_end.wait()
        return await drained(call_id, deadline_s)

    monkeypatch.setattr(daemon.host, "drained", drained_late)
    daemon.host.kill_call(inner)
    async with asyncio.timeout(DEADLINE_S):
        await is_ending.wait()
    killing = asyncio.create_task(daemon.controller.kill_call(outer, "a test"))
    await daemon.settled()
    may_end.set()
    assert (await killing).verdict == "operator"
    assert (await daemon.report(inner)).verdict == "memory_limit_call"
