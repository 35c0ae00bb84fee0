"""OperatorService: one method per RPC, each a translation, a call of the controller, and a translation back.

Served on the operator socket alone; who may connect to it may do everything here.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final, Protocol

import grpc

from agentcgroup.daemon.api import translate
from agentcgroup.daemon.api.enums import DECISIONS, PRIORITIES, VERDICTS
from agentcgroup.daemon.api.pages import page_of_calls
from agentcgroup.daemon.api.stories import Stories, story_of
from agentcgroup.daemon.api.watching import Watchers, host_hello
from agentcgroup.daemon.controller import Controller
from agentcgroup.daemon.errors import Kind, RequestError
from agentcgroup.daemon.model import (
    Capability,
    Drain,
    Event,
    HistoryEntry,
    Session,
    ToolCall,
    TransparentRule,
    Verdict,
)
from agentcgroup.daemon.model.ranges import MOST_DURATION_MS
from agentcgroup.daemon.policy.bounds import check_name, check_range, one_line
from agentcgroup.daemon.policy.commands import command_class
from agentcgroup.daemon.policy.intent import bounded_command
from agentcgroup.daemon.reload import Reloader
from agentcgroup.proto.v1 import operator_pb2 as pb, operator_pb2_grpc, types_pb2

_Context = grpc.aio.ServicerContext[Any, Any]

# chown(2) takes it for "leave as it is", so no user has it.
_NO_ID: Final = 2**32 - 1


class HistoryReader(Stories, Protocol):
    """What operators ask of the history. Every method blocks on the disk."""

    def events(
        self, session: str = "", call_id: str = "", page_size: int = 0, page_token: str = ""
    ) -> tuple[list[Event], str]: ...

    def list(
        self, session: str = "", verdict: Verdict | None = None, page_size: int = 0, page_token: str = ""
    ) -> tuple[list[HistoryEntry], str]: ...


class OperatorService(operator_pb2_grpc.OperatorServiceServicer):
    """What root, or the configured group, may ask."""

    def __init__(self, controller: Controller, history: HistoryReader, reloader: Reloader) -> None:
        self._controller: Final = controller
        self._reloader: Final = reloader
        self._history: Final = history
        self._watchers: Final = Watchers()

    def close(self) -> None:
        """Ends the streams, each after what is queued for it."""
        self._watchers.close()

    # ---- sessions

    async def CreateSession(
        self, request: pb.CreateSessionRequest, context: _Context
    ) -> pb.CreateSessionResponse:
        check_name(request.name)
        session = await self._controller.open_session(
            request.name,
            translate.read_budget(request.budget),
            priority=PRIORITIES.member(request.priority, "priority"),
            owner_uid=_owner(request.owner_uid, "owner_uid"),
            owner_gid=_owner(request.owner_gid, "owner_gid"),
            labels=translate.read_labels(request.labels),
            ends_with_agent=request.ends_with_agent,
            transparent=_transparent(request),
        )
        return pb.CreateSessionResponse(session=self._written(session))

    async def ListSessions(
        self, request: pb.ListSessionsRequest, context: _Context
    ) -> pb.ListSessionsResponse:
        return pb.ListSessionsResponse(
            sessions=[self._written(each) for each in self._controller.sessions()]
        )

    async def GetSession(self, request: pb.GetSessionRequest, context: _Context) -> pb.GetSessionResponse:
        return pb.GetSessionResponse(session=self._written(self._controller.session(request.name)))

    async def UpdateSession(
        self, request: pb.UpdateSessionRequest, context: _Context
    ) -> pb.UpdateSessionResponse:
        priority = PRIORITIES.member(request.priority, "priority")
        budget = translate.read_budget(request.budget)
        session = self._controller.update_session(request.name, budget, priority, _transparent(request))
        return pb.UpdateSessionResponse(session=self._written(session))

    async def FreezeSession(
        self, request: pb.FreezeSessionRequest, context: _Context
    ) -> pb.FreezeSessionResponse:
        reason = one_line(request.reason)
        session = self._controller.freeze_session(request.name, reason, request.include_agent)
        return pb.FreezeSessionResponse(session=self._written(session))

    async def ThawSession(self, request: pb.ThawSessionRequest, context: _Context) -> pb.ThawSessionResponse:
        return pb.ThawSessionResponse(session=self._written(self._controller.thaw_session(request.name)))

    async def KillSession(self, request: pb.KillSessionRequest, context: _Context) -> pb.KillSessionResponse:
        reason = one_line(request.reason)
        killed = await self._controller.kill_session(request.name, reason, request.include_agent)
        return pb.KillSessionResponse(calls_killed=killed)

    async def RemoveSession(
        self, request: pb.RemoveSessionRequest, context: _Context
    ) -> pb.RemoveSessionResponse:
        await self._controller.remove_session(request.name, one_line(request.reason))
        return pb.RemoveSessionResponse()

    async def PlaceAgent(self, request: pb.PlaceAgentRequest, context: _Context) -> pb.PlaceAgentResponse:
        session = self._controller.place_agent(request.name, translate.read_process(request.process))
        return pb.PlaceAgentResponse(session=self._written(session))

    # ---- calls

    async def ListCalls(self, request: pb.ListCallsRequest, context: _Context) -> pb.ListCallsResponse:
        calls = self._controller.calls(request.session or None)
        page, next_token = page_of_calls(calls, request.page_size, request.page_token, self._written_call)
        return pb.ListCallsResponse(calls=page, next_page_token=next_token)

    async def GetCall(
        self, request: pb.OperatorServiceGetCallRequest, context: _Context
    ) -> pb.OperatorServiceGetCallResponse:
        call = self._controller.call(None, request.call_id)
        return pb.OperatorServiceGetCallResponse(call=self._written_call(call))

    async def UpdateCall(self, request: pb.UpdateCallRequest, context: _Context) -> pb.UpdateCallResponse:
        intent = translate.read_adjustment(request.intent)
        answer = self._controller.adjust(None, request.call_id, intent)
        return pb.UpdateCallResponse(answer=translate.write_answer(answer, self._controller.not_enforced))

    async def FreezeCall(self, request: pb.FreezeCallRequest, context: _Context) -> pb.FreezeCallResponse:
        call = self._controller.freeze_call(request.call_id, one_line(request.reason))
        return pb.FreezeCallResponse(call=self._written_call(call))

    async def ThawCall(self, request: pb.ThawCallRequest, context: _Context) -> pb.ThawCallResponse:
        return pb.ThawCallResponse(call=self._written_call(self._controller.thaw_call(request.call_id)))

    async def KillCall(self, request: pb.KillCallRequest, context: _Context) -> pb.KillCallResponse:
        report = await self._controller.kill_call(request.call_id, one_line(request.reason))
        return pb.KillCallResponse(report=translate.write_report(report))

    # ---- the host

    async def WatchEvents(
        self, request: pb.WatchEventsRequest, context: _Context
    ) -> AsyncIterator[pb.WatchEventsResponse]:
        if request.session:
            self._controller.session(request.session)
        with self._watchers.subscribed(self._controller.feed, request.session or None) as messages:
            first = host_hello(self._controller.host())
            yield pb.WatchEventsResponse(event=translate.write_feedback(first))
            async for message in messages:
                yield pb.WatchEventsResponse(event=translate.write_feedback(message))

    async def GetHost(self, request: pb.GetHostRequest, context: _Context) -> pb.GetHostResponse:
        host = self._controller.host()
        return pb.GetHostResponse(
            version=host.version,
            kernel=host.kernel,
            tier=host.tier,
            capabilities=[_capability(each) for each in host.capabilities],
            memory_capacity_bytes=host.memory_capacity_bytes,
            memory_reserved_bytes=host.memory_reserved_bytes,
            memory_current_bytes=host.memory_current_bytes,
            cpu_capacity_milli=host.cpu_capacity_milli,
            sessions=host.sessions,
            calls_live=host.calls_live,
            started_at=translate.timestamp(host.started_at_ns),
            dry_run=host.dry_run,
            cgroup_root=host.cgroup_root,
            daemon_usage=translate.write_usage(host.daemon_usage),
            daemon_rss_bytes=host.daemon_rss_bytes,
            drain=_drain(host.drain),
            scheduler=pb.Scheduler(
                state=host.scheduler.state,
                mode=host.scheduler.mode,
                reason=host.scheduler.reason,
                ejections=host.scheduler.ejections,
            ),
        )

    async def DrainHost(self, request: pb.DrainHostRequest, context: _Context) -> pb.DrainHostResponse:
        deadline_ms = request.deadline_ms if request.HasField("deadline_ms") else None
        check_range("deadline_ms", deadline_ms, 0, MOST_DURATION_MS)
        live = self._controller.drain(one_line(request.reason), deadline_ms)
        return pb.DrainHostResponse(calls_live=live)

    async def ResumeHost(self, request: pb.ResumeHostRequest, context: _Context) -> pb.ResumeHostResponse:
        return pb.ResumeHostResponse(was_draining=self._controller.resume())

    async def ReloadConfiguration(
        self, request: pb.ReloadConfigurationRequest, context: _Context
    ) -> pb.ReloadConfigurationResponse:
        return pb.ReloadConfigurationResponse(
            changes=[
                pb.ConfigurationChange(
                    key=each.key, old_value=each.old, new_value=each.new, is_live=each.is_live
                )
                for each in self._reloader.reload()
            ]
        )

    async def ListHistory(self, request: pb.ListHistoryRequest, context: _Context) -> pb.ListHistoryResponse:
        verdict = VERDICTS.member(request.verdict, "verdict")
        entries, next_token = await asyncio.to_thread(
            self._history.list, request.session, verdict, request.page_size, request.page_token
        )
        return pb.ListHistoryResponse(entries=[_entry(each) for each in entries], next_page_token=next_token)

    async def ExplainCall(
        self, request: pb.OperatorServiceExplainCallRequest, context: _Context
    ) -> pb.OperatorServiceExplainCallResponse:
        story = await story_of(self._controller, self._history, None, request.call_id)
        return pb.OperatorServiceExplainCallResponse(story=story)

    async def ListEvents(self, request: pb.ListEventsRequest, context: _Context) -> pb.ListEventsResponse:
        events, next_token = await asyncio.to_thread(
            self._history.events, request.session, request.call_id, request.page_size, request.page_token
        )
        return pb.ListEventsResponse(events=map(translate.write_event, events), next_page_token=next_token)

    async def GetSuggestion(
        self, request: pb.OperatorServiceGetSuggestionRequest, context: _Context
    ) -> pb.OperatorServiceGetSuggestionResponse:
        command = bounded_command(request.command)
        found = self._controller.suggestion(command, request.project, None)
        return pb.OperatorServiceGetSuggestionResponse(suggestion=translate.write_suggestion(found))

    # ---- below the RPCs

    def _written(self, session: Session) -> types_pb2.Session:
        return translate.write_session(session, self._controller.session_usage(session))

    def _written_call(self, call: ToolCall) -> types_pb2.Call:
        return translate.write_call(call, self._controller.call_usage(call), self._controller.not_enforced)


def _transparent(request: pb.CreateSessionRequest | pb.UpdateSessionRequest) -> TransparentRule | None:
    """The rule that was sent; None: none was."""
    return translate.read_transparent(request.transparent) if request.HasField("transparent") else None


def _owner(number: int, field: str) -> int:
    """A uid or gid. An absent one reads as 0: the socket was root's, so the session is."""
    if number == _NO_ID:
        raise RequestError(
            Kind.INVALID, f"{field} is {number}, which no user has", "name a real user", field
        )
    return number


def _capability(capability: Capability) -> pb.Capability:
    return pb.Capability(
        name=capability.name,
        available=capability.available,
        tier=capability.tier,
        detail=capability.detail,
        cost=capability.cost,
        remedy=capability.remedy,
    )


def _drain(drain: Drain | None) -> pb.Drain | None:
    if drain is None:
        return None
    deadline = None if drain.deadline_at_ns is None else translate.timestamp(drain.deadline_at_ns)
    return pb.Drain(reason=drain.reason, began_at=translate.timestamp(drain.began_at_ns), deadline=deadline)


def _entry(entry: HistoryEntry) -> pb.HistoryEntry:
    return pb.HistoryEntry(
        report=translate.write_report(entry.report),
        intent=translate.write_intent(entry.intent),
        limits=translate.write_limits(entry.limits),
        decision=DECISIONS.number(entry.decision),
        parent_call_id=entry.parent_call_id,
        command_class=command_class(entry.intent.command),
        project=entry.project,
        memory_samples=[
            pb.MemorySample(offset_ms=offset_ms, memory_bytes=memory_bytes)
            for offset_ms, memory_bytes in entry.memory_samples
        ],
    )
