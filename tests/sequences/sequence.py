"""One random sequence against a running daemon: a session of its own, an agent in it, and what the script says.

Several of them play at the same time in one event loop, so what one does falls between any two steps of the others.
"""

import asyncio
import contextlib
import os
import time
from typing import Any

from agentcgroup.client import CallState
from tests.sequences import checks, kernel
from tests.sequences.agent import PlayedAgent
from tests.sequences.session import EXPECTED, MIB, PATIENCE_S


class Sequence(PlayedAgent):
    """Script and play, what an operator does meanwhile, and what must hold when all is over."""

    async def play(self) -> None:
        """All of it. Raises AssertionError when an invariant does not hold, ClientError when the daemon fails."""
        try:
            await self._open(**self.script.session)
            for step in self.script.steps:
                self.played.append(str(step))
                with contextlib.suppress(*EXPECTED):
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
        with contextlib.suppress(*EXPECTED):
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
                    with contextlib.suppress(*EXPECTED):
                        await self._operator.thaw_call(call.id)
            checks.none_is_stuck(self._calls)
            await asyncio.sleep(0.2)

    async def _asked(self) -> bool:
        return all(task.done() for task in self._asking)

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


def describe(sequence: Sequence) -> str:
    """The steps so far, one a line."""
    lines = [f"session {dict(sequence.script.session)}", *sequence.played]
    return "\n".join(f"  {number:2} {line}" for number, line in enumerate(lines)) + f"{os.linesep}"
