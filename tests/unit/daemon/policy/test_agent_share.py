"""When an agent hears that its own runtime outgrows what is set aside for it."""

import pytest

from agentcgroup.daemon.model import Level
from agentcgroup.daemon.policy.agent_share import Situation, Stage, stage, word

MIB = 1 << 20


def at(held_mib: int, calls_mib: int = 0) -> Situation:
    return Situation("s", held_mib * MIB, 512 * MIB, calls_mib * MIB, 4096 * MIB)


@pytest.mark.parametrize(
    ("held_mib", "calls_mib", "told", "where"),
    [
        (479, 3600, Stage.CALM, Stage.CALM),
        (480, 0, Stage.CALM, Stage.NEAR),
        (512, 3584, Stage.CALM, Stage.NEAR),
        (513, 0, Stage.NEAR, Stage.OVER),
        (600, 3200, Stage.OVER, Stage.OVER),
        (600, 3240, Stage.OVER, Stage.FULL),
        (465, 0, Stage.FULL, Stage.NEAR),
        (460, 0, Stage.FULL, Stage.CALM),
    ],
)
def test_it_is_near_its_share_then_over_it_and_then_the_session_is_full(
    held_mib: int, calls_mib: int, told: Stage, where: Stage
) -> None:
    assert stage(at(held_mib, calls_mib), told) is where


def test_the_words_have_the_figures_and_what_to_do() -> None:
    level, message, advice = word(at(490), Stage.NEAR)
    assert level is Level.TIGHT and "holds 490 MiB of the 512 MiB set aside" in message
    assert "`agentcg session set s --agent-memory 1024M`" in advice and "restart it" in advice
    level, message, _ = word(at(600, 3400), Stage.OVER)
    assert level is Level.TIGHT and "88 MiB more than the 512 MiB" in message and "is full" not in message
    level, message, _ = word(at(600, 3400), Stage.FULL)
    assert level is Level.CRITICAL and "96 MiB left of 4 GiB" in message
