"""Random sequences as in tests/native, here with limits that tools run into; and one that the kernel kills for certain."""

import asyncio
from pathlib import Path

import pytest

from tests.sequences.certain import KILLED, play_certain
from tests.sequences.company import ends_agree, kernel_agrees, nothing_is_left, play, playground
from tests.sequences.steps import script

pytestmark = pytest.mark.kernel

# Of 500, which `make sequences KERNEL=7.3` plays.
SEQUENCES = 24
PLAYERS = 6


@pytest.mark.timeout(600)
def test_whatever_happens_the_invariants_hold(tmp_path: Path) -> None:
    with playground(tmp_path) as daemon:
        outcome = asyncio.run(play_certain(daemon, [KILLED], []))
        if not outcome.failures:
            asyncio.run(play(daemon, map(script, range(SEQUENCES)), players=PLAYERS, into=outcome))
        print(outcome)
        assert not outcome.failures, "\n".join(map(str, outcome.failures))
        nothing_is_left(daemon)
        kernel_agrees(daemon, outcome)
        ends_agree(daemon, outcome.verdicts)
