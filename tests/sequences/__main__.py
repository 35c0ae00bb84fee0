"""Plays random sequences: `python -m tests.sequences 7`, `python -m tests.sequences 0-499 --players 12`.

With --crashes those in which the daemon dies, one after the other. With --kernel in the guest, where limits are real and
tools run into them; here they are where the memory controller is. `make sequences KERNEL=7.3 ARGS="0-499 --players 8"`.

Alone, a sequence that fails is played with ever fewer steps, as long as it goes on failing, and the fewest are printed.
The end is a count of what happened: how calls ended, which rungs they met, what they ended with after the last of them.
"""

import argparse
import asyncio
import dataclasses
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.sequences.certain import ALONE, TOGETHER, play_certain
from tests.sequences.company import (
    Failure,
    Outcome,
    has_limits,
    kernel_agrees,
    nothing_is_left,
    play,
    playground,
)
from tests.sequences.crashes import crashing_script, play_one_by_one
from tests.sequences.steps import CRASH, Script, script

REPOSITORY: Final = Path(__file__).resolve().parents[2]
PROGRESS_EVERY: Final = 10


def run(
    scripts: list[Script],
    players: int,
    directory: Path,
    said: Callable[[Outcome], None] = lambda _: None,
    *,
    certain: bool = False,
) -> Outcome:
    """With a daemon of its own; `certain`: after those that end in one way."""
    crashes = any(step.verb == CRASH for script in scripts for step in script.steps)
    stop = "keep" if crashes else "end"
    with playground(directory, on_stop=stop) as daemon:
        if crashes:
            outcome = asyncio.run(play_one_by_one(daemon, scripts, said))
        else:
            outcome = asyncio.run(play_certain(daemon)) if certain else Outcome()
            if not outcome.failures:
                asyncio.run(play(daemon, scripts, players=players, into=outcome, said=said))
        if not outcome.failures:
            nothing_is_left(daemon, has_crashed=crashes)
            if not crashes:
                kernel_agrees(daemon, outcome)
        return outcome


def in_guest(arguments: argparse.Namespace) -> int:
    """The same there; vm/run's own exit status when it does not come to the end."""
    flags = [f"--{name}" for name in ("certain", "crashes") if getattr(arguments, name)]
    command = [
        str(REPOSITORY / "vm" / "run"), "--kernel", arguments.kernel, "--no-daemon", "--timeout", str(arguments.timeout),
        "--share", str(REPOSITORY / "tests"), "--share", str(REPOSITORY / "bench"),
        "--out", str(REPOSITORY / "build" / "sequences"), "--",
        "env", "PYTHONPATH=/mnt/share", "/opt/agentcgroup/bin/python", "-m", "tests.sequences", arguments.seeds,
        "--players", str(arguments.players), *flags,
    ]  # fmt: skip
    return subprocess.run(command, check=False).returncode


def shrink(failure: Failure, directory: Path) -> Failure:
    """A failure of as few steps as can be."""
    number = 0
    while number < len(failure.sequence.script.steps):
        steps = failure.sequence.script.steps
        fewer = dataclasses.replace(failure.sequence.script, steps=steps[:number] + steps[number + 1 :])
        place = directory / f"{len(steps)}-{number}"
        place.mkdir()
        again = run([fewer], 1, place).failures
        if again:
            failure = again[0]
        else:
            number += 1
    return failure


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        prog="python -m tests.sequences",
    )
    parser.add_argument("seeds", help="one, or the first and the last: 0-499")
    parser.add_argument("--players", type=int, default=1, help="how many at the same time (default 1)")
    parser.add_argument("--crashes", action="store_true", help="let the daemon die in between")
    parser.add_argument(
        "--certain",
        action="store_true",
        help="first those that meet each rung and kill for certain (needs limits)",
    )
    parser.add_argument("--kernel", metavar="SERIES", help="in a guest with this kernel, as vm/run has it")
    parser.add_argument(
        "--timeout", type=int, default=1800, metavar="S", help="of the guest (default %(default)s)"
    )
    arguments = parser.parse_args()
    if arguments.kernel:
        return in_guest(arguments)
    write = crashing_script if arguments.crashes else script
    first, _, last = arguments.seeds.partition("-")
    certain = {each.script.seed: each.script for each in (*ALONE, *TOGETHER)}
    scripts = [certain.get(seed) or write(seed) for seed in range(int(first), int(last or first) + 1)]
    directory = Path(tempfile.mkdtemp(prefix="acg-"))
    began = time.monotonic()

    def say(outcome: Outcome) -> None:
        if len(outcome.played) % PROGRESS_EVERY == 0:
            took_s = time.monotonic() - began
            print(f"{len(outcome.played)} of {len(scripts)}, {took_s:.0f} s", file=sys.stderr, flush=True)

    outcome = run(scripts, arguments.players, directory, say, certain=arguments.certain)
    print(outcome)
    print(f"  {time.monotonic() - began:.1f} s, {'with' if has_limits() else 'without'} limits")
    for failure in outcome.failures:
        print(shrink(failure, directory) if len(scripts) == 1 else failure)
    return 1 if outcome.failures else 0


if __name__ == "__main__":
    sys.exit(main())
