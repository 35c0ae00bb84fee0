"""Clients of OperatorService, for whoever runs the host: sessions, calls, the host's state, history."""

import os
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from types import TracebackType
from typing import Final, Self, Unpack

from agentcgroup.client import operations, places
from agentcgroup.client.arguments import BudgetArguments, IntentArguments, Time
from agentcgroup.client.channels import DEFAULT_TIMEOUT_S, AsyncChannel, SyncChannel
from agentcgroup.client.processes import reference
from agentcgroup.client.values import (
    Answer,
    Call,
    ConfigurationChange,
    Event,
    Feedback,
    HistoryEntry,
    Host,
    Priority,
    Report,
    Session,
    Story,
    Suggestion,
    TransparentRule,
    Verdict,
)
from agentcgroup.proto.v1.operator_pb2_grpc import OperatorServiceStub

DEFAULT_HISTORY_LIMIT: Final = 100


class OperatorClient:
    """Blocking client; a context manager. `socket` is found in $AGENTCGROUP_OPERATOR_SOCKET, else where the daemon makes it.

    Everything raises ClientError. Keyword arguments of a budget are named as the options of `agentcg session create`:
    memory="4G", agent_memory="512M", cpu=2, pids=500. A `reason` is told to the agent and kept in the history.
    """

    def __init__(
        self, socket: str | os.PathLike[str] | None = None, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> None:
        self.socket = places.operator_socket(socket)
        self._channel = SyncChannel(self.socket, OperatorServiceStub, timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._channel.close()

    def create_session(
        self, name: str, *, priority: Priority | str | None = None, owner_uid: int | None = None,
        owner_gid: int | None = None, labels: Mapping[str, str] = operations.NO_LABELS, ends_with_agent: bool = False,
        transparent: TransparentRule | str | None = None, **budget: Unpack[BudgetArguments],
    ) -> Session:  # fmt: skip
        """Makes a session. `ends_with_agent`: it is removed when its last agent process has ended.

        `transparent`: which commands become calls without asking, "all,exclude=git"; None: the daemon's default.
        """
        return self._channel.perform(
            operations.create_session(
                name, budget, priority=priority, owner_uid=owner_uid, owner_gid=owner_gid, labels=labels,
                ends_with_agent=ends_with_agent, transparent=transparent,
            )
        )  # fmt: skip

    def sessions(self) -> list[Session]:
        return self._channel.perform(operations.list_sessions())

    def session(self, name: str) -> Session:
        return self._channel.perform(operations.get_session(name))

    def update_session(
        self, name: str, *, priority: Priority | str | None = None, transparent: TransparentRule | str | None = None,
        **budget: Unpack[BudgetArguments],
    ) -> Session:  # fmt: skip
        """Changes a live session; what is left out stays."""
        return self._channel.perform(operations.update_session(name, budget, priority, transparent))

    def freeze_session(self, name: str, *, reason: str = "", include_agent: bool = False) -> Session:
        return self._channel.perform(operations.freeze_session(name, reason, include_agent))

    def thaw_session(self, name: str) -> Session:
        return self._channel.perform(operations.thaw_session(name))

    def kill_session(self, name: str, *, reason: str = "", include_agent: bool = False) -> int:
        """Kills the session's calls, and the agent too when asked; the number of calls killed. The session stays."""
        return self._channel.perform(operations.kill_session(name, reason, include_agent))

    def remove_session(self, name: str, *, reason: str = "") -> None:
        """Kills everything in the session and removes it. Its history stays."""
        self._channel.perform(operations.remove_session(name, reason))

    def place_agent(self, name: str, pid: int) -> Session:
        """Moves the running process `pid` into the session's agent leaf, with its later children."""
        return self._channel.perform(operations.place_agent(name, reference(pid)))

    def calls(self, session: str = "") -> list[Call]:
        """Live calls of `session`, or of all; parents first."""
        return list(self._channel.pages(partial(operations.list_calls, session)))

    def call(self, call_id: str) -> Call:
        return self._channel.perform(operations.operator_get_call(call_id))

    def update_call(self, call_id: str, **arguments: Unpack[IntentArguments]) -> Answer:
        """Sets other limits for a running call; what is left out stays."""
        return self._channel.perform(operations.update_call(call_id, arguments))

    def freeze_call(self, call_id: str, *, reason: str = "") -> Call:
        return self._channel.perform(operations.freeze_call(call_id, reason))

    def thaw_call(self, call_id: str) -> Call:
        return self._channel.perform(operations.thaw_call(call_id))

    def kill_call(self, call_id: str, *, reason: str = "") -> Report:
        return self._channel.perform(operations.kill_call(call_id, reason))

    def watch(self, session: str = "") -> Iterator[Feedback]:
        """Everything that happens to `session`, or to all."""
        return self._channel.stream(operations.watch_events(session))

    def host(self) -> Host:
        return self._channel.perform(operations.get_host())

    def drain_host(self, *, reason: str = "", deadline: Time | None = None) -> int:
        """Lets nothing new begin; how many calls still run. After `deadline` ("10m") they are killed; None: never."""
        return self._channel.perform(operations.drain_host(reason, deadline))

    def resume_host(self) -> bool:
        """Ends a drain; False: there was none."""
        return self._channel.perform(operations.resume_host())

    def reload_configuration(self) -> list[ConfigurationChange]:
        """What the file says differently now. A wrong file is InvalidRequest and changes nothing."""
        return self._channel.perform(operations.reload_configuration())

    def history(
        self, session: str = "", *, verdict: Verdict | None = None, limit: int = DEFAULT_HISTORY_LIMIT
    ) -> Iterator[HistoryEntry]:
        """At most `limit` ended calls, newest first."""
        if limit > 0:
            yield from islice(
                self._channel.pages(partial(operations.list_history, session, verdict, limit)), limit
            )

    def suggestion(self, command: Sequence[str], *, project: str = "") -> Suggestion:
        """What runs of `command` needed so far in `project`, "" for calls of no project."""
        return self._channel.perform(operations.operator_get_suggestion(command, project))

    def explain(self, call_id: str) -> Story:
        """Every decision about a call, live or ended, with what it was made from."""
        return self._channel.perform(operations.operator_explain_call(call_id))

    def events(
        self, session: str = "", *, call_id: str = "", limit: int = DEFAULT_HISTORY_LIMIT
    ) -> Iterator[Event]:
        """At most `limit` decisions, newest first."""
        if limit > 0:
            yield from islice(
                self._channel.pages(partial(operations.list_events, session, call_id, limit)), limit
            )


class AsyncOperatorClient:
    """The same for asyncio; `async with` it, or `await close()`."""

    def __init__(
        self, socket: str | os.PathLike[str] | None = None, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> None:
        self.socket = places.operator_socket(socket)
        self._channel = AsyncChannel(self.socket, OperatorServiceStub, timeout_s)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._channel.close()

    async def create_session(
        self, name: str, *, priority: Priority | str | None = None, owner_uid: int | None = None,
        owner_gid: int | None = None, labels: Mapping[str, str] = operations.NO_LABELS, ends_with_agent: bool = False,
        transparent: TransparentRule | str | None = None, **budget: Unpack[BudgetArguments],
    ) -> Session:  # fmt: skip
        """Makes a session. `ends_with_agent`: it is removed when its last agent process has ended.

        `transparent`: which commands become calls without asking, "all,exclude=git"; None: the daemon's default.
        """
        return await self._channel.perform(
            operations.create_session(
                name, budget, priority=priority, owner_uid=owner_uid, owner_gid=owner_gid, labels=labels,
                ends_with_agent=ends_with_agent, transparent=transparent,
            )
        )  # fmt: skip

    async def sessions(self) -> list[Session]:
        return await self._channel.perform(operations.list_sessions())

    async def session(self, name: str) -> Session:
        return await self._channel.perform(operations.get_session(name))

    async def update_session(
        self, name: str, *, priority: Priority | str | None = None, transparent: TransparentRule | str | None = None,
        **budget: Unpack[BudgetArguments],
    ) -> Session:  # fmt: skip
        """Changes a live session; what is left out stays."""
        return await self._channel.perform(operations.update_session(name, budget, priority, transparent))

    async def freeze_session(self, name: str, *, reason: str = "", include_agent: bool = False) -> Session:
        return await self._channel.perform(operations.freeze_session(name, reason, include_agent))

    async def thaw_session(self, name: str) -> Session:
        return await self._channel.perform(operations.thaw_session(name))

    async def kill_session(self, name: str, *, reason: str = "", include_agent: bool = False) -> int:
        """Kills the session's calls, and the agent too when asked; the number of calls killed. The session stays."""
        return await self._channel.perform(operations.kill_session(name, reason, include_agent))

    async def remove_session(self, name: str, *, reason: str = "") -> None:
        """Kills everything in the session and removes it. Its history stays."""
        await self._channel.perform(operations.remove_session(name, reason))

    async def place_agent(self, name: str, pid: int) -> Session:
        """Moves the running process `pid` into the session's agent leaf, with its later children."""
        return await self._channel.perform(operations.place_agent(name, reference(pid)))

    async def calls(self, session: str = "") -> list[Call]:
        """Live calls of `session`, or of all; parents first."""
        return [call async for call in self._channel.pages(partial(operations.list_calls, session))]

    async def call(self, call_id: str) -> Call:
        return await self._channel.perform(operations.operator_get_call(call_id))

    async def update_call(self, call_id: str, **arguments: Unpack[IntentArguments]) -> Answer:
        """Sets other limits for a running call; what is left out stays."""
        return await self._channel.perform(operations.update_call(call_id, arguments))

    async def freeze_call(self, call_id: str, *, reason: str = "") -> Call:
        return await self._channel.perform(operations.freeze_call(call_id, reason))

    async def thaw_call(self, call_id: str) -> Call:
        return await self._channel.perform(operations.thaw_call(call_id))

    async def kill_call(self, call_id: str, *, reason: str = "") -> Report:
        return await self._channel.perform(operations.kill_call(call_id, reason))

    def watch(self, session: str = "") -> AsyncIterator[Feedback]:
        """Everything that happens to `session`, or to all."""
        return self._channel.stream(operations.watch_events(session))

    async def host(self) -> Host:
        return await self._channel.perform(operations.get_host())

    async def drain_host(self, *, reason: str = "", deadline: Time | None = None) -> int:
        return await self._channel.perform(operations.drain_host(reason, deadline))

    async def resume_host(self) -> bool:
        return await self._channel.perform(operations.resume_host())

    async def reload_configuration(self) -> list[ConfigurationChange]:
        return await self._channel.perform(operations.reload_configuration())

    async def history(
        self, session: str = "", *, verdict: Verdict | None = None, limit: int = DEFAULT_HISTORY_LIMIT
    ) -> AsyncIterator[HistoryEntry]:
        """At most `limit` ended calls, newest first."""
        left = limit
        if left <= 0:
            return
        async for entry in self._channel.pages(partial(operations.list_history, session, verdict, limit)):
            yield entry
            left -= 1
            if left == 0:
                return

    async def suggestion(self, command: Sequence[str], *, project: str = "") -> Suggestion:
        """What runs of `command` needed so far in `project`, "" for calls of no project."""
        return await self._channel.perform(operations.operator_get_suggestion(command, project))

    async def explain(self, call_id: str) -> Story:
        """Every decision about a call, live or ended, with what it was made from."""
        return await self._channel.perform(operations.operator_explain_call(call_id))

    async def events(
        self, session: str = "", *, call_id: str = "", limit: int = DEFAULT_HISTORY_LIMIT
    ) -> AsyncIterator[Event]:
        """At most `limit` decisions, newest first."""
        left = limit
        if left <= 0:
            return
        async for event in self._channel.pages(partial(operations.list_events, session, call_id, limit)):
            yield event
            left -= 1
            if left == 0:
                return
