"""The moment in which a call begins to run: followed, timed and said, by whichever door its process came."""

import asyncio

from agentcgroup.daemon.controller.core import DEADLINE_TIMER, Life
from agentcgroup.daemon.controller.ending import Endings
from agentcgroup.daemon.model import (
    Action,
    Actor,
    CallState,
    ExitStatus,
    FeedbackKind,
    KillReason,
    Level,
    ToolCall,
)
from agentcgroup.daemon.ports import Process


class Beginnings(Endings):
    def _run(self, call: ToolCall, process: Process, started_at_ns: int) -> None:
        """The process is in the call's cgroup. Takes over its pidfd."""
        call.pid, call.started_at_ns, call.state = process.pid, started_at_ns, CallState.RUNNING
        call.ticket = ""
        self._follow(call, process)
        if call.limits.deadline_ms is not None:
            self._arm(
                DEADLINE_TIMER,
                call.id,
                call.limits.deadline_ms,
                lambda: self._kill(call, KillReason.DEADLINE),
            )
        # Said after the answer: logging and streaming are no part of what the caller waits for.
        asyncio.get_running_loop().call_soon(self._say_started, call)

    def _say_started(self, call: ToolCall) -> None:
        command = " ".join(call.intent.command) or f"process {call.pid}"
        words = f"Started {command[:120]!r}."
        self._decided(Action.BEGUN, call.session, words, call=call, actor=Actor.AGENT, pid=call.pid)
        self._say(FeedbackKind.STARTED, call.session, words, call=call, level=Level.AMPLE)

    def _follow(self, call: ToolCall, process: Process) -> None:
        def on_exit() -> None:
            self._main_ended(call)

        def on_status(status: ExitStatus) -> None:
            self._status_known(call, status)

        self._lives.setdefault(call.id, Life())
        self._host.watch_process(process, on_exit, on_status)
