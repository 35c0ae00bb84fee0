"""Sequences that end in one way however slow the machine is: each rung of the ladder, and each kill, once for certain.

They need limits. What random sequences meet of the same depends on time.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from tests.running import RunningDaemon
from tests.sequences.company import Failure, Outcome, play
from tests.sequences.sequence import Sequence as Played
from tests.sequences.steps import Script, Step


@dataclass(frozen=True, slots=True)
class Certain:
    """A script, how many of its calls must end in which way at least, and which rungs they must meet."""

    script: Script
    ends: Mapping[str, int]
    rungs: frozenset[str] = field(default_factory=frozenset)

    def holds_of(self, sequence: Played) -> None:
        """Raises AssertionError unless `sequence`, which has played the script, came out so."""
        told = (sequence.name, dict(sequence.verdicts), dict(sequence.rungs))
        assert all(sequence.verdicts[end] >= count for end, count in self.ends.items()), told
        assert self.rungs <= set(sequence.rungs), told


# Of the two that play together, the one that gives way.
_LOW: Final = 9008


def _session(memory_mib: int, agent_mib: int = 8, priority: str = "normal") -> dict[str, Any]:
    return {"memory_mib": memory_mib, "agent_mib": agent_mib, "calls_max": 16, "priority": priority}


def _launch(tool: str, eat_mib: int, memory_mib: int, **intent: Any) -> Step:
    wish = {"memory_mib": memory_mib, "wait_ms": 20_000, "from_agent": True, **intent}
    return Step("launch", {"tool": tool, "eat_mib": eat_mib, **wish})


_LET_END: Final = Step("let_end", {})

# Killed by the kernel at its own maximum.
KILLED: Final = Certain(
    Script(9001, _session(64), (_launch("eat", 48, 8, memory_max_mib=12), _LET_END), "settle"),
    {"memory_limit_call": 1},
)

ALONE: Final = (
    KILLED,
    # Two that are within their own maximum, and not both within their session's.
    Certain(
        Script(
            9002,
            _session(48),
            (
                _launch("hold", 30, 8, on_exceed="stop"),
                _launch("hold", 30, 8, on_exceed="stop"),
                Step("await_ends", {"count": 1}),
            ),
            "settle",
        ),
        {"memory_limit_session": 1},
    ),
    # The nested one is over its maximum; the one around it fails with it, at no limit.
    Certain(
        Script(9003, _session(64), (_launch("nest_eat", 24, 16), _LET_END), "settle"),
        {"memory_limit_call": 1, "exit_code": 1},
    ),
    # Slowed down at what it declared until its time is up.
    Certain(
        Script(
            9004,
            _session(64),
            (_launch("hold", 24, 8, on_exceed="throttle", throttle_limit_ms=200), _LET_END),
            "settle",
        ),
        {"throttle_limit": 1},
        frozenset({"throttled"}),
    ),
    # There is room.
    Certain(
        Script(9005, _session(96), (_launch("grow", 24, 8, on_exceed="extend"), _LET_END), "settle"),
        {"ok": 1},
        frozenset({"extended"}),
    ),
    # There is none, another call has it: clamped, frozen, stopped.
    Certain(
        Script(
            9006,
            _session(40),
            (
                _launch("linger", 1, 24),
                Step("await_calls", {"count": 1}),
                _launch("hold", 24, 8, on_exceed="extend"),
                Step("await_ends", {"count": 1}),
            ),
            "settle",
        ),
        {"throttle_limit": 1},
        frozenset({"clamped", "frozen"}),
    ),
)

# Together more than the host has: of those that want memory the low one gives way, and at last ends.
TOGETHER: Final = (
    Certain(
        Script(
            9007,
            _session(140, 4, "high"),
            (_launch("hold", 88, 88), Step("await_closed", {"session": f"q{_LOW}"})),
            "settle",
        ),
        {},
    ),
    Certain(
        Script(_LOW, _session(140, 4, "low"), (_launch("hold", 88, 8), _LET_END), "settle"),
        {"protection": 1},
    ),
)


async def play_certain(
    daemon: RunningDaemon, alone: Iterable[Certain] = ALONE, together: Sequence[Certain] = TOGETHER
) -> Outcome:
    """Plays them, before others are there; one that came out otherwise is a failure."""
    outcome, expected = Outcome(), {each.script.seed: each for each in (*alone, *together)}
    for each in alone:
        await play(daemon, [each.script], players=1, into=outcome)
    if together:
        scripts = [each.script for each in together]
        await play(daemon, scripts, players=len(scripts), into=outcome)
    for sequence in outcome.played:
        try:
            expected[sequence.script.seed].holds_of(sequence)
        except AssertionError as error:
            outcome.failures.append(Failure(sequence, error))
    return outcome
