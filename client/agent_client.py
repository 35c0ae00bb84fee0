"""Clients of AgentService, for agents, their harnesses and their tools: one session, the one whose socket they reach."""

import os
from collections.abc import AsyncIterator, Iterator, Sequence
from functools import partial
from types import TracebackType
from typing import Self, Unpack

from agentcgroup.client import operations, places
from agentcgroup.client.arguments import IntentArguments, Time, duration_ms, intent_of
from agentcgroup.client.call_scope import AsyncCallScope, CallScope
from agentcgroup.client.channels import DEFAULT_TIMEOUT_S, AsyncChannel, SyncChannel
from agentcgroup.client.declaring import OnQueued, Wish, declare, declare_async
from agentcgroup.client.processes import reference
from agentcgroup.client.values import Answer, Call, Feedback, Report, SessionLimits, Story, Suggestion
from agentcgroup.proto.v1.agent_pb2_grpc import AgentServiceStub

# Set by the daemon for every tool: a call declared inside a call runs inside its limits.
CALL_ID_VARIABLE = "AGENTCGROUP_CALL_ID"


def _parent(given: str | None) -> str:
    """The call that was named, else the one around this process; "" for none."""
    return os.environ.get(CALL_ID_VARIABLE, "") if given is None else given


class Client:
    """Blocking client; a context manager. `session_dir` is found as the launcher finds it (see `places`).

    Everything raises ClientError. Keyword arguments of an intent are named as the options of `agentcg run`: memory="2G",
    memory_max=3 * 2**30, cpu=1.5, timeout="10m". `parent_call_id` is the call inside which a new one runs; by default the
    one in which this process runs, "" for none.
    """

    def __init__(
        self, session_dir: str | os.PathLike[str] | None = None, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> None:
        self.session_dir = places.session_dir(session_dir)
        socket_path = os.path.join(self.session_dir, places.AGENT_SOCKET_NAME)
        self._channel = SyncChannel(socket_path, AgentServiceStub, timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._channel.close()

    def limits(self, call_id: str | None = None) -> SessionLimits:
        """The true limits of a live call, by default the one in which this process runs, or of the session ("")."""
        return self._channel.perform(operations.get_limits(_parent(call_id)))

    def call(
        self,
        *,
        parent_call_id: str | None = None,
        wait: Time | None = None,
        on_queued: OnQueued | None = None,
        **arguments: Unpack[IntentArguments],
    ) -> CallScope:
        """A call with these limits, for a with statement; see CallScope and, for the queue, `declare`."""
        wish = Wish(intent_of(arguments), _parent(parent_call_id), duration_ms("wait", wait), on_queued)
        return CallScope(self._channel, self.session_dir, wish)

    def declare(
        self,
        *,
        parent_call_id: str | None = None,
        wait: Time | None = None,
        on_queued: OnQueued | None = None,
        **arguments: Unpack[IntentArguments],
    ) -> Answer:
        """Declares an intent; a refusal is an Answer. A grant that is not begun lapses at `expires_at`.

        When there is no room it waits its turn in the daemon's queue, at most for `wait` (0: not at all; None: as the
        daemon is configured); `on_queued` hears where it stands.
        """
        wish = Wish(intent_of(arguments), _parent(parent_call_id), duration_ms("wait", wait), on_queued)
        return declare(self._channel, wish)

    def begin(self, call_id: str, pid: int) -> Call:
        """Begins a declared call by moving the running process `pid`, with all its threads, into it."""
        return self._channel.perform(operations.begin(call_id, reference(pid)))

    def ticket(self, call_id: str) -> str:
        """What `agentcg run --ticket` begins a declared call with; good once."""
        return self._channel.perform(operations.ticket(call_id))

    def adjust(self, call_id: str, **arguments: Unpack[IntentArguments]) -> Answer:
        """Asks for other limits for a running call; what is left out stays."""
        return self._channel.perform(operations.adjust(call_id, arguments))

    def finish(self, call_id: str, exit_code: int | None = None) -> Report:
        """Ends a call, kills what is left of it; also gives back a grant that was not begun."""
        return self._channel.perform(operations.finish(call_id, exit_code))

    def get(self, call_id: str) -> Call:
        """One call of the session, also a recently ended one."""
        return self._channel.perform(operations.get_call(call_id))

    def tree(self, call_id: str = "") -> list[Call]:
        """The live calls of the session, or of `call_id` and what runs inside it; parents first."""
        return list(self._channel.pages(partial(operations.get_tree, call_id)))

    def suggestion(self, command: Sequence[str], *, project: str = "") -> Suggestion:
        """What runs of `command` needed so far in `project`, that of the session by default."""
        return self._channel.perform(operations.get_suggestion(command, project))

    def explain(self, call_id: str) -> Story:
        """Every decision about a call of the session, live or ended, with what it was made from."""
        return self._channel.perform(operations.explain_call(call_id))

    def watch(self, call_id: str = "") -> Iterator[Feedback]:
        """What happens to the session's calls, or to `call_id` and what runs inside it, until the session ends."""
        return self._channel.stream(operations.watch_feedback(call_id))


class AsyncClient:
    """The same for asyncio; `async with` it, or `await close()`."""

    def __init__(
        self, session_dir: str | os.PathLike[str] | None = None, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> None:
        self.session_dir = places.session_dir(session_dir)
        socket_path = os.path.join(self.session_dir, places.AGENT_SOCKET_NAME)
        self._channel = AsyncChannel(socket_path, AgentServiceStub, timeout_s)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._channel.close()

    async def limits(self, call_id: str | None = None) -> SessionLimits:
        """The true limits of a live call, by default the one in which this process runs, or of the session ("")."""
        return await self._channel.perform(operations.get_limits(_parent(call_id)))

    def call(
        self,
        *,
        parent_call_id: str | None = None,
        wait: Time | None = None,
        on_queued: OnQueued | None = None,
        **arguments: Unpack[IntentArguments],
    ) -> AsyncCallScope:
        """A call with these limits, for an async with statement; see CallScope and, for the queue, `Client.declare`."""
        wish = Wish(intent_of(arguments), _parent(parent_call_id), duration_ms("wait", wait), on_queued)
        return AsyncCallScope(self._channel, self.session_dir, wish)

    async def declare(
        self,
        *,
        parent_call_id: str | None = None,
        wait: Time | None = None,
        on_queued: OnQueued | None = None,
        **arguments: Unpack[IntentArguments],
    ) -> Answer:
        """As `Client.declare`; cancelling the task gives the place in the queue up."""
        wish = Wish(intent_of(arguments), _parent(parent_call_id), duration_ms("wait", wait), on_queued)
        return await declare_async(self._channel, wish)

    async def begin(self, call_id: str, pid: int) -> Call:
        """Begins a declared call by moving the running process `pid`, with all its threads, into it."""
        return await self._channel.perform(operations.begin(call_id, reference(pid)))

    async def ticket(self, call_id: str) -> str:
        """What `agentcg run --ticket` begins a declared call with; good once."""
        return await self._channel.perform(operations.ticket(call_id))

    async def adjust(self, call_id: str, **arguments: Unpack[IntentArguments]) -> Answer:
        """Asks for other limits for a running call; what is left out stays."""
        return await self._channel.perform(operations.adjust(call_id, arguments))

    async def finish(self, call_id: str, exit_code: int | None = None) -> Report:
        """Ends a call, kills what is left of it; also gives back a grant that was not begun."""
        return await self._channel.perform(operations.finish(call_id, exit_code))

    async def get(self, call_id: str) -> Call:
        """One call of the session, also a recently ended one."""
        return await self._channel.perform(operations.get_call(call_id))

    async def tree(self, call_id: str = "") -> list[Call]:
        """The live calls of the session, or of `call_id` and what runs inside it; parents first."""
        return [call async for call in self._channel.pages(partial(operations.get_tree, call_id))]

    async def suggestion(self, command: Sequence[str], *, project: str = "") -> Suggestion:
        """What runs of `command` needed so far in `project`, that of the session by default."""
        return await self._channel.perform(operations.get_suggestion(command, project))

    async def explain(self, call_id: str) -> Story:
        """Every decision about a call of the session, live or ended, with what it was made from."""
        return await self._channel.perform(operations.explain_call(call_id))

    def watch(self, call_id: str = "") -> AsyncIterator[Feedback]:
        """What happens to the session's calls, or to `call_id` and what runs inside it, until the session ends."""
        return self._channel.stream(operations.watch_feedback(call_id))
