"""The session of one random sequence: made, listened to, looked at after every step, and removed without a trace."""

import asyncio
import signal
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

from agentcgroup.client import (
    AsyncClient,
    AsyncOperatorClient,
    Call,
    CallState,
    Feedback,
    FeedbackKind,
)
from agentcgroup.client.errors import (
    AlreadyExists,
    Exhausted,
    InvalidRequest,
    NotFound,
    Refused,
    Unreachable,
    WrongState,
)
from tests.running import RunningDaemon
from tests.sequences import checks, kernel
from tests.sequences.steps import Script

MIB: Final = 1 << 20
# Far more than anything here takes on a machine that is busy with something else.
PATIENCE_S: Final = 120.0
# What a request may be answered with when it makes no sense in the state that the sequence happens to have reached.
EXPECTED: Final = (AlreadyExists, Exhausted, InvalidRequest, NotFound, Refused, WrongState)


@dataclass(frozen=True, slots=True)
class Place:
    """The daemon that is played against. `has_limits`: whether there is a memory controller; without it a MiB is enough."""

    daemon: RunningDaemon
    operator: AsyncOperatorClient
    has_limits: bool
    draining: asyncio.Lock = field(default_factory=asyncio.Lock)


class PlayedSession:
    """What the daemon, the kernel and the session's stream say of it, and what of that must hold at every moment."""

    def __init__(self, place: Place, script: Script) -> None:
        self.script = script
        self.name = f"q{script.seed}"
        # How far it came, for who reads of a failure.
        self.played: list[str] = []
        # How its calls ended.
        self.verdicts: Counter[str] = Counter()
        # What the policies did to them, and what each ended with that something was done to.
        self.rungs: Counter[str] = Counter()
        self.fates: Counter[str] = Counter()
        # Processes that the kernel killed for memory, by the reports.
        self.oom_kills = 0
        self._place, self._operator = place, place.operator
        self._client: AsyncClient | None = None
        self._agent: subprocess.Popen[bytes] | None = None
        self._tools: list[subprocess.Popen[bytes]] = []
        self._endless: list[subprocess.Popen[bytes]] = []
        self._most_bytes = 0
        self._asking: list[asyncio.Task[None]] = []
        self._calls: list[Call] = []
        # By the session's number, which rises when it is made anew, and the message's: two streams tell the same.
        self._heard: dict[tuple[int, int], Feedback] = {}
        self._session_number = 0
        self._ears: list[asyncio.Task[None]] = []

    async def _open(self, memory_mib: int, agent_mib: int | None, calls_max: int, priority: str) -> None:
        async def create() -> bool:
            # While another sequence drains the host, or holds all its memory, nobody gets in.
            try:
                await self._operator.create_session(
                    self.name, memory=memory_mib * MIB, agent_memory=agent_mib * MIB if agent_mib else None,
                    calls=calls_max, priority=priority,
                )  # fmt: skip
            except (WrongState, Exhausted):
                return False
            return True

        await self._until(create, "a session")
        self._most_bytes = memory_mib * MIB
        await self._connect()
        self._agent = sleeper()
        await self._operator.place_agent(self.name, self._agent.pid)

    async def _connect(self) -> None:
        """To a session whose stream begins anew."""
        self._session_number += 1
        self._client = AsyncClient(self._place.daemon.session_dir(self.name), timeout_s=PATIENCE_S)
        await self._hear()

    async def _hear(self) -> None:
        assert self._client is not None
        hello = asyncio.Event()
        ear = asyncio.create_task(self._listen(self._client.watch(), hello))
        self._ears.append(ear)
        ear.add_done_callback(lambda _: hello.set())
        async with asyncio.timeout(PATIENCE_S):
            await hello.wait()
        if ear.done():
            ear.result()

    async def _listen(self, messages: AsyncIterator[Feedback], hello: asyncio.Event) -> None:
        async for message in messages:
            assert message.lost == 0, "the stream has lost messages"
            hello.set()
            if message.kind is not FeedbackKind.HELLO:
                self._heard[self._session_number, message.sequence] = message

    async def _look(self) -> None:
        """What holds after every step."""
        daemon = self._place.daemon
        self._calls = await self._operator.calls(self.name)
        session = await self._operator.session(self.name)
        checks.calls_fit(self._calls, session.budget)
        assert self._agent is not None
        checks.lives_in(self._agent, f"/{daemon.name}/{self.name}/agent")
        checks.files_agree(daemon.root.parent, self._calls)
        checks.none_is_stuck(self._calls)
        self._most_bytes = max(self._most_bytes, session.budget.memory_max_bytes or 0)
        kernel.budget_holds(daemon.root / self.name, session.budget, self._most_bytes)
        kernel.agent_is_spared(daemon.root / self.name)
        if kernel.freezing_agrees(daemon.root.parent, self._calls):
            await self._until(self._freezing_agrees, "that daemon and kernel agree on who is frozen")

    async def _freezing_agrees(self) -> bool:
        """Between the list and the look into the file it may have changed."""
        self._calls = await self._operator.calls(self.name)
        return not kernel.freezing_agrees(self._place.daemon.root.parent, self._calls)

    async def _remove(self) -> None:
        """The session goes, with every process, socket and cgroup of its."""
        daemon = self._place.daemon
        kernel.agent_is_spared(daemon.root / self.name)
        await self._operator.remove_session(self.name)
        await self._until(self._have_ended, "the end of every launcher and tool")
        assert self._agent is not None and self._agent.wait(PATIENCE_S) == -signal.SIGKILL
        assert not (daemon.root / self.name).exists(), "its cgroup is left"
        assert not daemon.session_dir(self.name).exists(), "its sockets are left"
        async with asyncio.timeout(PATIENCE_S):
            # The stream ends with the session, after all that happened in it.
            heard = await asyncio.gather(*self._ears, return_exceptions=True)
        for error in heard:
            # One that was hung up has ended with the client.
            assert error is None or isinstance(error, Unreachable | asyncio.CancelledError), repr(error)
        self._tools.clear()
        self._endless.clear()
        self._ears.clear()
        assert self._client is not None
        await self._client.close()

    async def _have_ended(self) -> bool:
        return all(tool.poll() is not None for tool in self._tools)

    def _chosen(self, which: int, state: CallState | None = None) -> Call | None:
        calls = [call for call in self._calls if state is None or call.state is state]
        return calls[which % len(calls)] if calls else None

    async def _until(self, condition: Callable[[], Awaitable[bool]], what: str) -> None:
        end = time.monotonic() + PATIENCE_S
        pause_s = 0.005
        while not await condition():
            assert time.monotonic() < end, f"{what} did not come within {PATIENCE_S:g} s"
            await asyncio.sleep(pause_s)
            pause_s = min(0.1, 1.5 * pause_s)


def sleeper() -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sleep", "1000"])
