"""What the integration tests drive: real gRPC, real sockets, the real controller, real processes, a fake machine."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from agentcgroup.daemon.api.server import Api
from agentcgroup.daemon.config import Config, DaemonConfig
from agentcgroup.daemon.controller import Controller, World
from agentcgroup.daemon.counters import Counters
from agentcgroup.daemon.feedback import Feed
from agentcgroup.daemon.model import BudgetRequest, Report, Session
from agentcgroup.daemon.reload import Reloader
from agentcgroup.proto.launch import Reply, Request, decode_reply, encode_request
from agentcgroup.proto.v1.agent_pb2_grpc import AgentServiceStub
from agentcgroup.proto.v1.operator_pb2 import GetHostRequest
from agentcgroup.proto.v1.operator_pb2_grpc import OperatorServiceStub
from tests.fake_history import FakeHistory
from tests.fakes import FakeClock, FakeHost

if TYPE_CHECKING:
    # The type of the same stubs on an asynchronous channel, which is in their type stub only.
    from agentcgroup.proto.v1.agent_pb2_grpc import AgentServiceAsyncStub
    from agentcgroup.proto.v1.operator_pb2_grpc import OperatorServiceAsyncStub

MIB = 1 << 20
GIB = 1 << 30
# Longer than anything here takes, shorter than a person waits.
DEADLINE_S = 60.0


async def until(holds: Callable[[], object]) -> None:
    """Waits for what the loop, or a process, will bring about."""
    async with asyncio.timeout(DEADLINE_S):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


# Plays the launcher up to its exec: is told to go, connects, asks, shows the answer, then is the tool until
# told how to exit. Given a pid it asks for that process instead of itself.
_CALLER = """
import array, os, socket, sys
sys.stdin.readline()
door = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
door.connect(sys.argv[1])
fds = array.array("i", [os.pidfd_open(int(pid)) for pid in sys.argv[3:]])
door.sendmsg([bytes.fromhex(sys.argv[2])], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)] if fds else [])
while True:
    reply = door.recv(20000)
    print(reply.hex(), flush=True)
    if b"\\0status=queued\\0" not in reply:
        break
door.close()
sys.exit(int(sys.stdin.read() or 0))
"""


class Caller:
    """A process before, at and behind a launcher's door."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.pid = process.pid

    async def ask(self) -> Reply:
        """Goes to the door; its answer."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(b"\n")
        return await self.hear()

    async def hear(self) -> Reply:
        """The next answer, after one that was no last one."""
        assert self.process.stdout is not None
        line = await asyncio.wait_for(self.process.stdout.readline(), DEADLINE_S)
        return decode_reply(bytes.fromhex(line.decode()))

    async def exit(self, code: int = 0) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(str(code).encode())
        self.process.stdin.close()
        await self.process.wait()


class Daemon:
    """Core and edges as daemon/app.py builds them."""

    def __init__(self, run_dir: Path, config: Config | None = None, host: FakeHost | None = None) -> None:
        self.run_dir = run_dir
        self.config = config or Config(daemon=DaemonConfig(run_dir=str(run_dir)))
        # What the configuration file says when it is read again.
        self.file = self.config
        self.host = host or FakeHost()
        self.history = FakeHistory()
        self.clock = FakeClock()
        self.controller = Controller(
            World(self.config, self.host, self.history, self.clock, Counters(), Feed())
        )
        self.reloader = Reloader(self.config, lambda: self.file, self.controller.reconfigure)
        self.api = Api(self.config, self.controller, self.history, self.reloader)
        self._channels: list[grpc.aio.Channel] = []
        self._callers: list[asyncio.subprocess.Process] = []
        self._sleepers: list[subprocess.Popen[bytes]] = []
        self._is_gone = False

    async def start(self) -> None:
        self.host.listen(self.controller)
        self.controller.use_doors(self.api)
        left = self.host.records.sessions()
        self.api.prepare([kept.name for kept in left])
        await self.controller.take_over(left)
        await self.api.start()

    async def crash(self) -> None:
        """The process is gone in the middle of whatever it did. The machine and its processes stay."""
        if self._is_gone:
            return
        self._is_gone = True
        for timer in self.controller._timers.values():
            timer.cancel()
        for task in self.controller._tasks:
            task.cancel()
        self.host.crash()
        await self.api.stop(sessions_stay=True)

    async def follow(self, gone: "Daemon") -> None:
        """Starts after `gone`, with its history and clock; the processes are this one's to clean up."""
        self.history, self.clock = gone.history, gone.clock
        self.controller._history, self.controller._clock = gone.history, gone.clock
        self._sleepers, gone._sleepers = gone._sleepers, []
        await self.start()

    async def stop(self) -> None:
        for channel in self._channels:
            await channel.close()
        if self._is_gone:
            return
        await self.controller.close()
        await self.api.stop()
        for process in self._callers:
            if process.returncode is None:
                process.kill()
                await process.wait()
        for sleeper in self._sleepers:
            sleeper.kill()
            sleeper.wait()
        self.host.close()

    # ---- who asks

    def channel(self, socket: Path) -> grpc.aio.Channel:
        channel = grpc.aio.insecure_channel(f"unix:{socket}")
        self._channels.append(channel)
        return channel

    @property
    def operator(self) -> "OperatorServiceAsyncStub":
        return OperatorServiceStub(self.channel(self.run_dir / "operator.sock"))

    def agent(self, session: str) -> "AgentServiceAsyncStub":
        return AgentServiceStub(self.channel(self.socket(session, "agent.sock")))

    def socket(self, session: str, name: str) -> Path:
        return self.run_dir / "sessions" / session / name

    async def open(self, name: str, memory: int = 4 * GIB, **budget: int) -> Session:
        request = BudgetRequest(memory_max_bytes=memory, agent_memory_bytes=256 * MIB, **budget)
        return await self.controller.open_session(name, request)

    async def settled(self) -> None:
        """All that was put off to the next turns of the loop has been done."""
        for _ in range(3):
            await asyncio.sleep(0)

    async def report(self, call_id: str) -> Report:
        """That of a call that has begun, when it has ended."""
        call = self.controller.call(None, call_id)
        async with asyncio.timeout(DEADLINE_S):
            await self.controller._until_ended(call)
        assert call.report is not None
        return call.report

    # ---- processes

    def end(self, pid: int) -> None:
        """Kills and waits for a process of `process`."""
        (sleeper,) = [each for each in self._sleepers if each.pid == pid]
        sleeper.kill()
        sleeper.wait()

    def process(self, session: str = "") -> int:
        """The pid of a new process that lives in the agent leaf of `session`, or outside all sessions."""
        sleeper = subprocess.Popen(["sleep", "600"])
        self._sleepers.append(sleeper)
        if session:
            self.host.homes[sleeper.pid] = session
        return sleeper.pid

    def ended_process(self) -> int:
        """A pid that no process has any more."""
        ended = subprocess.Popen(["true"])
        ended.wait()
        return ended.pid

    def dead_pidfd(self) -> int:
        """A pidfd, the caller's to close, whose process has ended and been waited for."""
        ending = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
        pidfd = os.pidfd_open(ending.pid)
        ending.communicate()
        return pidfd

    async def caller(
        self, session: str, request: Request | None = None, *, place: int | None = None
    ) -> Caller:
        """A new process outside all sessions, on its way to the launcher's door; `place`: for another process."""
        packet = encode_request(request or Request())
        arguments = (
            str(self.socket(session, "launch.sock")),
            packet.hex(),
            *(() if place is None else (str(place),)),
        )
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-S", "-E", "-c", _CALLER, *arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        self._callers.append(process)
        return Caller(process)

    async def launch(self, session: str, request: Request | None = None) -> tuple[Caller, Reply]:
        """A caller that has gone through the door, and what it heard there."""
        caller = await self.caller(session, request)
        return caller, await caller.ask()

    async def is_well(self) -> None:
        """The daemon still answers an operator."""
        await self.operator.GetHost(GetHostRequest(), timeout=DEADLINE_S)


def descriptors() -> int:
    """How many file descriptors this process holds."""
    return len(os.listdir("/proc/self/fd"))


class Refused:
    """A gRPC error as a caller sees it."""

    def __init__(self, error: grpc.RpcError) -> None:
        assert isinstance(error, grpc.aio.AioRpcError)
        self.code = error.code()
        self.message = error.details() or ""
        status: Any = rpc_status.from_call(error)  # type: ignore[arg-type]
        self.reason, self.field, self.next_step, self.metadata = "", "", "", {}
        for detail in status.details if status is not None else ():
            info = error_details_pb2.ErrorInfo()
            bad = error_details_pb2.BadRequest()
            words = error_details_pb2.LocalizedMessage()
            if detail.Unpack(info):
                self.reason, self.metadata = info.reason, dict(info.metadata)
            elif detail.Unpack(bad):
                self.field = bad.field_violations[0].field
            elif detail.Unpack(words):
                self.next_step = words.message


async def refusal(call: Any) -> Refused:
    """The error that awaiting `call` ends in."""
    try:
        answer = await call
    except grpc.aio.AioRpcError as error:
        return Refused(error)
    raise AssertionError(f"was answered: {answer}")
