"""Random sequences in which the daemon dies, at any instant, and another one goes on: nothing that ran is lost.

What was only promised is gone with it: queued calls, grants, tickets. Whoever listened has to listen again. And the history
writes in batches: of what ended in the last half second before a crash there may be no report.
"""

import asyncio
import contextlib
import dataclasses
import random
from collections.abc import Callable, Iterable
from typing import Final

from agentcgroup.client import AsyncOperatorClient, Event, Unreachable
from tests.running import RunningDaemon
from tests.sequences.company import FAULTS, Failure, Outcome, has_limits
from tests.sequences.sequence import Sequence
from tests.sequences.session import PATIENCE_S, Place
from tests.sequences.steps import CRASH, Script, Step, script

_MOST_CRASHES: Final = 2


def crashing_script(seed: int) -> Script:
    """The sequence of `seed`, with crashes in between."""
    played, dice = script(seed), random.Random(-1 - seed)
    steps = list(played.steps)
    for _ in range(dice.randint(1, _MOST_CRASHES)):
        steps.insert(dice.randint(1, len(steps)), Step(CRASH, {"after_ms": dice.choice((0, 0, 1, 5, 20))}))
    return dataclasses.replace(played, steps=tuple(steps))


class CrashingSequence(Sequence):
    """Alone with its daemon."""

    _unreported: frozenset[str] = frozenset()

    async def crash(self, after_ms: int) -> None:
        daemon = self._place.daemon
        await asyncio.sleep(after_ms / 1000)
        await asyncio.to_thread(daemon.crash)
        running = _populated(daemon, self.name)
        for task in self._asking:
            task.cancel()
        await asyncio.to_thread(daemon.start)

        async def is_back() -> bool:
            with contextlib.suppress(Unreachable):
                await self._operator.host()
                return True
            return False

        await self._until(is_back, "the next daemon")
        assert self._client is not None
        await self._client.close()
        await self._connect()

        async def are_known() -> bool:
            known = {call.id for call in await self._operator.calls(self.name)}
            known |= {entry.report.call_id async for entry in self._operator.history(self.name, limit=1000)}
            begun = set(
                _calls([event async for event in self._operator.events(self.name, limit=1000)], "begun")
            )
            self._unreported |= begun - known - running
            return running <= known

        await self._until(are_known, f"every call of {sorted(running)}, live or in the history")

    async def _check_records(self) -> None:
        events = [event async for event in self._operator.events(self.name, limit=1000)][::-1]
        begun = _calls(events, "begun")
        ended: list[str] = []

        async def is_written() -> bool:
            entries = [entry async for entry in self._operator.history(self.name, limit=1000)]
            ended[:] = [entry.report.call_id for entry in entries]
            self.verdicts.clear()
            self.verdicts.update(entry.report.verdict for entry in entries)
            return set(begun) <= set(ended) | self._unreported

        await self._until(is_written, f"the report of each of {begun}")
        assert len(set(ended)) == len(ended), f"more than one report: {sorted(ended)}"
        twice = [call_id for call_id in begun if begun.count(call_id) > 1]
        assert not twice, f"began more than once: {twice}"


def _populated(daemon: RunningDaemon, session: str) -> set[str]:
    """The calls of `session` in which a process lives, by the kernel."""
    found = (daemon.root / session / "calls").rglob("cgroup.events")
    return {
        each.parent.name
        for each in found
        if each.parent.name.startswith("c-") and "populated 1" in each.read_text()
    }


def _calls(events: Iterable[Event], action: str) -> list[str]:
    return [event.call_id for event in events if event.action == action]


async def play_one_by_one(
    daemon: RunningDaemon, scripts: Iterable[Script], said: Callable[[Outcome], None] = lambda _: None
) -> Outcome:
    """As company.play, but each alone, because its daemon dies under it."""
    outcome = Outcome()
    for each in scripts:
        async with AsyncOperatorClient(daemon.operator_socket, timeout_s=PATIENCE_S) as operator:
            sequence = CrashingSequence(Place(daemon, operator, has_limits()), each)
            try:
                await sequence.play()
            except FAULTS as error:
                outcome.failures.append(Failure(sequence, error))
                return outcome
            outcome.add(sequence)
            said(outcome)
    return outcome
