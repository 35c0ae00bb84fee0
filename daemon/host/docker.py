"""Follows Docker: a container with the label agentcgroup.session becomes a session, and ends as one.

The Docker SDK blocks, so it lives in a thread of its own, loaded only once there is a dockerd to talk to.
What is done to sessions happens on the event loop. A dockerd that is absent, or that systemd would start
only because somebody knocked, is looked for every 10 seconds; one that goes away is tried again with growing
pauses.
"""

import asyncio
import concurrent.futures
import contextlib
import logging
import os
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from agentcgroup.daemon.config import Config
from agentcgroup.daemon.errors import Kind, RequestError
from agentcgroup.daemon.host.container_sockets import lend, make_directory, take_back
from agentcgroup.daemon.host.containers import (
    LABEL,
    MOUNT_POINT,
    ContainerSession,
    container_cgroup,
    read_container,
)
from agentcgroup.daemon.model import BudgetRequest, Labels, Priority, Session, TransparentRule

__all__ = ["ContainerSessions", "DockerFollower", "is_asleep"]

log = logging.getLogger("agentcgroup.docker")

T = TypeVar("T")

_LOOK_AGAIN_S: Final = 10.0
_FIRST_PAUSE_S: Final = 1.0
_PAUSE_AFTER_FAULT_S: Final = 30.0
_REQUEST_TIMEOUT_S: Final = 30
# A container that is restarted can be back before its former session has gone.
_NAME_FREE_TRIES: Final = 10
_NAME_FREE_PAUSE_S: Final = 1.0
_STOP_WAIT_S: Final = 5.0
_NOTICE_STOP_S: Final = 0.5


class ContainerSessions(Protocol):
    """What the follower needs of the controller."""

    def sessions(self) -> list[Session]: ...

    async def adopt_session(
        self,
        name: str,
        request: BudgetRequest,
        *,
        cgroup_path: str,
        container_id: str,
        priority: Priority | None = None,
        owner_uid: int = 0,
        owner_gid: int = 0,
        labels: Labels = (),
        transparent: TransparentRule | None = None,
    ) -> Session:
        """A session on a running container's own cgroup."""


class DockerFollower:
    """Keeps the sessions in step with the labelled containers from `start` to `stop`."""

    def __init__(
        self, config: Config, controller: ContainerSessions, show_feedback: Callable[[str, Path], None]
    ) -> None:
        """`show_feedback` keeps the feedback files of a session in a directory, too. It raises OSError."""
        self._socket = config.docker.socket
        self._run_dir = Path(config.daemon.run_dir)
        self._controller = controller
        self._show_feedback = show_feedback
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        # The open event stream, closed from the loop to wake the thread.
        self._stream: Any = None
        self._stream_lock = threading.Lock()
        # Container id -> the directory its sockets were lent to. Touched on the loop only.
        self._adopted: dict[str, Path | None] = {}

    async def start(self) -> None:
        """Begin to follow. Returns at once; dockerd need not be there."""
        make_directory(self._run_dir)
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="docker", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """Stop following. The sessions stay: they end with their containers or with the daemon."""
        self._stopping.set()
        with self._stream_lock:
            _hang_up(self._stream)
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, _STOP_WAIT_S)
            if self._thread.is_alive():
                log.warning("dockerd does not answer; leaving its request behind")

    # ---- the thread

    def _run(self) -> None:
        pause_s, was_absent = 0.0, False
        while not self._stopping.wait(pause_s):
            pause_s = _LOOK_AGAIN_S
            if not os.path.exists(self._socket) or is_asleep(self._socket):
                if not was_absent:
                    log.info("no dockerd at %s yet; looking again every %.0f s", self._socket, pause_s)
                was_absent = True
                continue
            try:
                import docker
                from requests.exceptions import RequestException
            except ImportError as error:
                log.warning(
                    "containers are not followed: %s. Next step: pip install 'agentcgroup[daemon]',"
                    " or set docker.enabled = false",
                    error,
                )
                return
            was_absent = False
            try:
                for _ in self._follow(
                    docker.APIClient(f"unix://{self._socket}", timeout=_REQUEST_TIMEOUT_S)
                ):
                    pause_s = _FIRST_PAUSE_S
            except (docker.errors.DockerException, RequestException, OSError) as error:
                if not self._stopping.is_set():
                    log.warning("dockerd at %s: %s; trying again in %.0f s", self._socket, error, pause_s)
            except Exception:
                pause_s = _PAUSE_AFTER_FAULT_S
                log.exception("following containers failed; trying again in %.0f s", pause_s)

    def _follow(self, client: Any) -> Iterator[None]:
        """One connection, until it ends. Yields after each thing done, which shows that dockerd is well."""
        filters = {"type": "container", "label": LABEL, "event": ["start", "die"]}
        with contextlib.closing(client):
            # The events first, so that nothing falls between them and the list.
            stream = client.events(filters=filters, decode=True)
            with self._stream_lock:
                self._stream = stream
                if self._stopping.is_set():
                    _hang_up(stream)
            try:
                running = [str(each["Id"]) for each in client.containers(filters={"label": LABEL})]
                log.info("following containers with the label %s at %s", LABEL, self._socket)
                self._on_loop(self._forget_all_but(frozenset(running)))
                for container_id in running:
                    self._offer(client, container_id)
                yield
                for event in stream:
                    container_id = str(event["Actor"]["ID"])
                    if event["Action"] == "start":
                        self._offer(client, container_id)
                    else:
                        self._on_loop(self._forget(container_id))
                    yield
            finally:
                with self._stream_lock:
                    self._stream = None
        if not self._stopping.is_set():
            log.info("dockerd at %s has closed the connection", self._socket)

    def _offer(self, client: Any, container_id: str) -> None:
        from docker.errors import NotFound

        try:
            container = read_container(client.inspect_container(container_id))
        except NotFound:
            return  # it was gone before it could be looked at
        except RequestError as error:
            log.error("container %s does not become a session: %s", container_id[:12], error)
            return
        self._on_loop(self._adopt(container))

    def _on_loop(self, work: Coroutine[Any, Any, T]) -> T | None:
        """Run `work` on the event loop and wait for it; None when the follower is stopped meanwhile."""
        assert self._loop is not None
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        while not self._stopping.is_set():
            if concurrent.futures.wait([future], _NOTICE_STOP_S).done:
                return future.result()
        future.cancel()
        return None

    # ---- the event loop

    async def _adopt(self, container: ContainerSession) -> None:
        if container.container_id in self._adopted:
            return
        name = container.container_name
        try:
            session = await self._open(container)
        except RequestError as error:
            log.error("container %s does not become a session: %s", name, error)
            return
        self._adopted[container.container_id] = None
        source = container.mount_source
        if source is None:
            log.warning(
                "container %s is session %s, but cannot reach it: nothing is mounted at %s."
                " Next step: docker run -v %s/containers/%s:%s:ro ...",
                name, session.name, MOUNT_POINT, self._run_dir, session.name, MOUNT_POINT,
            )  # fmt: skip
            return
        try:
            self._lend(session, source)
        except RequestError as error:
            log.error("container %s is session %s, but cannot reach it: %s", name, session.name, error)
            return
        self._adopted[container.container_id] = source
        log.info("container %s is session %s", name, session.name)

    async def _open(self, container: ContainerSession) -> Session:
        tries = _NAME_FREE_TRIES
        while True:
            try:
                return await self._controller.adopt_session(
                    container.name,
                    container.request,
                    cgroup_path=container_cgroup(container),
                    container_id=container.container_id,
                    priority=container.priority,
                    labels=container.labels,
                    transparent=container.transparent,
                )
            except RequestError as error:
                tries -= 1
                if error.kind is not Kind.EXISTS or not tries:
                    raise
            await asyncio.sleep(_NAME_FREE_PAUSE_S)

    def _lend(self, session: Session, source: Path) -> None:
        if source in self._adopted.values():
            raise RequestError(
                Kind.INVALID, f"{source} is mounted in another container too", "mount a directory of its own"
            )
        lend(Path(session.socket_dir), source, self._run_dir)
        try:
            self._show_feedback(session.name, source)
        except OSError as error:
            log.warning("session %s has no feedback files in %s: %s", session.name, source, error)

    async def _forget(self, container_id: str) -> None:
        """The container has ended. Its session ends with its cgroup, which the host watches."""
        source = self._adopted.pop(container_id, None)
        if source is not None:
            take_back(source)

    async def _forget_all_but(self, running: frozenset[str]) -> None:
        """What ended while nobody was listening."""
        for container_id in self._adopted.keys() - running:
            await self._forget(container_id)


def _hang_up(stream: Any) -> None:
    if stream is None:
        return
    # Closed already, or closing on its own.
    with contextlib.suppress(OSError, AttributeError):
        stream.close()


def is_asleep(socket_path: str) -> bool:
    """Whether systemd holds the socket for a dockerd that does not run: to connect would start it.

    Starting services is the operator's decision, so the follower waits until a dockerd is there.
    """
    inode = _listening_inode(os.path.realpath(socket_path))
    return inode is not None and _holds(1, inode) and not _runs(frozenset({"dockerd", "podman"}))


def _listening_inode(path: str) -> str | None:
    # Num RefCount Protocol Flags Type St Inode Path; the flag 00010000 is __SO_ACCEPTCON.
    with open("/proc/net/unix", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            fields = line.split(maxsplit=7)
            if (
                len(fields) == 8
                and fields[3] == "00010000"
                and os.path.realpath(fields[7].rstrip("\n")) == path
            ):
                return fields[6]
    return None


def _holds(pid: int, inode: str) -> bool:
    target = f"socket:[{inode}]"
    try:
        numbers = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return False
    for number in numbers:
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/{pid}/fd/{number}") == target:
                return True
    return False


def _runs(names: frozenset[str]) -> bool:
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        with (
            contextlib.suppress(OSError),
            open(f"/proc/{entry}/comm", encoding="utf-8", errors="replace") as file,
        ):
            if file.read().strip() in names:
                return True
    return False
