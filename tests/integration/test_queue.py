"""The queue over real sockets: a turn that comes, and everything by which a caller can leave before it does."""

import array
import asyncio
import contextlib
import os
import socket
from collections.abc import Iterator

import grpc
import pytest

from agentcgroup.client import AsyncClient
from agentcgroup.client.values import Answer as ClientAnswer
from agentcgroup.daemon.model import (
    Action,
    CallState,
    Decision,
    Intent,
    ProcessRef,
    QueueOutcome,
    Reason,
)
from agentcgroup.proto.launch import Reply, Request, Status, decode_reply, encode_request
from agentcgroup.proto.v1 import agent_pb2, types_pb2
from tests.integration.harness import DEADLINE_S, MIB, Daemon, descriptors, refusal
from tests.integration.queueing import BIG, crowded, until_followed, until_waiting


def outcomes(daemon: Daemon) -> dict[QueueOutcome, int]:
    counted = daemon.controller.counters.queue_wait_s
    return {outcome: sum(each.counts) for outcome, each in counted.items() if sum(each.counts)}


def is_clean(daemon: Daemon, session: str = "web") -> bool:
    controller = daemon.controller
    found = controller.session(session)
    return not controller.calls_waiting and found.calls_queued == 0 == found.memory_reserved_bytes


@contextlib.contextmanager
def at_the_door(daemon: Daemon, request: Request, pid: int | None = None) -> Iterator[socket.socket]:
    """A connection that asks for a call for `pid`, a new process of the session."""
    pidfd = os.pidfd_open(pid or daemon.process("web"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.setblocking(False)
        connection.connect(str(daemon.socket("web", "launch.sock")))
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [pidfd]))
        connection.sendmsg([encode_request(request)], [rights])
        os.close(pidfd)
        yield connection


async def heard(connection: socket.socket) -> Reply:
    packet = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(connection, 1 << 16), DEADLINE_S)
    return decode_reply(packet)


async def last_heard(connection: socket.socket) -> Reply:
    while (reply := await heard(connection)).status is Status.QUEUED:
        pass
    return reply


FITS_LATER = Request({"memory": "400M"})


# ---- the launcher's door


async def test_a_launcher_waits_for_its_turn_and_is_then_in_its_call(daemon: Daemon) -> None:
    first = await crowded(daemon)
    pid = daemon.process("web")
    with at_the_door(daemon, FITS_LATER, pid) as connection:
        queued = await heard(connection)
        assert queued.status is Status.QUEUED
        assert "place 1 of 1" in queued.message
        assert daemon.controller.call("web", queued.call_id).state is CallState.QUEUED
        daemon.controller.give_back("web", first)
        granted = await heard(connection)
        assert (granted.status, granted.call_id) == (Status.GRANTED, queued.call_id)
        assert ("AGENTCGROUP_CALL_ID", queued.call_id) in granted.environment
    assert daemon.host.calls[granted.call_id].pids == {pid}
    assert outcomes(daemon) == {QueueOutcome.GRANTED: 1}
    actions = [event.action for event in daemon.history.noted if event.call_id == granted.call_id]
    assert actions[:2] == [Action.QUEUED, Action.GRANTED]
    await daemon.controller.finish("web", granted.call_id, None)
    assert is_clean(daemon)


async def test_launches_one_after_another_are_never_refused_for_one_that_is_ending(daemon: Daemon) -> None:
    await daemon.open("web", 768 * MIB)
    for _ in range(5):
        caller, reply = await daemon.launch("web", FITS_LATER)
        while reply.status is Status.QUEUED:
            reply = await caller.hear()
        assert reply.status is Status.GRANTED
        await caller.exit()
    await asyncio.wait_for(daemon.controller.settle(), DEADLINE_S)
    assert is_clean(daemon)


async def test_a_launcher_that_is_killed_in_the_queue_leaves_it_and_nothing_else(daemon: Daemon) -> None:
    first = await crowded(daemon)
    before = descriptors()
    caller, reply = await daemon.launch("web", FITS_LATER)
    assert reply.status is Status.QUEUED
    caller.process.kill()
    await caller.process.wait()
    await until_waiting(daemon, 0)
    assert daemon.controller.call("web", reply.call_id).state is CallState.ENDED
    assert outcomes(daemon) == {QueueOutcome.CANCELLED: 1}
    daemon.controller.give_back("web", first)
    assert is_clean(daemon)
    assert daemon.host.done["create_call"] == 0
    assert descriptors() <= before + 2  # the pipes to the caller


async def test_a_launcher_that_does_not_want_to_wait_is_refused_at_once(daemon: Daemon) -> None:
    await crowded(daemon)
    with at_the_door(daemon, Request({"memory": "400M"}, wait="0")) as connection:
        reply = await heard(connection)
    assert reply.status is Status.REFUSED
    assert "--memory 112M" in reply.suggestion, "what would be granted"
    with at_the_door(daemon, Request({"memory": "1M"}, wait="soon")) as connection:
        reply = await heard(connection)
    assert reply.status is Status.INVALID and "--wait" in reply.message
    assert not daemon.controller.calls_waiting


async def test_what_can_never_fit_is_refused_and_not_queued(daemon: Daemon) -> None:
    await crowded(daemon)
    with at_the_door(daemon, Request({"memory": "600M"})) as connection:
        reply = await heard(connection)
    assert reply.status is Status.REFUSED
    assert "never fit" in reply.suggestion


async def test_a_launcher_is_refused_when_its_time_is_over(daemon: Daemon) -> None:
    await crowded(daemon)
    with at_the_door(daemon, Request({"memory": "400M"}, wait="50ms")) as connection:
        assert (await heard(connection)).status is Status.QUEUED
        reply = await heard(connection)
    assert reply.status is Status.REFUSED
    assert "waited 50 ms" in reply.message and "400 MiB" in reply.message
    assert outcomes(daemon) == {QueueOutcome.DEADLINE: 1}
    assert not daemon.controller.calls_waiting


async def test_the_end_of_the_session_answers_everybody_in_its_queue(daemon: Daemon) -> None:
    await crowded(daemon)
    before = descriptors()
    with at_the_door(daemon, FITS_LATER) as one, at_the_door(daemon, FITS_LATER) as other:
        replies = [await heard(one), await heard(other)]
        assert [reply.status for reply in replies] == [Status.QUEUED, Status.QUEUED]
        await daemon.controller.remove_session("web", "")
        replies = [await last_heard(one), await last_heard(other)]
    assert [reply.status for reply in replies] == [Status.REFUSED, Status.REFUSED]
    assert all("session is being removed" in reply.message for reply in replies)
    assert outcomes(daemon) == {QueueOutcome.SESSION_END: 2}
    assert not daemon.controller.calls_waiting
    assert descriptors() <= before


async def test_a_process_that_was_moved_while_it_waited_is_not_moved_again(daemon: Daemon) -> None:
    first = await crowded(daemon)
    small = daemon.controller.declare("web", Intent(memory_bytes=MIB)).call_id
    pid = daemon.process("web")
    with at_the_door(daemon, FITS_LATER, pid) as connection:
        assert (await heard(connection)).status is Status.QUEUED
        daemon.controller.begin("web", small, ProcessRef(pid))
        daemon.controller.give_back("web", first)
        reply = await heard(connection)
    assert reply.status is Status.REFUSED
    assert small in reply.message
    await daemon.controller.finish("web", small, None)
    assert is_clean(daemon)


# ---- gRPC


def declared(memory_bytes: int, deadline_ms: int | None = None) -> agent_pb2.DeclareIntentRequest:
    intent = types_pb2.Intent(memory_bytes=memory_bytes)
    return agent_pb2.DeclareIntentRequest(intent=intent, queue_deadline_ms=deadline_ms)


async def test_a_declaration_is_queued_and_beginning_it_waits_for_its_turn(daemon: Daemon) -> None:
    first = await crowded(daemon)
    agent = daemon.agent("web")
    answer = (await agent.DeclareIntent(declared(400 * MIB, 60_000))).answer
    assert answer.decision == types_pb2.DECISION_QUEUED
    assert (answer.queue.position, answer.queue.deadline_ms) == (1, 60_000)
    assert not answer.queue.HasField("estimated_wait_ms"), "nobody said how long the other runs"
    call = (await agent.GetCall(agent_pb2.GetCallRequest(call_id=answer.call_id))).call
    assert (call.state, call.queue.position) == (types_pb2.CALL_STATE_QUEUED, 1)
    process = types_pb2.ProcessRef(pid=daemon.process("web"))
    beginning = agent.BeginCall(agent_pb2.BeginCallRequest(call_id=answer.call_id, process=process))
    await until_followed(daemon)
    assert not beginning.done()
    await agent.FinishCall(agent_pb2.FinishCallRequest(call_id=first))
    begun = await asyncio.wait_for(beginning, DEADLINE_S)
    assert begun.answer.decision == types_pb2.DECISION_GRANTED
    assert begun.call.state == types_pb2.CALL_STATE_RUNNING
    await agent.FinishCall(agent_pb2.FinishCallRequest(call_id=answer.call_id))
    assert is_clean(daemon)


async def test_beginning_ends_with_the_refusal_when_the_time_is_over(daemon: Daemon) -> None:
    await crowded(daemon)
    intent = types_pb2.Intent(memory_bytes=400 * MIB)
    begun = await daemon.agent("web").BeginCall(
        agent_pb2.BeginCallRequest(intent=intent, ticket=True, queue_deadline_ms=50)
    )
    assert begun.answer.decision == types_pb2.DECISION_REFUSED
    assert begun.answer.reason == types_pb2.REASON_SESSION_MEMORY
    assert not begun.ticket


@pytest.mark.parametrize("how", ["begin", "watch"])
async def test_who_hangs_up_while_waiting_leaves_the_queue(daemon: Daemon, how: str) -> None:
    await crowded(daemon)
    agent = daemon.agent("web")
    call_id = (await agent.DeclareIntent(declared(400 * MIB))).answer.call_id
    waiting: grpc.aio.Call
    if how == "begin":
        waiting = agent.BeginCall(agent_pb2.BeginCallRequest(call_id=call_id, ticket=True))
        await until_followed(daemon)
    else:
        watching = agent.WatchAnswer(agent_pb2.WatchAnswerRequest(call_id=call_id))
        async for response in watching:
            assert response.answer.decision == types_pb2.DECISION_QUEUED
            break
        waiting = watching
    assert daemon.controller.calls_waiting == 1
    waiting.cancel()
    await until_waiting(daemon, 0)
    assert outcomes(daemon) == {QueueOutcome.CANCELLED: 1}


async def test_finishing_a_queued_call_cancels_it_and_its_begin_is_told(daemon: Daemon) -> None:
    await crowded(daemon)
    agent = daemon.agent("web")
    call_id = (await agent.DeclareIntent(declared(400 * MIB))).answer.call_id
    beginning = agent.BeginCall(agent_pb2.BeginCallRequest(call_id=call_id, ticket=True))
    await until_followed(daemon)
    report = (await agent.FinishCall(agent_pb2.FinishCallRequest(call_id=call_id))).report
    assert report.verdict == types_pb2.VERDICT_NOT_BEGUN
    begun = await asyncio.wait_for(beginning, DEADLINE_S)
    assert begun.answer.decision == types_pb2.DECISION_REFUSED
    assert "left the queue" in begun.answer.message


async def test_a_queued_call_can_neither_be_adjusted_nor_be_nested_in(daemon: Daemon) -> None:
    await crowded(daemon)
    agent = daemon.agent("web")
    call_id = (await agent.DeclareIntent(declared(400 * MIB))).answer.call_id
    intent = types_pb2.Intent(memory_bytes=MIB)
    error = await refusal(agent.AdjustCall(agent_pb2.AdjustCallRequest(call_id=call_id, intent=intent)))
    assert error.reason == "STATE" and "queued" in error.message
    error = await refusal(
        agent.DeclareIntent(agent_pb2.DeclareIntentRequest(intent=intent, parent_call_id=call_id))
    )
    assert (error.reason, error.field) == ("STATE", "parent_call_id")


async def test_a_nested_call_waits_for_its_siblings_and_goes_with_its_parent(daemon: Daemon) -> None:
    await daemon.open("web", 768 * MIB)
    controller = daemon.controller
    outer = controller.declare("web", Intent(memory_bytes=400 * MIB, memory_max_bytes=400 * MIB)).call_id
    controller.begin("web", outer, ProcessRef(daemon.process("web")))
    sibling = controller.declare("web", Intent(memory_bytes=300 * MIB), outer).call_id
    waits = [controller.declare("web", Intent(memory_bytes=300 * MIB), outer) for _ in range(2)]
    assert [(answer.decision, answer.reason) for answer in waits] == [
        (Decision.QUEUED, Reason.PARENT_CALL)
    ] * 2
    controller.give_back("web", sibling)
    await until_waiting(daemon, 1)
    assert controller.call("web", waits[0].call_id).state is CallState.DECLARED
    await controller.finish("web", outer, None)
    assert is_clean(daemon)
    assert outcomes(daemon) == {QueueOutcome.GRANTED: 1, QueueOutcome.PARENT_END: 1}


async def test_a_nested_call_that_makes_do_with_its_small_parent_is_granted_while_others_wait(
    daemon: Daemon,
) -> None:
    await crowded(daemon)
    controller = daemon.controller
    outer = controller.declare("web", Intent(memory_bytes=4 * MIB, memory_max_bytes=8 * MIB)).call_id
    controller.begin("web", outer, ProcessRef(daemon.process("web")))
    waiting = controller.declare("web", BIG).call_id
    inner = controller.declare("web", Intent(memory_max_bytes=8 * MIB), outer)
    assert (inner.decision, inner.limits and inner.limits.memory_bytes) == (Decision.GRANTED, 8 * MIB)
    assert controller.calls_waiting == 1
    controller.give_back("web", waiting)
    controller.give_back("web", inner.call_id)
    await controller.finish("web", outer, None)


# ---- the client


async def test_the_client_waits_and_hears_where_it_stands(daemon: Daemon) -> None:
    first = await crowded(daemon)
    stood: list[ClientAnswer] = []
    async with AsyncClient(daemon.socket("web", "")) as client:
        declaring = asyncio.create_task(client.declare(memory="400M", wait="1m", on_queued=stood.append))
        await until_waiting(daemon, 1)
        daemon.controller.give_back("web", first)
        answer = await asyncio.wait_for(declaring, DEADLINE_S)
        assert answer.decision is Decision.GRANTED
        assert stood and stood[0].queue is not None and stood[0].queue.deadline_ms == 60_000
        refused = await client.declare(memory="400M", wait=0)
        assert refused.decision is Decision.REFUSED
        cancelled = asyncio.create_task(client.declare(memory="400M"))
        await until_waiting(daemon, 1)
        # Cancelled before it watches its answer, a call would wait until its deadline.
        await until_followed(daemon)
        cancelled.cancel()
        await until_waiting(daemon, 0)
