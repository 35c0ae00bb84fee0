"""500 random sequences of sessions, calls, cancellations, disconnects and operators against the real daemon.

On real cgroups, here without controllers: placement, queue and books are real, limits are not; see tests/kernel for those.
"""

import asyncio
import os
from collections import Counter
from pathlib import Path

import pytest

from tests.sequences.company import Held, ends_agree, has_not_grown, nothing_is_left, play, playground
from tests.sequences.crashes import crashing_script, play_one_by_one
from tests.sequences.steps import script

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="making cgroups needs root")

SEQUENCES = 500
# The daemon has grown to its size when so many are over.
WARM = 100
PLAYERS = 10
# A start of the daemon takes most of a second.
CRASHING_SEQUENCES = 5


@pytest.mark.timeout(600)
def test_whatever_happens_the_invariants_hold(tmp_path: Path) -> None:
    with playground(tmp_path) as daemon:

        def run(seeds: range) -> None:
            outcome = asyncio.run(play(daemon, map(script, seeds), players=PLAYERS))
            assert not outcome.failures, "\n".join(map(str, outcome.failures))
            ended.update(outcome.verdicts)
            nothing_is_left(daemon)

        ended: Counter[str] = Counter()
        run(range(WARM))
        before = Held.by(daemon)
        run(range(WARM, SEQUENCES))
        has_not_grown(daemon, before)
        ends_agree(daemon, ended)
        assert {"ok", "signal", "operator", "session_end"} <= set(ended), (
            "they reached what they were to reach"
        )


@pytest.mark.timeout(600)
def test_whenever_the_daemon_dies_the_next_one_goes_on(tmp_path: Path) -> None:
    with playground(tmp_path, on_stop="keep") as daemon:
        outcome = asyncio.run(play_one_by_one(daemon, map(crashing_script, range(CRASHING_SEQUENCES))))
        assert not outcome.failures, "\n".join(map(str, outcome.failures))
        nothing_is_left(daemon, has_crashed=True)
