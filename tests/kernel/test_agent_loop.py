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

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    with running_daemon(tmp_path_factory.mktemp("loop"), unenforced="refuse") as running:
        yield running


def loop(daemon: RunningDaemon, manner: str) -> list[dict[str, int | str]]:
    """Runs the agent in a session of its own; the agent's exit status says that it lived to the end."""
    done = subprocess.run(
        [
            *(
                str(LAUNCHER),
                "session",
                "run",
                f"loop-{manner}",
                "--memory",
                "800M",
                "--agent-memory",
                "100M",
                "--",
            ),
            *(sys.executable, scripted_agent.__file__, manner),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"AGENTCGROUP_OPERATOR_SOCKET": str(daemon.operator_socket)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    outcomes: list[dict[str, int | str]] = json.loads(done.stdout.splitlines()[-1])
    assert len(outcomes) == 20
    return outcomes


def test_of_twenty_calls_declared_too_small_all_end_well_when_the_messages_are_read(
    daemon: RunningDaemon,
) -> None:
    outcomes = loop(daemon, "heed")
    assert {each["verdict"] for each in outcomes} == {Verdict.OK}, outcomes
    further = [int(each["further_declarations"]) for each in outcomes]
    assert max(further) <= scripted_agent.MOST_FURTHER_DECLARATIONS
    assert sum(each > 0 for each in further) > 10, "most were too big as first declared"


def test_the_same_loop_without_messages_fails_most(daemon: RunningDaemon) -> None:
    outcomes = loop(daemon, "ignore")
    failed = [each for each in outcomes if each["verdict"] != Verdict.OK]
    assert len(failed) > 10, outcomes
    assert {each["verdict"] for each in failed} <= {Verdict.MEMORY_LIMIT_CALL, Verdict.THROTTLE_LIMIT}
