"""Which execs become calls: rules, shells that read their commands, jobs."""

import dataclasses
import itertools

import pytest

from agentcgroup.daemon.model import Knock, TransparentRule, TransparentScope
from agentcgroup.daemon.policy.transparent import Job, Outcome, decide, is_persistent_shell
from agentcgroup.proto.transparent import parse_rule

ALL = TransparentRule(TransparentScope.ALL)
AGENT_PID, SHELL_PID = 100, 200


def knock(*command: str, **differences: object) -> Knock:
    """An exec by a child of the agent, in the agent's process group, without pipes."""
    plain = Knock(
        session="s",
        pid=300,
        parent_pid=AGENT_PID,
        process_group=AGENT_PID,
        parent_process_group=AGENT_PID,
        filename=f"/usr/bin/{command[0]}",
        command=command,
        is_from_outside=False,
        executed_at_ns=0,
    )
    return dataclasses.replace(plain, **differences)  # type: ignore[arg-type]


def outcome(of: Knock, rule: str = "all", *jobs: Job) -> Outcome:
    return decide(of, parse_rule(rule), jobs).outcome


@pytest.mark.parametrize(
    ("rule", "from_agent", "from_outside"),
    [
        ("off", Outcome.STAYS, Outcome.STAYS),
        ("agent", Outcome.CALL, Outcome.STAYS),
        ("outside", Outcome.STAYS, Outcome.CALL),
        ("all", Outcome.CALL, Outcome.CALL),
    ],
)
def test_the_scope_says_whose_execs_become_calls(
    rule: str, from_agent: Outcome, from_outside: Outcome
) -> None:
    assert outcome(knock("make"), rule) is from_agent
    assert outcome(knock("make", is_from_outside=True), rule) is from_outside


@pytest.mark.parametrize(
    ("rule", "becomes"),
    [
        ("all,exclude=git", {"make": True, "git": False, "gitk": True}),
        ("all,exclude=git*", {"make": True, "git": False, "git-upload-pack": False}),
        ("all,include=py*,include=make", {"make": True, "pytest": True, "git": False}),
        ("all,include=py*,exclude=pytest", {"python3": True, "pytest": False}),
        ("all,exclude=[gm]*", {"git": False, "make": False, "cc": True}),
    ],
)
def test_patterns_are_matched_against_the_name(rule: str, becomes: dict[str, bool]) -> None:
    made = {name: outcome(knock(name), rule) is Outcome.CALL for name in becomes}
    assert made == becomes


def test_the_name_is_that_of_the_path_or_of_argument_0() -> None:
    busybox = knock("ls", filename="/bin/busybox")
    assert outcome(busybox, "all,exclude=ls") is Outcome.STAYS
    assert outcome(busybox, "all,exclude=busybox") is Outcome.STAYS
    assert outcome(knock("/opt/tools/rg", filename="rg"), "all,exclude=rg") is Outcome.STAYS


def test_what_brings_a_call_of_its_own_stays() -> None:
    assert outcome(knock("agentcg", "run", "--", "make")) is Outcome.STAYS
    assert outcome(knock("runc", "init", filename="/proc/self/fd/7", is_from_outside=True)) is Outcome.STAYS
    assert outcome(knock("runc", "--version")) is Outcome.CALL


@pytest.mark.parametrize(
    "command",
    [
        "bash", "-bash", "/bin/bash", "bash -i", "bash --norc -i", "bash --noediting -l", "sh", "sh -", "sh -e", "zsh -f",
        "bash --rcfile /dev/null -i", "bash -o pipefail", "bash -eo pipefail", "sh -s make", "dash -x", "bash +h",
        "bash -O extglob -i",
    ],
)  # fmt: skip
def test_a_shell_that_reads_its_commands_stays_so_that_each_becomes_one(command: str) -> None:
    assert is_persistent_shell({command.split()[0].rpartition("/")[2].lstrip("-")}, command.split())
    assert outcome(knock(*command.split(), filename="/bin/sh")) is Outcome.STAYS


@pytest.mark.parametrize(
    "command",
    ["bash -c make", "bash -lc make", "sh -ec make", "zsh -c make", "bash script.sh", "sh -e script.sh", "bash -- script.sh",
     "sh - script.sh", "bash -o pipefail -c make", "bash --rcfile x script.sh", "fish --command=make", "bash -x -c make"],
)  # fmt: skip
def test_a_shell_that_was_given_its_command_is_a_call(command: str) -> None:
    assert not is_persistent_shell({command.split()[0]}, command.split())
    assert outcome(knock(*command.split())) is Outcome.CALL


def test_only_shells_are_persistent() -> None:
    assert not is_persistent_shell({"python3"}, ["python3", "-i"])
    assert not is_persistent_shell({"bashful"}, ["bashful"])


# ---- jobs


def piped(
    *command: str,
    stdin: int | None = None,
    stdout: int | None = None,
    group: int = SHELL_PID,
    pid: int = 300,
) -> Knock:
    """What a shell starts; by default in its own process group, as shells without job control do."""
    return knock(
        *command,
        pid=pid,
        parent_pid=SHELL_PID,
        process_group=group,
        parent_process_group=SHELL_PID,
        stdin_pipe=stdin,
        stdout_pipe=stdout,
        parent_name="bash",
    )


def test_processes_of_a_group_of_their_own_are_one_job() -> None:
    first = piped("make", group=301, pid=301)
    job = Job.of("c-1", first)
    ruling = decide(piped("tee", "log", group=301, pid=302), ALL, [job])
    assert (ruling.outcome, ruling.call_id) == (Outcome.JOINS, "c-1")
    assert outcome(piped("make", group=303, pid=303), "all", job) is Outcome.CALL


def test_the_shells_own_group_says_nothing() -> None:
    job = Job.of("c-1", piped("server", pid=301))
    assert outcome(piped("make", pid=302), "all", job) is Outcome.CALL


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_a_pipe_makes_one_job_in_whatever_order_its_processes_come(order: tuple[int, ...]) -> None:
    line = [
        piped("make", stdout=77, pid=301),
        piped("grep", stdin=77, stdout=78, pid=302),
        piped("tee", stdin=78, pid=303),
    ]
    first, *others = (line[number] for number in order)
    job = Job.of("c-1", first)
    for each in others:
        assert job.has(each)
        job.add(each)


def test_a_pipeline_that_is_complete_takes_no_other() -> None:
    job = Job.of("c-1", piped("make", stdout=77, pid=301))
    job.add(piped("tee", stdin=77, pid=302))
    assert outcome(piped("cc", stdout=79, pid=304), "all", job) is Outcome.CALL


def test_what_no_shell_started_is_joined_by_its_own_pipe_alone() -> None:
    # An agent runtime has a pipe of its own to each tool, and starts several at once.
    tools = [
        dataclasses.replace(piped("make", stdin=one, stdout=one + 1, pid=one), parent_name="node")
        for one in (10, 20)
    ]
    assert not Job.of("c-1", tools[0]).has(tools[1])


def test_with_job_control_pipes_say_nothing() -> None:
    job = Job.of("c-1", piped("make", stdout=77, group=301, pid=301))
    assert not job.has(piped("tee", stdin=77, group=302, pid=302))


def test_a_job_is_of_one_parent() -> None:
    job = Job.of("c-1", piped("make", stdout=77, group=301, pid=301))
    stranger = dataclasses.replace(piped("tee", stdin=77, group=301), parent_pid=SHELL_PID + 1)
    assert outcome(stranger, "all", job) is Outcome.CALL


def test_a_job_is_joined_also_by_what_no_pattern_includes() -> None:
    job = Job.of("c-1", piped("make", stdout=77))
    assert outcome(piped("tee", stdin=77), "all,include=make", job) is Outcome.JOINS
    assert outcome(piped("tee", stdin=77), "all,exclude=tee", job) is Outcome.STAYS
