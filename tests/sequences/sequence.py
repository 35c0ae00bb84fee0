"""One random sequence against a running daemon: a session of its own, an agent in it, and what the script says.

Several of them play at the same time in one event loop, so what one does falls between any two steps of the others.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

from agentcgroup.client import (
    AsyncClient,
    AsyncOperatorClient,
    Call,
    CallState,
    Decision,
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
from tests.running import LAUNCHER, RunningDaemon
from tests.sequences import checks, kernel
from tests.sequences.steps import Arguments, Script

MIB: Final = 1 << 20
# Far more than anything here takes on a machine that is busy with something else.
PATIENCE_S: Final = 120.0
# How long a step waits for pressure.
_RUNG_WITHIN_S: Final = 2.0
# What a request may be answered with when it makes no sense in the state that the sequence happens to have reached.
_EXPECTED: Final = (AlreadyExists, Exhausted, InvalidRequest, NotFound, Refused, WrongState)


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


@dataclass(frozen=True, slots=True)
class Place:
    """The daemon that is played against. `has_limits`: whether there is a memory controller; without it a MiB is enough."""

    daemon: RunningDaemon
    operator: AsyncOperatorClient
    has_limits: bool
    draining: asyncio.Lock = field(default_factory=asyncio.Lock)


class Sequence:
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

    async def play(self) -> None:
        """All of it. Raises AssertionError when an invariant does not hold, ClientError when the daemon fails."""
        try:
            await self._open(**self.script.session)
            for step in self.script.steps:
                self.played.append(str(step))
                with contextlib.suppress(*_EXPECTED):
                    await getattr(self, step.verb)(**step.arguments)
                await self._look()
            self.played.append(f"end by {self.script.end}")
            await self._end()
        finally:
            for task in (*self._asking, *self._ears):
                task.cancel()
            for process in (*self._tools, *([self._agent] if self._agent else [])):
                process.kill()
                process.wait()
            if self._client is not None:
                await self._client.close()

    # ---- the session

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
        self._agent = _sleeper()
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

    # ---- what an agent does

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
            with contextlib.suppress(*_EXPECTED, Unreachable):
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

    async def _have_ended(self) -> bool:
        return all(tool.poll() is not None for tool in self._tools)

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

    # ---- what an operator does

    async def kill_call(self, which: int) -> None:
        call = self._chosen(which)
        if call is not None:
            report = await self._operator.kill_call(call.id, reason="a random step")
            assert report.call_id == call.id and report.message

    async def freeze_call(self, which: int) -> None:
        call = self._chosen(which, CallState.RUNNING)
        if call is not None:
            await self._operator.freeze_call(call.id)

    async def thaw_call(self, which: int) -> None:
        call = self._chosen(which, CallState.FROZEN)
        if call is not None:
            await self._operator.thaw_call(call.id)

    async def set_call(self, which: int, memory_mib: int) -> None:
        call = self._chosen(which)
        if call is not None:
            await self._operator.update_call(call.id, memory=memory_mib * MIB)

    async def set_session(self, memory_mib: int, agent_mib: int | None, priority: str | None) -> None:
        await self._operator.update_session(
            self.name, memory=memory_mib * MIB, agent_memory=agent_mib * MIB if agent_mib else None,
            priority=priority,
        )  # fmt: skip

    async def freeze_session(self, agent: bool) -> None:
        await self._operator.freeze_session(self.name, include_agent=agent)

    async def thaw_session(self) -> None:
        await self._operator.thaw_session(self.name)

    async def kill_session(self) -> None:
        await self._operator.kill_session(self.name, reason="a random step")

    async def renew_session(self, **session: Any) -> None:
        await self._remove()
        await self._open(**session)

    async def drain(self, deadline_ms: int | None, for_ms: int) -> None:
        """One at a time, or one would end what another began."""
        async with self._place.draining:
            deadline_s = deadline_ms / 1000 if deadline_ms else None
            await self._operator.drain_host(reason="a random step", deadline=deadline_s)
            await asyncio.sleep(for_ms / 1000)
            await self._operator.resume_host()

    # ---- the end

    async def _end(self) -> None:
        if self.script.end == "hang_up":
            for task in self._asking:
                task.cancel()
            for tool in self._tools:
                tool.kill()
        elif self.script.end == "kill":
            await self._operator.kill_session(self.name)
            for task in self._asking:
                task.cancel()
        elif self.script.end == "settle":
            await self._settle()
        if self.script.end != "remove":

            async def is_calm() -> bool:
                self._calls = await self._operator.calls(self.name)
                return not [call for call in self._calls if call.state is not CallState.DECLARED]

            # Nobody waits any more, nothing runs, and what was granted and not begun lapses.
            try:
                await self._until(is_calm, "the end of all calls")
            except AssertionError as error:
                raise AssertionError(f"{error}: {self._calls}") from None
        await self._remove()
        await self._until(self._asked, "an answer to every intent")
        await self._check_records()

    async def _settle(self) -> None:
        """Whoever is held by an operator is let go and what would go on for ever is ended; the rest must end by itself."""
        for task in self._asking:
            task.cancel()
        with contextlib.suppress(*_EXPECTED):
            await self._operator.thaw_session(self.name)
        for tool in self._endless:
            tool.kill()
        end = time.monotonic() + PATIENCE_S
        while not await self._have_ended():
            self._calls = await self._operator.calls(self.name)
            assert time.monotonic() < end, f"tools did not end within {PATIENCE_S:g} s: {self._calls}"
            for call in self._calls:
                # One that stands still by its own ladder or for others is not an operator's to thaw, who is told so.
                if call.state is CallState.FROZEN:
                    with contextlib.suppress(*_EXPECTED):
                        await self._operator.thaw_call(call.id)
            checks.none_is_stuck(self._calls)
            await asyncio.sleep(0.2)

    async def _asked(self) -> bool:
        return all(task.done() for task in self._asking)

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

    async def _check_records(self) -> None:
        """One report of each call that ran, on the stream, in the history and in the log of decisions."""
        begun, reports = checks.stream_is_whole(list(self._heard.values()))
        self.verdicts.update(report.verdict for report in reports)
        ended = [report.call_id for report in reports]
        seen: list[str] = []

        async def is_written() -> bool:
            # The history has a writer of its own.
            seen[:] = [entry.report.call_id async for entry in self._operator.history(self.name, limit=1000)]
            return len(seen) >= len(ended)

        await self._until(is_written, "the history of every call")
        assert sorted(seen) == sorted(ended), "the history has each call once"
        events = [event async for event in self._operator.events(self.name, limit=1000)]
        checks.stories_are_whole(events[::-1], begun)
        stories = checks.stories(events[::-1], begun)
        outermost = {
            entry.report.call_id
            async for entry in self._operator.history(self.name, limit=1000)
            if not entry.parent_call_id
        }
        kernel.ends_are_true(stories, outermost)
        verdicts = {report.call_id: report.verdict for report in reports}
        for call_id, story in stories.items():
            done = kernel.rungs(story)
            self.rungs.update(done)
            if done:
                self.fates[f"{done[-1]}, then {verdicts[call_id]}"] += 1
            if call_id in outermost:
                self.oom_kills += kernel.oom_kills(story)

    # ---- small words

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


def _sleeper() -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sleep", "1000"])


def describe(sequence: Sequence) -> str:
    """The steps so far, one a line."""
    lines = [f"session {dict(sequence.script.session)}", *sequence.played]
    return "\n".join(f"  {number:2} {line}" for number, line in enumerate(lines)) + f"{os.linesep}"
