"""AgentService: one method per RPC, each a translation, a call of the controller, and a translation back.

One object per session; its session is the socket it is served on, so no method reads a session from a
request.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any, Final

import grpc

from agentcgroup.daemon.api import translate
from agentcgroup.daemon.api.enums import LEVELS, PRIORITIES
from agentcgroup.daemon.api.pages import page_of_calls
from agentcgroup.daemon.api.stories import Stories, story_of
from agentcgroup.daemon.api.watching import Watchers, hello
from agentcgroup.daemon.controller import Controller
from agentcgroup.daemon.counters import Door
from agentcgroup.daemon.errors import Kind, RequestError
from agentcgroup.daemon.model import Answer, Decision, ProcessRef, ToolCall
from agentcgroup.daemon.policy.intent import bounded_command
from agentcgroup.proto.v1 import agent_pb2 as pb, agent_pb2_grpc, types_pb2

_Context = grpc.aio.ServicerContext[Any, Any]


class AgentService(agent_pb2_grpc.AgentServiceServicer):
    """What the processes of one session may ask."""

    def __init__(self, controller: Controller, history: Stories, session: str) -> None:
        self._controller: Final = controller
        self._history: Final = history
        self._session: Final = session
        self._watchers: Final = Watchers()

    def close(self) -> None:
        """Ends the streams, each after what is queued for it."""
        self._watchers.close()

    async def GetLimits(self, request: pb.GetLimitsRequest, context: _Context) -> pb.GetLimitsResponse:
        limits = self._controller.limits_of(self._session, request.call_id)
        return pb.GetLimitsResponse(
            session=limits.session,
            budget=translate.write_budget(limits.budget),
            priority=PRIORITIES.number(limits.priority),
            usage=translate.write_usage(limits.usage),
            memory_available_bytes=limits.memory_available_bytes,
            cpu_available_milli=limits.cpu_available_milli,
            pids_available=limits.pids_available,
            level=LEVELS.number(limits.level),
            not_enforced=limits.not_enforced,
            call=None if limits.call is None else self._written_call(limits.call),
            memory_max_bytes=limits.memory_max_bytes,
        )

    async def DeclareIntent(
        self, request: pb.DeclareIntentRequest, context: _Context
    ) -> pb.DeclareIntentResponse:
        answer = self._declare(request.intent, request)
        return pb.DeclareIntentResponse(answer=self._written(answer))

    async def BeginCall(self, request: pb.BeginCallRequest, context: _Context) -> pb.BeginCallResponse:
        started_s = time.perf_counter()
        process = translate.read_process(request.process) if request.HasField("process") else None
        if process is None and not request.ticket:
            raise RequestError(
                Kind.INVALID,
                "target is not set: nothing says what is to run in the call",
                "set process to place one of yours, or ticket to true for `agentcg run --ticket`",
                "target",
            )
        answer = self._answer_to_begin(request)
        if answer.decision is Decision.QUEUED:
            answer = await self._turn(answer, context)
            started_s = time.perf_counter()
        if answer.decision is Decision.REFUSED:
            return pb.BeginCallResponse(answer=self._written(answer))
        try:
            begun = self._begin(answer, process)
        except BaseException:
            # A call that was declared here and could not begin is of no use to anybody.
            if request.WhichOneof("call") == "intent":
                await self._controller.finish(self._session, answer.call_id, None)
            raise
        if process is not None:
            self._controller.counters.placed(Door.GRPC, time.perf_counter() - started_s)
        return begun

    async def AdjustCall(self, request: pb.AdjustCallRequest, context: _Context) -> pb.AdjustCallResponse:
        intent = translate.read_adjustment(request.intent)
        answer = self._controller.adjust(self._session, request.call_id, intent)
        return pb.AdjustCallResponse(answer=self._written(answer))

    async def FinishCall(self, request: pb.FinishCallRequest, context: _Context) -> pb.FinishCallResponse:
        exit_code = request.exit_code if request.HasField("exit_code") else None
        if exit_code is not None and not 0 <= exit_code <= 255:
            raise RequestError(
                Kind.INVALID,
                f"exit_code is {exit_code}",
                "an exit status is 0 to 255; leave it out when the process was killed",
                "exit_code",
            )
        report = await self._controller.finish(self._session, request.call_id, exit_code)
        return pb.FinishCallResponse(report=translate.write_report(report))

    async def GetCall(self, request: pb.GetCallRequest, context: _Context) -> pb.GetCallResponse:
        return pb.GetCallResponse(
            call=self._written_call(self._controller.call(self._session, request.call_id))
        )

    async def GetCallTree(self, request: pb.GetCallTreeRequest, context: _Context) -> pb.GetCallTreeResponse:
        calls = self._controller.calls(self._session)
        if request.call_id:
            calls = _subtree(self._controller.call(self._session, request.call_id), calls)
        page, next_token = page_of_calls(calls, request.page_size, request.page_token, self._written_call)
        return pb.GetCallTreeResponse(calls=page, next_page_token=next_token)

    async def WatchFeedback(
        self, request: pb.WatchFeedbackRequest, context: _Context
    ) -> AsyncIterator[pb.WatchFeedbackResponse]:
        if request.call_id:
            self._controller.call(self._session, request.call_id)
        with self._watchers.subscribed(self._controller.feed, self._session, request.call_id) as messages:
            first = hello(self._controller.limits_of(self._session))
            yield pb.WatchFeedbackResponse(feedback=translate.write_feedback(first))
            async for message in messages:
                yield pb.WatchFeedbackResponse(feedback=translate.write_feedback(message))

    async def ExplainCall(self, request: pb.ExplainCallRequest, context: _Context) -> pb.ExplainCallResponse:
        story = await story_of(self._controller, self._history, self._session, request.call_id)
        return pb.ExplainCallResponse(story=story)

    async def GetSuggestion(
        self, request: pb.GetSuggestionRequest, context: _Context
    ) -> pb.GetSuggestionResponse:
        command = bounded_command(request.command)
        found = self._controller.suggestion(command, request.project or None, self._session)
        return pb.GetSuggestionResponse(suggestion=translate.write_suggestion(found))

    async def WatchAnswer(
        self, request: pb.WatchAnswerRequest, context: _Context
    ) -> AsyncIterator[pb.WatchAnswerResponse]:
        async with contextlib.aclosing(self._controller.answers(self._session, request.call_id)) as answers:
            async for answer in answers:
                yield pb.WatchAnswerResponse(answer=self._written(answer))

    # ---- below the RPCs

    def _declare(
        self, intent: types_pb2.Intent, request: pb.DeclareIntentRequest | pb.BeginCallRequest
    ) -> Answer:
        wait_ms = request.queue_deadline_ms if request.HasField("queue_deadline_ms") else None
        return self._controller.declare(
            self._session, translate.read_intent(intent), request.parent_call_id, wait_ms
        )

    async def _turn(self, answer: Answer, context: _Context) -> Answer:
        """The final answer to a queued call; it leaves the queue when the caller hangs up before."""
        waiting = asyncio.ensure_future(self._controller.final_answer(self._session, answer.call_id))

        def stop_waiting(_: Any) -> None:
            waiting.cancel()

        # What a caller asked for goes on when it has gone (see Guard); waiting for it does not.
        # The stubs take the callback for a protocol of another shape; grpc calls it with the context.
        context.add_done_callback(stop_waiting)  # type: ignore[arg-type]
        return await waiting

    def _answer_to_begin(self, request: pb.BeginCallRequest) -> Answer:
        match request.WhichOneof("call"):
            case "intent":
                return self._declare(request.intent, request)
            case "call_id":
                if request.parent_call_id:
                    raise RequestError(
                        Kind.INVALID,
                        "parent_call_id is set, but call_id names a call whose parent was declared with it",
                        "set parent_call_id only together with intent",
                        "parent_call_id",
                    )
                return self._controller.answer_to(self._controller.call(self._session, request.call_id))
            case _:
                raise RequestError(
                    Kind.INVALID,
                    "call is not set: nothing says which call is to begin",
                    "set intent to declare and begin at once, or call_id of a declared call",
                    "call",
                )

    def _begin(self, answer: Answer, process: ProcessRef | None) -> pb.BeginCallResponse:
        """Places `process`, or hands out a ticket when there is none."""
        if process is None:
            ticket = self._controller.ticket(self._session, answer.call_id)
            call = self._controller.call(self._session, answer.call_id)
        else:
            ticket = ""
            call = self._controller.begin(self._session, answer.call_id, process)
        return pb.BeginCallResponse(
            answer=self._written(answer), ticket=ticket, call=self._written_call(call)
        )

    def _written(self, answer: Answer) -> types_pb2.Answer:
        return translate.write_answer(answer, self._controller.not_enforced)

    def _written_call(self, call: ToolCall) -> types_pb2.Call:
        return translate.write_call(call, self._controller.call_usage(call), self._controller.not_enforced)


def _subtree(root: ToolCall, calls: list[ToolCall]) -> list[ToolCall]:
    """`root` and what runs inside it; `calls` has parents before their children."""
    inside = {root.id}
    tree = [root]
    for call in calls:
        if call.parent_id in inside and call.id not in inside:
            inside.add(call.id)
            tree.append(call)
    return tree
