"""The steps of a random sequence that its agent takes: what it starts, declares, changes, ends and waits for."""

import asyncio
import contextlib
import signal
import subprocess
import time
from collections.abc import Awaitable
from typing import Any, Final

from agentcgroup.client import AsyncClient, CallState, Decision
from agentcgroup.client.errors import Unreachable
from tests.running import LAUNCHER
from tests.sequences.session import EXPECTED, MIB, PATIENCE_S, PlayedSession
from tests.sequences.steps import Arguments

# How long a step waits for pressure.
_RUNG_WITHIN_S: Final = 2.0

# What a call runs; {launcher} is `agentcg run` in the session, {eat} what it takes of memory.
TOOLS: Final = {
    "true": "true",
    "fail": "exit 3",
    "nap": "exec sleep 0.02",
    "linger": "exec sleep 1000",
    "leave": "sleep 1000 & exit 0",
    "nest": "{launcher} --memory 4M --wait 1s -- sleep 0.01",
    # It takes more than it may, and its caller fails with it.
    "nest_eat": "{launcher} --memory 4M --memory-max 8M --wait 1s -- "
    "sh -c 'head -c {eat}M /dev/zero | tail -c {eat}M | wc -c' || exit 7",
    # tail(1) holds what it was asked for.
    "eat": "head -c {eat}M /dev/zero | tail -c {eat}M | wc -c",
    # A MiB at a time, which is kept for a while, or for good.
    "grow": "exec perl -e '{grow}' {eat} 0.3",
    "hold": "exec perl -e '{grow}' {eat} 1000",
}
_GROW: Final = (
    'my ($mib, $stay) = @ARGV; my $piece = "x" x (1 << 20); my $kept = "";'
    " for (1 .. $mib) { $kept .= $piece; select undef, undef, undef, 0.005 } select undef, undef, undef, $stay"
)
# These end only when somebody ends them.
_ENDLESS: Final = frozenset({"linger", "hold"})


class PlayedAgent(PlayedSession):
    """Each public method is a verb of steps.py; it does nothing where there is nothing that it could be done to."""

    def _options(self, intent: Arguments) -> list[str]:
        options = []
        for name, key, unit in (
            ("--memory", "memory_mib", "M"),
            ("--memory-max", "memory_max_mib", "M"),
            ("--throttle-limit", "throttle_limit_ms", "ms"),
            ("--class", "cpu_class", ""),
            ("--on-exceed", "on_exceed", ""),
            ("--timeout", "timeout_ms", "ms"),
            ("--wait", "wait_ms", "ms"),
        ):
            if intent.get(key) is not None:
                options += [name, f"{intent[key]}{unit}"]
        return options

    def _start(self, command: list[str], *, endless: bool = False) -> None:
        self._tools.append(
            subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
        )
        if endless:
            self._endless.append(self._tools[-1])

    def _tool(self, name: str, eat_mib: int) -> list[str]:
        launcher = f"{LAUNCHER} run --session-dir {self._place.daemon.session_dir(self.name)}"
        eat = eat_mib if self._place.has_limits else 1
        return ["sh", "-c", TOOLS[name].format(launcher=launcher, eat=eat, grow=_GROW)]

    async def launch(self, tool: str, from_agent: bool, eat_mib: int, **intent: Any) -> None:
        options = tuple(self._options(intent))
        self._start(
            self._place.daemon.launch_command(
                self.name, *self._tool(tool, eat_mib), options=options, from_agent=from_agent
            ),
            endless=tool in _ENDLESS,
        )

    async def burst(self, count: int) -> None:
        """One after another from the agent, as agents do; the door's thread lets in those for whom a call stands ready."""
        for _ in range(count):
            self._start(self._place.daemon.launch_command(self.name, "true", from_agent=True))
            # It may be queued, or its session frozen.
            for _ in range(20):
                if self._tools[-1].poll() is not None:
                    break
                await asyncio.sleep(0.002)

    def _ask(self, asking: Awaitable[object]) -> None:
        async def ask() -> None:
            # Its client may be hung up, and its session removed, at any moment.
            with contextlib.suppress(*EXPECTED, Unreachable):
                await asking

        self._asking.append(asyncio.create_task(ask()))

    def _wish(
        self, memory_mib: int | None, memory_max_mib: int | None, throttle_limit_ms: int | None, wait_ms: int,
        cpu_class: str | None, on_exceed: str | None, timeout_ms: int | None,
    ) -> dict[str, Any]:  # fmt: skip
        return {
            "memory": memory_mib * MIB if memory_mib else None,
            "memory_max": memory_max_mib * MIB if memory_max_mib else None,
            "throttle_limit": throttle_limit_ms / 1000 if throttle_limit_ms else None,
            "wait": wait_ms / 1000,
            "cpu_class": cpu_class,
            "on_exceed": on_exceed,
            "timeout": timeout_ms / 1000 if timeout_ms else None,
        }

    async def declare(self, inside: int | None, **intent: Any) -> None:
        """Asks, and goes on; the answer must come in time."""
        parent = self._chosen(inside, CallState.RUNNING) if inside is not None else None
        assert self._client is not None
        client, wish = self._client, self._wish(**intent)
        wait_ms: int = intent["wait_ms"]

        async def ask() -> None:
            async with asyncio.timeout(wait_ms / 1000 + PATIENCE_S):
                answer = await client.declare(parent_call_id=parent.id if parent else "", **wish)
            assert answer.decision is not Decision.QUEUED and answer.message

        self._ask(ask())

    async def begin_at_once(self, **intent: Any) -> None:
        """Declares and begins in one, as scopes of the SDK do, with a process of its own."""
        assert self._client is not None
        client, wish = self._client, self._wish(**intent)

        async def run() -> None:
            async with client.call(parent_call_id="", **wish) as call:
                await call.run(["sleep", "0.02"], stderr=subprocess.DEVNULL)

        self._ask(run())

    async def begin_by_ticket(self, which: int, tool: str, eat_mib: int) -> None:
        call = self._chosen(which, CallState.DECLARED)
        if call is not None:
            assert self._client is not None
            ticket = await self._client.ticket(call.id)
            launcher = [
                str(LAUNCHER),
                "run",
                "--session-dir",
                str(self._place.daemon.session_dir(self.name)),
            ]
            self._start(
                [*launcher, "--ticket", ticket, "--", *self._tool(tool, eat_mib)], endless=tool in _ENDLESS
            )

    async def begin_by_pid(self, which: int) -> None:
        call = self._chosen(which, CallState.DECLARED)
        if call is not None:
            self._start(["sleep", "1000"], endless=True)
            await self._operator.place_agent(self.name, self._tools[-1].pid)
            assert self._client is not None
            await self._client.begin(call.id, self._tools[-1].pid)

    async def adjust(self, which: int, memory_mib: int) -> None:
        call = self._chosen(which)
        if call is not None:
            assert self._client is not None
            await self._client.adjust(call.id, memory=memory_mib * MIB)

    async def finish(self, which: int) -> None:
        call = self._chosen(which)
        if call is not None:
            assert self._client is not None
            report = await self._client.finish(call.id, 0)
            assert report.call_id == call.id and report.message

    async def signal_tool(self, which: int, name: str) -> None:
        """To the launcher while it waits, to the tool that it has become afterwards."""
        alive = [process for process in self._tools if process.poll() is None]
        if alive:
            alive[which % len(alive)].send_signal(getattr(signal, name))

    async def cancel(self, which: int) -> None:
        asking = [task for task in self._asking if not task.done()]
        if asking:
            asking[which % len(asking)].cancel()

    async def hang_up(self) -> None:
        """The harness is gone with everything that it asked for, and comes again."""
        assert self._client is not None
        old, self._client = self._client, AsyncClient(self._client.session_dir, timeout_s=PATIENCE_S)
        for task in self._asking:
            task.cancel()
        await self._hear()
        # The new stream has begun, so nothing is missed, and what both hear counts once.
        await old.close()

    async def pause(self, ms: int) -> None:
        await asyncio.sleep(ms / 1000)

    async def reach_rung(self) -> None:
        """Until something is done about a call, so that the next step falls there; not for long, for it need not come."""
        if not self._place.has_limits:
            return
        end = time.monotonic() + _RUNG_WITHIN_S
        while time.monotonic() < end:
            self._calls = await self._operator.calls(self.name)
            if not self._calls or any(
                call.ladder is not None or call.state is CallState.FROZEN for call in self._calls
            ):
                return
            await asyncio.sleep(0.05)

    async def let_end(self) -> None:
        """Until every tool has ended by itself, or has been ended for what it took."""
        await self._until(self._have_ended, "the end of every tool")

    async def await_calls(self, count: int) -> None:
        async def are_there() -> bool:
            self._calls = await self._operator.calls(self.name)
            return sum(call.state is CallState.RUNNING for call in self._calls) >= count

        await self._until(are_there, f"{count} running calls")

    async def await_ends(self, count: int) -> None:
        async def have_ended() -> bool:
            return sum(tool.poll() is not None for tool in self._tools) >= count

        await self._until(have_ended, f"the end of {count} tools")

    async def await_closed(self, session: str) -> None:
        """Until another session has come and gone."""

        async def is_closed() -> bool:
            return "closed" in [event.action async for event in self._operator.events(session, limit=1000)]

        await self._until(is_closed, f"the end of {session}")
