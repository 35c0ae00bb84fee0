"""Plays random sequences again: `python -m tests.sequences 7`, `python -m tests.sequences 0-499 --players 12`.

With --crashes those in which the daemon dies, one after the other.

Alone, a sequence that fails is played with ever fewer steps, as long as it goes on failing, and the fewest are printed.
"""

import argparse
import asyncio
import dataclasses
import sys
import tempfile
import time
from pathlib import Path

from tests.running import running_daemon
from tests.sequences.company import CONFIGURATION, Failure, Outcome, nothing_is_left, play
from tests.sequences.crashes import crashing_script, play_one_by_one
from tests.sequences.steps import CRASH, Script, script


def run(scripts: list[Script], players: int, directory: Path) -> Outcome:
    """With a daemon of its own."""
    crashes = any(step.verb == CRASH for script in scripts for step in script.steps)
    stop = "keep" if crashes else "end"
    with running_daemon(directory, CONFIGURATION, memory="2G", on_stop=stop) as daemon:
        if crashes:
            outcome = asyncio.run(play_one_by_one(daemon, scripts))
        else:
            outcome = asyncio.run(play(daemon, scripts, players=players, eats=lambda _: 1))
        if not outcome.failures:
            nothing_is_left(daemon, has_crashed=crashes)
        return outcome


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
    arguments = parser.parse_args()
    write = crashing_script if arguments.crashes else script
    first, _, last = arguments.seeds.partition("-")
    scripts = [write(seed) for seed in range(int(first), int(last or first) + 1)]
    directory = Path(tempfile.mkdtemp(prefix="acg-"))
    began = time.monotonic()
    outcome = run(scripts, arguments.players, directory)
    print(
        f"{len(scripts)} sequences, {outcome.steps} steps, {time.monotonic() - began:.1f} s, "
        f"calls by end: {dict(outcome.verdicts)}"
    )
    for failure in outcome.failures:
        print(shrink(failure, directory) if len(scripts) == 1 else failure)
    return 1 if outcome.failures else 0


if __name__ == "__main__":
    sys.exit(main())
