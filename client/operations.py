"""Every request of the API as a value: which method, which message, what its response means.

Built once here and carried out by a sync or an async channel, so that neither client translates anything itself.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from google.protobuf.message import Message

from agentcgroup.client import convert
from agentcgroup.client.arguments import (
    BudgetArguments,
    IntentArguments,
    Time,
    budget_of,
    duration_ms,
    intent_of,
    priority_of,
    rule_of,
)
from agentcgroup.client.errors import InvalidRequest
from agentcgroup.client.values import (
    Answer,
    Call,
    ConfigurationChange,
    Event,
    Feedback,
    HistoryEntry,
    Host,
    Intent,
    Priority,
    ProcessRef,
    Report,
    Session,
    SessionLimits,
    Story,
    Suggestion,
    TransparentRule,
    Verdict,
)
from agentcgroup.proto.v1 import agent_pb2 as agent, operator_pb2 as operator, types_pb2 as types

Result = TypeVar("Result")
_M = TypeVar("_M", bound=Message)

NO_LABELS: Final[Mapping[str, str]] = {}
# See ListHistoryRequest.page_size.
MOST_HISTORY_PAGE_SIZE: Final = 1000


@dataclass(frozen=True, slots=True)
class Operation(Generic[Result]):
    """One request: `method` of the service's stub, its message, and the reading of a response."""

    method: str
    request: Message
    read: Callable[[Any], Result]


@dataclass(frozen=True, slots=True)
class Page(Generic[Result]):
    """Part of a list; `next_token` is empty at its end."""

    items: list[Result]
    next_token: str


def _message(kind: Callable[..., _M], /, **values: Any) -> _M:
    """A message of `kind`; what does not fit its fields (a number too large, text that is no UTF-8) is InvalidRequest."""
    try:
        return kind(**values)
    except (ValueError, TypeError) as error:
        raise InvalidRequest(
            f"the request cannot be written: {error}", "Look at the numbers and names in it"
        ) from error


def _intent(intent: Intent) -> types.Intent:
    return _message(convert.intent_message, intent=intent)


def _calls(response: Any) -> Page[Call]:
    return Page([*map(convert.call, response.calls)], response.next_page_token)


def _nothing(_: Message) -> None:
    return None


# ---- AgentService ----------------------------------------------------------------------------------------------------


def get_limits(call_id: str) -> Operation[SessionLimits]:
    return Operation("GetLimits", agent.GetLimitsRequest(call_id=call_id), convert.session_limits)


def declare(intent: Intent, parent_call_id: str, wait_ms: int | None = None) -> Operation[Answer]:
    request = _message(
        agent.DeclareIntentRequest,
        intent=_intent(intent),
        parent_call_id=parent_call_id,
        queue_deadline_ms=wait_ms,
    )
    return Operation("DeclareIntent", request, lambda response: convert.answer(response.answer))


def watch_answer(call_id: str) -> Operation[Answer]:
    request = _message(agent.WatchAnswerRequest, call_id=call_id)
    return Operation("WatchAnswer", request, lambda response: convert.answer(response.answer))


def begin(call_id: str, process: ProcessRef) -> Operation[Call]:
    request = _message(
        agent.BeginCallRequest, call_id=call_id, process=_message(convert.process_message, process=process)
    )
    return Operation("BeginCall", request, lambda response: convert.call(response.call))


def ticket(call_id: str) -> Operation[str]:
    request = _message(agent.BeginCallRequest, call_id=call_id, ticket=True)
    return Operation("BeginCall", request, lambda response: str(response.ticket))


def adjust(call_id: str, arguments: IntentArguments) -> Operation[Answer]:
    request = _message(agent.AdjustCallRequest, call_id=call_id, intent=_intent(intent_of(arguments)))
    return Operation("AdjustCall", request, lambda response: convert.answer(response.answer))


def finish(call_id: str, exit_code: int | None) -> Operation[Report]:
    request = _message(agent.FinishCallRequest, call_id=call_id, exit_code=exit_code)
    return Operation("FinishCall", request, lambda response: convert.report(response.report))


def get_call(call_id: str) -> Operation[Call]:
    request = _message(agent.GetCallRequest, call_id=call_id)
    return Operation("GetCall", request, lambda response: convert.call(response.call))


def get_tree(call_id: str, page_token: str) -> Operation[Page[Call]]:
    request = _message(agent.GetCallTreeRequest, call_id=call_id, page_token=page_token)
    return Operation("GetCallTree", request, _calls)


def watch_feedback(call_id: str) -> Operation[Feedback]:
    request = _message(agent.WatchFeedbackRequest, call_id=call_id)
    return Operation("WatchFeedback", request, lambda response: convert.feedback(response.feedback))


def explain_call(call_id: str) -> Operation[Story]:
    request = _message(agent.ExplainCallRequest, call_id=call_id)
    return Operation("ExplainCall", request, lambda response: convert.story(response.story))


def get_suggestion(command: Sequence[str], project: str) -> Operation[Suggestion]:
    request = _message(agent.GetSuggestionRequest, command=command, project=project)
    return Operation("GetSuggestion", request, lambda response: convert.suggestion(response.suggestion))


# ---- OperatorService -------------------------------------------------------------------------------------------------


def _session(response: Any) -> Session:
    return convert.session(response.session)


def create_session(
    name: str,
    budget: BudgetArguments,
    *,
    priority: Priority | str | None,
    owner_uid: int | None,
    owner_gid: int | None,
    labels: Mapping[str, str],
    ends_with_agent: bool,
    transparent: TransparentRule | str | None,
) -> Operation[Session]:
    request = _message(
        operator.CreateSessionRequest,
        name=name,
        budget=_message(convert.budget_message, budget=budget_of(budget)),
        priority=convert.number(priority_of(priority)),
        owner_uid=owner_uid,
        owner_gid=owner_gid,
        labels=dict(labels),
        ends_with_agent=ends_with_agent,
        transparent=convert.transparent_message(rule_of(transparent)),
    )
    return Operation("CreateSession", request, _session)


def list_sessions() -> Operation[list[Session]]:
    return Operation(
        "ListSessions",
        operator.ListSessionsRequest(),
        lambda response: [*map(convert.session, response.sessions)],
    )


def get_session(name: str) -> Operation[Session]:
    return Operation("GetSession", _message(operator.GetSessionRequest, name=name), _session)


def update_session(
    name: str,
    budget: BudgetArguments,
    priority: Priority | str | None,
    transparent: TransparentRule | str | None,
) -> Operation[Session]:
    request = _message(
        operator.UpdateSessionRequest,
        name=name,
        budget=_message(convert.budget_message, budget=budget_of(budget)),
        priority=convert.number(priority_of(priority)),
        transparent=convert.transparent_message(rule_of(transparent)),
    )
    return Operation("UpdateSession", request, _session)


def freeze_session(name: str, reason: str, include_agent: bool) -> Operation[Session]:
    request = _message(operator.FreezeSessionRequest, name=name, reason=reason, include_agent=include_agent)
    return Operation("FreezeSession", request, _session)


def thaw_session(name: str) -> Operation[Session]:
    return Operation("ThawSession", _message(operator.ThawSessionRequest, name=name), _session)


def kill_session(name: str, reason: str, include_agent: bool) -> Operation[int]:
    request = _message(operator.KillSessionRequest, name=name, reason=reason, include_agent=include_agent)
    return Operation("KillSession", request, lambda response: int(response.calls_killed))


def remove_session(name: str, reason: str) -> Operation[None]:
    return Operation(
        "RemoveSession", _message(operator.RemoveSessionRequest, name=name, reason=reason), _nothing
    )


def place_agent(name: str, process: ProcessRef) -> Operation[Session]:
    request = _message(
        operator.PlaceAgentRequest, name=name, process=_message(convert.process_message, process=process)
    )
    return Operation("PlaceAgent", request, _session)


def list_calls(session: str, page_token: str) -> Operation[Page[Call]]:
    request = _message(operator.ListCallsRequest, session=session, page_token=page_token)
    return Operation("ListCalls", request, _calls)


def operator_get_call(call_id: str) -> Operation[Call]:
    request = _message(operator.OperatorServiceGetCallRequest, call_id=call_id)
    return Operation("GetCall", request, lambda response: convert.call(response.call))


def update_call(call_id: str, arguments: IntentArguments) -> Operation[Answer]:
    request = _message(operator.UpdateCallRequest, call_id=call_id, intent=_intent(intent_of(arguments)))
    return Operation("UpdateCall", request, lambda response: convert.answer(response.answer))


def freeze_call(call_id: str, reason: str) -> Operation[Call]:
    request = _message(operator.FreezeCallRequest, call_id=call_id, reason=reason)
    return Operation("FreezeCall", request, lambda response: convert.call(response.call))


def thaw_call(call_id: str) -> Operation[Call]:
    request = _message(operator.ThawCallRequest, call_id=call_id)
    return Operation("ThawCall", request, lambda response: convert.call(response.call))


def kill_call(call_id: str, reason: str) -> Operation[Report]:
    request = _message(operator.KillCallRequest, call_id=call_id, reason=reason)
    return Operation("KillCall", request, lambda response: convert.report(response.report))


def watch_events(session: str) -> Operation[Feedback]:
    request = _message(operator.WatchEventsRequest, session=session)
    return Operation("WatchEvents", request, lambda response: convert.feedback(response.event))


def get_host() -> Operation[Host]:
    return Operation("GetHost", operator.GetHostRequest(), convert.host)


def drain_host(reason: str, deadline: Time | None) -> Operation[int]:
    request = _message(
        operator.DrainHostRequest, reason=reason, deadline_ms=duration_ms("deadline", deadline)
    )
    return Operation("DrainHost", request, lambda response: int(response.calls_live))


def resume_host() -> Operation[bool]:
    return Operation(
        "ResumeHost", operator.ResumeHostRequest(), lambda response: bool(response.was_draining)
    )


def reload_configuration() -> Operation[list[ConfigurationChange]]:
    return Operation(
        "ReloadConfiguration",
        operator.ReloadConfigurationRequest(),
        lambda response: [*map(convert.configuration_change, response.changes)],
    )


def list_history(
    session: str, verdict: Verdict | None, page_size: int, page_token: str
) -> Operation[Page[HistoryEntry]]:
    """Newest first."""
    request = _message(
        operator.ListHistoryRequest,
        session=session,
        verdict=convert.number(verdict),
        page_size=min(page_size, MOST_HISTORY_PAGE_SIZE),
        page_token=page_token,
    )

    def read(response: Any) -> Page[HistoryEntry]:
        return Page([*map(convert.history_entry, response.entries)], response.next_page_token)

    return Operation("ListHistory", request, read)


def operator_explain_call(call_id: str) -> Operation[Story]:
    request = _message(operator.OperatorServiceExplainCallRequest, call_id=call_id)
    return Operation("ExplainCall", request, lambda response: convert.story(response.story))


def list_events(session: str, call_id: str, page_size: int, page_token: str) -> Operation[Page[Event]]:
    """Newest first."""
    request = _message(
        operator.ListEventsRequest,
        session=session,
        call_id=call_id,
        page_size=min(page_size, MOST_HISTORY_PAGE_SIZE),
        page_token=page_token,
    )

    def read(response: Any) -> Page[Event]:
        return Page([*map(convert.event, response.events)], response.next_page_token)

    return Operation("ListEvents", request, read)


def operator_get_suggestion(command: Sequence[str], project: str) -> Operation[Suggestion]:
    request = _message(operator.OperatorServiceGetSuggestionRequest, command=command, project=project)
    return Operation("GetSuggestion", request, lambda response: convert.suggestion(response.suggestion))
