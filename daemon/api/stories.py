"""The story of one call, from what lives and what was written down; for its agent and for operators."""

import asyncio
from typing import Protocol

from agentcgroup.daemon.api import translate
from agentcgroup.daemon.controller import Controller
from agentcgroup.daemon.errors import Kind, RequestError
from agentcgroup.daemon.model import Story, ToolCall
from agentcgroup.proto.v1 import types_pb2


class Stories(Protocol):
    """The part of the history that tells about one call; blocks on the disk."""

    def story(self, call_id: str, session: str = "", since_ns: int = 0) -> Story: ...


async def story_of(
    controller: Controller, history: Stories, session: str | None, call_id: str
) -> types_pb2.Story:
    """What happened to a call, of `session` unless that is None. Raises RequestError: NOT_FOUND, or the history's."""
    if not call_id:
        raise RequestError(Kind.INVALID, "call_id is empty", "name the call to explain", "call_id")
    # A session of the same name may have been another agent's before.
    since_ns = 0 if session is None else controller.session(session).created_at_ns
    story = await asyncio.to_thread(history.story, call_id, session or "", since_ns)
    written = _written(controller, _live(controller, session, call_id), story)
    if written is None and not story.events:
        where, lists = (
            ("", "`agentcg history` and `agentcg call list` show")
            if session is None
            else (" in this session", "`agentcg call list` shows")
        )
        raise RequestError(
            Kind.NOT_FOUND,
            f"nothing is known of call {call_id[:64]!r}{where}",
            f"{lists} what there is; old calls leave the history",
            "call_id",
        )
    return types_pb2.Story(
        call=written, events=map(translate.write_event, story.events), events_left_out=story.left_out
    )


def _live(controller: Controller, session: str | None, call_id: str) -> ToolCall | None:
    try:
        return controller.call(session, call_id)
    except RequestError as error:
        if error.kind is not Kind.NOT_FOUND:
            raise
        return None


def _written(controller: Controller, call: ToolCall | None, story: Story) -> types_pb2.Call | None:
    if call is not None:
        return translate.write_call(call, controller.call_usage(call), controller.not_enforced)
    return None if story.entry is None else translate.write_recorded_call(story.entry)
