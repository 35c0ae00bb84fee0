"""An agent that reads what it is told gets its work done; the same agent without ears does not. Neither dies of it."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentcgroup.client import Verdict
from tests.kernel import scripted_agent
from tests.running import LAUNCHER, RunningDaemon, running_daemon

Outcome = dict[str, int | str]

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    with running_daemon(tmp_path_factory.mktemp("loop"), unenforced="refuse") as running:
        yield running


class Loop:
    """The agent at work in a session of its own."""

    def __init__(self, daemon: RunningDaemon, manner: str) -> None:
        session = ("session", "run", f"loop-{manner}", "--memory", "800M", "--agent-memory", "100M", "--")
        self._process = subprocess.Popen(
            [str(LAUNCHER), *session, sys.executable, scripted_agent.__file__, manner],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
            env=os.environ | {"AGENTCGROUP_OPERATOR_SOCKET": str(daemon.operator_socket)},
        )

    def outcomes(self) -> list[Outcome]:
        """What it says at its end; its exit status says that it lived to see it."""
        out, errors = self._process.communicate(timeout=300)
        assert self._process.returncode == 0, errors[-3000:]
        outcomes: list[Outcome] = json.loads(out.splitlines()[-1])
        assert len(outcomes) == 20
        return outcomes

    def end(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()


@pytest.fixture(scope="module")
def loops(daemon: RunningDaemon) -> Iterator[dict[str, Loop]]:
    """Both manners at the same time: each mostly waits."""
    loops = {manner: Loop(daemon, manner) for manner in ("heed", "ignore")}
    yield loops
    for loop in loops.values():
        loop.end()


def test_of_twenty_calls_declared_too_small_all_end_well_when_the_messages_are_read(
    loops: dict[str, Loop],
) -> None:
    outcomes = loops["heed"].outcomes()
    assert {each["verdict"] for each in outcomes} == {Verdict.OK}, outcomes
    further = [int(each["further_declarations"]) for each in outcomes]
    assert max(further) <= scripted_agent.MOST_FURTHER_DECLARATIONS
    assert sum(each > 0 for each in further) > 10, "most were too big as first declared"


def test_the_same_loop_without_messages_fails_most(loops: dict[str, Loop]) -> None:
    outcomes = loops["ignore"].outcomes()
    failed = [each for each in outcomes if each["verdict"] != Verdict.OK]
    assert len(failed) > 10, outcomes
    assert {each["verdict"] for each in failed} <= {Verdict.MEMORY_LIMIT_CALL, Verdict.THROTTLE_LIMIT}
