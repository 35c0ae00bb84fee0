"""Random sequences as in tests/native, here with limits: tools take half as much again as they declared."""

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from tests.running import running_daemon
from tests.sequences.company import CONFIGURATION, ends_agree, nothing_is_left, play
from tests.sequences.steps import script

pytestmark = pytest.mark.kernel

SEQUENCES = 30
PLAYERS = 5
# Less than budgets add up to.
MEMORY = "1100M"


def eats(memory_mib: int | None) -> int:
    """Half as much again as declared; an emulated machine takes its time for each page."""
    return min(48, (memory_mib or 32) * 3 // 2)


@pytest.mark.timeout(600)
def test_whatever_happens_the_invariants_hold(tmp_path: Path) -> None:
    with running_daemon(tmp_path, CONFIGURATION, unenforced="refuse", memory=MEMORY) as daemon:
        outcome = asyncio.run(play(daemon, map(script, range(SEQUENCES)), players=PLAYERS, eats=eats))
        assert not outcome.failures, "\n".join(map(str, outcome.failures))
        nothing_is_left(daemon)
        ended: Counter[str] = outcome.verdicts
        ends_agree(daemon, ended)
        assert "ok" in ended
        print(dict(ended))
