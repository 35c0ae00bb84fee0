"""What may happen in one random sequence, as data: the same seed makes the same steps.

A step names a call by a number, taken modulo those that are live when its turn comes, so any part of a list of steps is one.
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

Arguments = dict[str, Any]

# The step at which the daemon dies; see tests.sequences.crashes.
CRASH: Final = "crash"
# An emulated machine takes its time for each page: a small host, and smaller calls.
HOST_MIB: Final = 160
# Steps of one sequence.
_LEAST, _MOST = 4, 14
_PRIORITIES: Final = ("low", "normal", "high")
_CLASSES: Final = (None, "interactive", "normal", "batch")
_ON_EXCEED: Final = (None, "stop", "throttle", "throttle", "extend", "extend")
# What a tool does, see sequence.TOOLS.
_TOOLS: Final = (
    "true", "fail", "nap", "linger", "leave", "nest", "nest_eat", "eat", "grow", "grow", "grow", "hold", "hold",
)  # fmt: skip
# A tool takes so much of what its call declared; of one that declared nothing, of this.
_TAKES: Final = (0.5, 1.5, 1.5, 3.0)
_UNDECLARED_MIB: Final = 8
_MOST_TAKEN_MIB: Final = 48


@dataclass(frozen=True, slots=True)
class Step:
    verb: str
    arguments: Arguments

    def __str__(self) -> str:
        told = ", ".join(f"{name}={value!r}" for name, value in self.arguments.items() if value is not None)
        return f"{self.verb}({told})"


@dataclass(frozen=True, slots=True)
class Script:
    """One sequence: the session it begins with, its steps, and how it ends."""

    seed: int
    session: Arguments
    steps: tuple[Step, ...]
    end: str


def _memory_mib(dice: random.Random) -> int | None:
    return dice.choice((None, dice.randint(4, 12), dice.randint(8, 24), dice.randint(24, 100)))


def _wait_ms(dice: random.Random) -> int:
    return dice.choice((0, 100, 20_000, 20_000))


def _session(dice: random.Random) -> Arguments:
    return {
        "memory_mib": dice.randint(32, HOST_MIB - 16),
        "agent_mib": dice.choice((None, 8, 12)),
        "calls_max": dice.choice((2, 16, 16)),
        "priority": dice.choice(_PRIORITIES),
    }


def _intent(dice: random.Random) -> Arguments:
    memory_mib = _memory_mib(dice)
    return {
        "memory_mib": memory_mib,
        "memory_max_mib": dice.choice((None, (memory_mib or _UNDECLARED_MIB) + dice.randint(0, 12))),
        "throttle_limit_ms": dice.choice((None, 200)),
        "cpu_class": dice.choice(_CLASSES),
        "on_exceed": dice.choice(_ON_EXCEED),
        "timeout_ms": dice.choice((None, None, None, 40, 500)),
        "wait_ms": _wait_ms(dice),
    }


def _launch(dice: random.Random) -> Arguments:
    # Half of them ask for the same, so that the next one like it stands ready in the door's thread.
    intent = _intent(dice)
    if dice.random() < 0.5:
        intent = dict.fromkeys(intent)
    return intent | _tool(dice, intent["memory_mib"]) | {"from_agent": dice.random() < 0.5}


def _tool(dice: random.Random, memory_mib: int | None) -> Arguments:
    takes_mib = int(dice.choice(_TAKES) * (memory_mib or _UNDECLARED_MIB))
    return {"tool": dice.choice(_TOOLS), "eat_mib": min(_MOST_TAKEN_MIB, takes_mib)}


def _declare(dice: random.Random) -> Arguments:
    return _intent(dice) | {"inside": dice.randrange(16) if dice.random() < 0.4 else None}


def _which(dice: random.Random) -> Arguments:
    return {"which": dice.randrange(16)}


def _which_and_memory(dice: random.Random) -> Arguments:
    return {"which": dice.randrange(16), "memory_mib": dice.randint(4, 100)}


def _nothing(_: random.Random) -> Arguments:
    return {}


# How often each step is thrown, and what is thrown with it.
_VERBS: Final[Mapping[str, tuple[int, Callable[[random.Random], Arguments]]]] = {
    "launch": (28, _launch),
    "burst": (5, lambda dice: {"count": dice.randint(2, 6)}),
    "declare": (14, _declare),
    "begin_by_ticket": (6, lambda dice: _which(dice) | _tool(dice, None)),
    "begin_by_pid": (6, _which),
    "begin_at_once": (4, _intent),
    "adjust": (5, _which_and_memory),
    "finish": (5, _which),
    "signal_tool": (6, lambda dice: _which(dice) | {"name": dice.choice(("SIGKILL", "SIGKILL", "SIGTERM"))}),
    "cancel": (5, _which),
    "hang_up": (2, _nothing),
    "reach_rung": (8, _nothing),
    "pause": (6, lambda dice: {"ms": dice.randint(1, 40)}),
    "kill_call": (3, _which),
    "freeze_call": (3, _which),
    "thaw_call": (3, _which),
    "set_call": (3, _which_and_memory),
    "set_session": (4, lambda dice: {"memory_mib": dice.randint(24, 170), "agent_mib": dice.choice((None, None, 16)),
                                     "priority": dice.choice((None, *_PRIORITIES))}),
    "freeze_session": (2, lambda dice: {"agent": dice.random() < 0.5}),
    "thaw_session": (3, _nothing),
    "kill_session": (2, _nothing),
    "renew_session": (2, _session),
    "drain": (1, lambda dice: {"deadline_ms": dice.choice((None, 10)), "for_ms": dice.randint(1, 20)}),
}  # fmt: skip


def script(seed: int) -> Script:
    """The sequence of `seed`."""
    dice = random.Random(seed)
    verbs = dice.choices(
        list(_VERBS), [weight for weight, _ in _VERBS.values()], k=dice.randint(_LEAST, _MOST)
    )
    return Script(
        seed,
        _session(dice),
        tuple(Step(verb, _VERBS[verb][1](dice)) for verb in verbs),
        dice.choice(("hang_up", "kill", "remove", "settle", "settle")),
    )
