"""The main job's agent runtime against a real daemon: every door, what it hears, what it writes down."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentcgroup.client import Verdict
from demo import transcript
from demo.records import Step, Transcript
from tests.running import LAUNCHER, RunningDaemon, running_daemon

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="making cgroups needs root")

REPOSITORY = Path(__file__).resolve().parents[2]

# An agent of the story's kind, with tools that take no time. Names of steps are borrowed from the story.
AGENT = """
import os, sys
from pathlib import Path
from agentcgroup.client import Client
from demo.harness import Harness, Site, Tool
from demo.meeting import Meeting
from demo.story import Point, StepName
from demo.transcript import Writer

here = Path(sys.argv[1])
site = Site(here, here, sys.executable, os.environ["AGENTCGROUP_LAUNCHER"])
with Client() as client:
    agent = Harness("tester", site, Meeting(here), Writer(here / "transcript.jsonl"), client)
    agent.meeting.reach(Point.TESTER_READY)
    limits = {"memory": "16M", "memory-max": "64M", "pids": "20", "class": "interactive"}
    shell = lambda text: ["sh", "-c", text]
    agent.launch(Tool(StepName.BUILD, "by the launcher", shell("echo out; echo err >&2; exit 3"), limits, here))
    left = agent.launch(Tool(StepName.SERVE, "leaves one behind", shell("sleep 600 >/dev/null 2>&1 &"), limits))
    stopped = agent.launch(Tool(StepName.WAIT, "too long", shell("sleep 600"), limits | {"timeout": "1s"}))
    declared = Tool(StepName.TESTS, "declared first", shell("echo declared"), limits, because_of=stopped.name)
    agent.launch_declared(declared, agent.declare(declared))
    agent.declare(Tool(StepName.TESTS_REFUSED, "far too much", shell("true"), {"memory": "100G"}))
    agent.run_in_scope(Tool(StepName.COMMIT, "in a scope", shell("echo scoped"), limits, here))
    agent.place(Tool(StepName.COLLECT, "by its pid", shell("echo placed; exit 4"), limits, here))
    agent.launch(declared.retried(left, StepName.LOOK, "again", memory_max="32M"))
    agent.findings["home"] = str(here)
    agent.end()
"""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    with running_daemon(tmp_path_factory.mktemp("daemon")) as running:
        yield running


@pytest.fixture(scope="module")
def played(daemon: RunningDaemon, tmp_path_factory: pytest.TempPathFactory) -> Transcript:
    here = tmp_path_factory.mktemp("agent")
    script = here / "agent.py"
    script.write_text(AGENT)
    command: list[str | Path] = [
        LAUNCHER, "session", "run", "story", "--memory", "512M", "--agent-memory", "64M", "--socket",
        daemon.operator_socket, "--", sys.executable, script, here,
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return transcript.read(here / "transcript.jsonl")


def named(played: Transcript, name: str) -> Step:
    return next(step for step in played.steps if step.name == name)


def test_every_call_and_every_refusal_is_a_step_in_order(played: Transcript) -> None:
    assert [step.name for step in played.steps] == [
        "build", "serve-docs", "wait-for-server", "tests", "tests-too-large", "commit", "collect-garbage", "look-once",
    ]  # fmt: skip


def test_what_the_stream_told_stands_beside_what_the_agent_saw_itself(played: Transcript) -> None:
    step = named(played, "build")

    assert (step.door, step.decision, step.verdict) == ("launcher", "granted", Verdict.EXIT_CODE)
    assert step.exit_status == 3
    assert "exit status 3" in step.message
    assert sorted(step.output_tail.splitlines()) == ["err", "out"]
    assert step.declared["memory"] == "16M"


def test_a_leftover_and_a_deadline_are_told(played: Transcript) -> None:
    assert named(played, "serve-docs").leftover_processes == 1
    assert named(played, "wait-for-server").verdict == Verdict.DEADLINE
    assert named(played, "wait-for-server").advice


def test_every_door_leads_to_a_call_of_its_own(played: Transcript) -> None:
    ran = [step for step in played.steps if step.call_id]

    assert {step.door for step in ran} == {"launcher", "ticket", "sdk", "process"}
    assert len({step.call_id for step in ran}) == len(ran) == 7
    assert named(played, "tests").output_tail == "declared"
    assert named(played, "commit").output_tail == "scoped"
    placed = named(played, "collect-garbage")
    assert (placed.output_tail, placed.verdict, placed.exit_status) == ("placed", Verdict.EXIT_CODE, 4)


def test_a_refusal_is_written_down_with_its_reason(played: Transcript) -> None:
    step = named(played, "tests-too-large")

    assert (step.decision, step.call_id, step.verdict) == ("refused", "", "")
    assert step.reason
    assert step.suggestion


def test_a_tool_tried_again_says_why_and_what_changed(played: Transcript) -> None:
    step = named(played, "look-once")

    assert step.because_of == "serve-docs"
    assert step.declared["memory-max"] == "32M"
    assert step.declared["pids"] == "20"


def test_the_agents_last_line_counts_what_it_heard(played: Transcript) -> None:
    assert played.end is not None
    # A start and an end for each of seven calls, one refusal, one greeting.
    assert played.end.messages_heard >= 16
    assert played.end.messages_lost == 0
    assert played.end.findings["home"]
