"""The sockets: one gRPC server for operators, and for each session one for its agent and a door for its launchers.

Identity is the socket. gRPC on a Unix socket shows no peer (grpc issue 28755), so each session has a server
of its own, which costs a file descriptor and a few kilobytes; they share one event loop and gRPC's threads.
"""

import asyncio
import contextlib
import logging
from collections.abc import Collection, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from agentcgroup.daemon.api import sockets
from agentcgroup.daemon.api.agent_service import AgentService
from agentcgroup.daemon.api.door import BACKLOG, LaunchDoor
from agentcgroup.daemon.api.feedback_file import FeedbackFiles
from agentcgroup.daemon.api.guard import Guard
from agentcgroup.daemon.api.operator_service import HistoryReader, OperatorService
from agentcgroup.daemon.config import Config, ConfigError
from agentcgroup.daemon.controller import Controller
from agentcgroup.daemon.door.native import NativeDoor
from agentcgroup.daemon.errors import Kind, RequestError
from agentcgroup.daemon.model import Session
from agentcgroup.daemon.reload import Reloader
from agentcgroup.proto.v1 import agent_pb2, agent_pb2_grpc, operator_pb2, operator_pb2_grpc

log = logging.getLogger("agentcgroup.api")

# The largest request is an intent of a few kilobytes, the largest answer a page of calls or of the history.
_MOST_REQUEST_BYTES: Final = 1 << 20
_MOST_RESPONSE_BYTES: Final = 8 << 20
# One caller can neither use up the daemon's descriptors nor its memory: each bound is a session's own.
_MOST_CONNECTIONS: Final = 256
_MOST_STREAMS_PER_CONNECTION: Final = 256
_MOST_RPCS: Final = 512
# How long running requests may go on when a socket closes; watching streams are ended before.
_SESSION_GRACE_S: Final = 0.5
_STOP_GRACE_S: Final = 2.0
_DRAIN_S: Final = 5.0

_OPTIONS: Final[tuple[tuple[str, Any], ...]] = (
    ("grpc.max_receive_message_length", _MOST_REQUEST_BYTES),
    ("grpc.max_send_message_length", _MOST_RESPONSE_BYTES),
    ("grpc.max_concurrent_streams", _MOST_STREAMS_PER_CONNECTION),
    ("grpc.max_allowed_incoming_connections", _MOST_CONNECTIONS),
)
_AGENT: Final = agent_pb2.DESCRIPTOR.services_by_name["AgentService"].full_name
_OPERATOR: Final = operator_pb2.DESCRIPTOR.services_by_name["OperatorService"].full_name


@dataclass(slots=True)
class _Served:
    """The sockets of one session."""

    path: Path
    server: grpc.aio.Server
    service: AgentService
    door: LaunchDoor
    files: list[FeedbackFiles]


class Api:
    """Every socket of the daemon. Implements the controller's Doors."""

    def __init__(
        self,
        config: Config,
        controller: Controller,
        history: HistoryReader,
        reloader: Reloader,
        native: NativeDoor | None = None,
    ) -> None:
        """`native` is the thread that serves prepared calls, where there is one; it outlives the sockets."""
        self._run_dir: Final = Path(config.daemon.run_dir)
        self._operator_group: Final = config.daemon.operator_group
        self._controller: Final = controller
        self._history: Final = history
        self._guard: Final = Guard(controller.counters, "/agentcgroup.")
        self._operators: Final = OperatorService(controller, history, reloader)
        self._operator_server: grpc.aio.Server | None = None
        self._sessions: Final[dict[str, _Served]] = {}
        self._native: Final = native
        self._operator_gid: int | None = None
        # Sessions of an earlier daemon that have not been opened yet.
        self._kept: set[str] = set()

    # ---- the operators' socket

    def prepare(self, kept: Collection[str] = ()) -> None:
        """Makes the run directory ready; `kept`: sessions of an earlier daemon, opened before the operators' socket is.

        Raises ConfigError. The caller holds the lock of the only daemon.
        """
        self._operator_gid = sockets.operator_gid(self._operator_group)
        sockets.prepare_run_dir(self._run_dir, kept)
        self._kept = set(kept)

    async def start(self) -> None:
        """Opens the operators' socket, after `prepare`. Raises ConfigError."""
        path = self._run_dir / sockets.OPERATOR_SOCKET
        server = self._new_server()
        operator_pb2_grpc.add_OperatorServiceServicer_to_server(self._operators, server)
        await _add_standard_services(server, _OPERATOR)
        staged = sockets.make_staging_dir(self._run_dir)
        try:
            server.add_insecure_port(sockets.address(staged / sockets.OPERATOR_SOCKET))
        except RuntimeError as error:
            raise ConfigError(f"daemon.run_dir: the socket {path} cannot be bound: {error}") from error
        sockets.give_to_operators(staged / sockets.OPERATOR_SOCKET, path, self._operator_gid)
        staged.rmdir()
        await server.start()
        self._operator_server = server

    async def stop(self, *, sessions_stay: bool = False) -> None:
        """Closes every socket; requests that are being worked on get a moment. The core is still there.

        `sessions_stay`: directories and names of sockets are left for the next daemon.
        """
        await asyncio.gather(*(self._close(name, stays=sessions_stay) for name in list(self._sessions)))
        if self._operator_server is not None:
            self._operators.close()
            await _stop(self._operator_server, _STOP_GRACE_S, "operators")
            self._operator_server = None
            (self._run_dir / sockets.OPERATOR_SOCKET).unlink(missing_ok=True)
        if not await self._guard.drain(_DRAIN_S):
            log.warning(
                "some requests are still being worked on after %.0f s; stopping without them", _DRAIN_S
            )

    # ---- a session's sockets

    async def open(self, session: Session) -> None:
        """Opens the sockets of `session` in its socket_dir. Raises RequestError; then nothing is left of them."""
        path = Path(session.socket_dir)
        kept = session.name in self._kept
        self._kept.discard(session.name)
        sockets.make_session_dir(path, kept=kept)
        async with contextlib.AsyncExitStack() as undo:
            undo.callback(_remove, path)
            staged = sockets.make_staging_dir(self._run_dir)
            undo.callback(_remove, staged)
            server = self._new_server()
            service = AgentService(self._controller, self._history, session.name)
            agent_pb2_grpc.add_AgentServiceServicer_to_server(service, server)
            await _add_standard_services(server, _AGENT)
            _bind(server, staged / sockets.AGENT_SOCKET)
            undo.push_async_callback(server.stop, None)
            listener = sockets.listen_for_launchers(staged / sockets.LAUNCH_SOCKET, BACKLOG)
            undo.callback(listener.close)
            try:
                files = FeedbackFiles(self._controller.feed, session, path)
            except OSError as error:
                raise RequestError(
                    Kind.HOST, f"{path} cannot be opened: {error}", "look at the directory's rights"
                ) from error
            undo.callback(files.close)
            sockets.give_to_owner(staged, path, session.owner_uid, session.owner_gid)
            _remove(staged)
            await server.start()
            door = LaunchDoor(self._controller, session.name, listener, self._native)
            self._sessions[session.name] = _Served(path, server, service, door, [files])
            undo.pop_all()

    async def close(self, name: str) -> None:
        """Closes the session's sockets and removes their directory. A name without sockets is no error."""
        await self._close(name, stays=False)

    def show_feedback(self, name: str, directory: Path) -> None:
        """Keeps the feedback files of session `name` in `directory`, too, for whoever gets there to read. Raises OSError."""
        self._sessions[name].files.append(
            FeedbackFiles(self._controller.feed, self._controller.session(name), directory, mode=0o644)
        )

    def hear(self) -> None:
        """Has every call begin that the doors' thread has answered and not told of yet."""
        if self._native is not None:
            self._native.pump()

    async def _close(self, name: str, *, stays: bool) -> None:
        served = self._sessions.pop(name, None)
        if served is None:
            return
        served.door.close(hang_up=stays)
        for files in served.files:
            files.close()
        served.service.close()
        await _stop(served.server, _SESSION_GRACE_S, name)
        if not stays:
            # The threads are everybody's: what else waits in them is not this session's affair.
            remove = asyncio.to_thread(_remove, served.path)
            await _within(remove, _DRAIN_S, f"{served.path} has not been removed")

    def _new_server(self) -> grpc.aio.Server:
        return grpc.aio.server(
            interceptors=(self._guard,), options=_OPTIONS, maximum_concurrent_rpcs=_MOST_RPCS
        )


async def _add_standard_services(server: grpc.aio.Server, service: str) -> None:
    """grpc.health.v1, for the server and for `service`, and reflection."""
    servicer = health.aio.HealthServicer()
    await servicer.set(service, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    reflection.enable_server_reflection((service, health.SERVICE_NAME, reflection.SERVICE_NAME), server)


async def _stop(server: grpc.aio.Server, grace_s: float, whose: str) -> None:
    await _within(server.stop(grace_s), grace_s + _DRAIN_S, f"the gRPC server of {whose} has not stopped")


async def _within(work: Coroutine[Any, Any, None], at_most_s: float, complaint: str) -> None:
    """Waits for `work`, which goes on by itself when that takes longer: a session's end must not wait for it for ever."""
    done, _ = await asyncio.wait({asyncio.ensure_future(work)}, timeout=at_most_s)
    if not done:
        log.warning("%s in %.0f s; going on without it", complaint, at_most_s)


def _bind(server: grpc.aio.Server, path: Path) -> None:
    try:
        server.add_insecure_port(sockets.address(path))
    except RuntimeError as error:
        raise RequestError(
            Kind.HOST,
            f"the socket {path} cannot be bound: {error}",
            "look at the directory's rights and free space",
        ) from error


def _remove(path: Path) -> None:
    try:
        sockets.remove_session_dir(path)
    except OSError as error:
        # Harmless: the next session of that name and the next start remove it.
        log.warning("%s cannot be removed: %s", path, error)
