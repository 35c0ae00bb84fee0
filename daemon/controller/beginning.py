"""The moment in which a call begins to run: followed, timed and said, by whichever door its process came."""

import asyncio

from agentcgroup.daemon.controller.core import Life
from agentcgroup.daemon.controller.sampling import Sampling
from agentcgroup.daemon.model import (
    Action,
    Actor,
    CallState,
    ExitStatus,
    FeedbackKind,
    Level,
    ToolCall,
)
from agentcgroup.daemon.ports import Process


class Beginnings(Sampling):
    def _run(self, call: ToolCall, process: Process, started_at_ns: int) -> None:
        """The process is in the call's cgroup. Takes over its pidfd."""
        call.pid, call.started_at_ns, call.state = process.pid, started_at_ns, CallState.RUNNING
        call.ticket = ""
        self._follow(call, process)
        if call.limits.deadline_ms is not None:
            self._arm_deadline(call, call.limits.deadline_ms)
        # Said after the answer: logging and streaming are no part of what the caller waits for.
        asyncio.get_running_loop().call_soon(self._say_started, call)
        self._memory_shifted(call.session)

    def _say_started(self, call: ToolCall) -> None:
        self._raise_mark(call)
        command = " ".join(call.intent.command) or f"process {call.pid}"
        words = f"Started {command[:120]!r}."
        if call.placement is not None:
            words += (
                f" It came without agentcg run and was placed {call.placement.delay_ms} ms after its exec."
            )
        self._decided(Action.BEGUN, call.session, words, call=call, actor=Actor.AGENT, pid=call.pid)
        self._say(FeedbackKind.STARTED, call.session, words, call=call, level=Level.AMPLE)
        self._remember_call(call)
        self._begin_ladder(call)
        self._begin_samples(call)

    def _follow(self, call: ToolCall, process: Process) -> None:
        """The call goes on as long as a process that is followed; one forked later than the main process becomes it.

        So the status of a shell's job is that of its last process, as in the shell. Takes over the pidfd.
        """
        life = self._lives.setdefault(call.id, Life())
        life.followed.add(process.pid)
        if process.pid > call.pid:
            call.pid = process.pid
            life.status_known.clear()

        def on_exit() -> None:
            life.followed.discard(process.pid)
            if not life.followed:
                self._main_ended(call)

        def on_status(status: ExitStatus) -> None:
            if call.pid == process.pid:
                self._status_known(call, status)

        self._host.watch_process(process, on_exit, on_status)
