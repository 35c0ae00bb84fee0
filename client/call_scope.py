"""One tool call from declaration to report, as a context manager.

    with client.call(memory="2G", timeout="10m") as call:
        call.run(["pytest", "-q"])
    print(call.report.message)

Entering declares the call, waiting for its turn when there is no room (Refused when it is not granted), leaving finishes
it: what is left of it is killed. In between the call gets exactly one main process: by `run` or `popen`, which start it
through the native launcher so that it is in its cgroup before its first instruction, or by `begin`, which moves a running
process of the caller's.
"""

import asyncio
import os
import subprocess
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self, Unpack

from agentcgroup.client import operations
from agentcgroup.client.arguments import IntentArguments
from agentcgroup.client.channels import AsyncChannel, SyncChannel
from agentcgroup.client.declaring import Wish, declare, declare_async
from agentcgroup.client.errors import ClientError, Refused, WrongState
from agentcgroup.client.places import launcher
from agentcgroup.client.processes import reference
from agentcgroup.client.values import Answer, Call, Decision, Report

Command = Sequence[str | os.PathLike[str]]


def _texts(command: Command) -> list[str]:
    return [os.fspath(each) for each in command]


class _Scope:
    """What sync and async scopes know."""

    def __init__(self, session_dir: str, wish: Wish) -> None:
        self._session_dir = session_dir
        self._wish = wish
        self._answer: Answer | None = None
        self._report: Report | None = None
        self._exit_code: int | None = None

    @property
    def answer(self) -> Answer:
        """What the daemon said to the intent: granted or trimmed."""
        if self._answer is None:
            raise WrongState("the call is not declared yet", "Use it in a with statement")
        return self._answer

    @property
    def id(self) -> str:
        return self.answer.call_id

    @property
    def report(self) -> Report:
        """How the call ended; after the with block."""
        if self._report is None:
            raise WrongState("the call has not ended yet", "Read the report behind the with block")
        return self._report

    def _declared(self, answer: Answer) -> None:
        if answer.decision is Decision.REFUSED:
            raise Refused(answer)
        self._answer = answer

    def _through_launcher(self, ticket: str, command: Command) -> list[str]:
        # Never unplaced: whoever declared a call wants it in its limits.
        return [
            launcher(), "run", "--session-dir", self._session_dir, "--if-unreachable", "refuse", "--ticket", ticket, "--",
            *_texts(command),
        ]  # fmt: skip

    def _exited(self, returncode: int | None) -> None:
        # A negative one is a signal, of which the kernel tells the daemon itself.
        self._exit_code = returncode if returncode is not None and returncode >= 0 else None


class CallScope(_Scope):
    """A call for blocking code; made by `Client.call`."""

    def __init__(self, channel: SyncChannel, session_dir: str, wish: Wish) -> None:
        super().__init__(session_dir, wish)
        self._channel = channel
        self._process: subprocess.Popen[Any] | None = None

    def __enter__(self) -> Self:
        self._declared(declare(self._channel, self._wish))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._exited(self._process.poll())
        try:
            self._report = self._channel.perform(operations.finish(self.id, self._exit_code))
        except ClientError as failure:
            # The block's own error is what its author wants to see.
            if error is None:
                raise
            error.add_note(f"and the call {self.id} could not be finished: {failure}")

    def popen(self, command: Command, **arguments: Any) -> subprocess.Popen[Any]:
        """Starts `command` as the call's main process; `arguments` are subprocess.Popen's."""
        ticket = self._channel.perform(operations.ticket(self.id))
        self._process = subprocess.Popen(self._through_launcher(ticket, command), **arguments)
        return self._process

    def run(
        self, command: Command, *, check: bool = False, capture_output: bool = False, input: Any = None,
        timeout_s: float | None = None, **arguments: Any,
    ) -> subprocess.CompletedProcess[Any]:  # fmt: skip
        """Runs `command` as the call's main process to its end; as subprocess.run. A kill by a limit is no exception."""
        if capture_output:
            arguments |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        if input is not None:
            arguments["stdin"] = subprocess.PIPE
        with self.popen(command, **arguments) as process:
            try:
                output, errors = process.communicate(input, timeout=timeout_s)
            except BaseException:
                process.kill()
                raise
        completed = subprocess.CompletedProcess(_texts(command), process.returncode, output, errors)
        if check:
            completed.check_returncode()
        return completed

    def begin(self, pid: int) -> Call:
        """Moves the running process `pid`, with all its threads, into the call."""
        return self._channel.perform(operations.begin(self.id, reference(pid)))

    def adjust(self, **arguments: Unpack[IntentArguments]) -> Answer:
        """Asks for other limits; a refusal is an Answer and changes nothing."""
        return self._channel.perform(operations.adjust(self.id, arguments))


class AsyncCallScope(_Scope):
    """A call for asyncio; made by `AsyncClient.call`."""

    def __init__(self, channel: AsyncChannel, session_dir: str, wish: Wish) -> None:
        super().__init__(session_dir, wish)
        self._channel = channel
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        self._declared(await declare_async(self._channel, self._wish))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._exited(self._process.returncode)
        try:
            self._report = await self._channel.perform(operations.finish(self.id, self._exit_code))
        except ClientError as failure:
            if error is None:
                raise
            error.add_note(f"and the call {self.id} could not be finished: {failure}")

    async def popen(self, command: Command, **arguments: Any) -> asyncio.subprocess.Process:
        """Starts `command` as the call's main process; `arguments` are asyncio.create_subprocess_exec's."""
        ticket = await self._channel.perform(operations.ticket(self.id))
        self._process = await asyncio.create_subprocess_exec(
            *self._through_launcher(ticket, command), **arguments
        )
        return self._process

    async def run(
        self, command: Command, *, check: bool = False, capture_output: bool = False, input: bytes | None = None,
        **arguments: Any,
    ) -> subprocess.CompletedProcess[bytes]:  # fmt: skip
        """Runs `command` as the call's main process to its end. A kill by a limit is no exception."""
        if capture_output:
            arguments |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        if input is not None:
            arguments["stdin"] = subprocess.PIPE
        process = await self.popen(command, **arguments)
        try:
            output, errors = await process.communicate(input)
        except BaseException:
            if process.returncode is None:
                process.kill()
            raise
        returncode = process.returncode if process.returncode is not None else await process.wait()
        completed = subprocess.CompletedProcess(_texts(command), returncode, output, errors)
        if check:
            completed.check_returncode()
        return completed

    async def begin(self, pid: int) -> Call:
        """Moves the running process `pid`, with all its threads, into the call."""
        return await self._channel.perform(operations.begin(self.id, reference(pid)))

    async def adjust(self, **arguments: Unpack[IntentArguments]) -> Answer:
        """Asks for other limits; a refusal is an Answer and changes nothing."""
        return await self._channel.perform(operations.adjust(self.id, arguments))
