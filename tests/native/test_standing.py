"""Standing grants on a real daemon: the next call of its kind is ready, is as any other call, and gives way."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from agentcgroup.client import Client, FeedbackKind, NotFound, OperatorClient, Verdict
from tests.ear import Ear
from tests.running import LAUNCHER, RunningDaemon, running_daemon, wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="making cgroups needs root")

# Of a session of 1 GiB its calls have three quarters.
BUDGET = "1G"
CALLS_BYTES = 768 << 20
SMALL = ("--memory", "100M", "--pids", "50")


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    # Long enough that nothing lapses by itself here.
    with running_daemon(
        tmp_path_factory.mktemp("standing"), '[call]\nstanding_lifetime = "10m"\n'
    ) as running:
        yield running


@pytest.fixture
def session(operator: OperatorClient, request: pytest.FixtureRequest) -> Iterator[str]:
    name = f"g{abs(hash(request.node.name)) % 10**8}"
    operator.create_session(name, memory=BUDGET)
    yield name
    with contextlib.suppress(NotFound):
        operator.remove_session(name)


@pytest.fixture
def ear(daemon: RunningDaemon, session: str) -> Iterator[Ear]:
    with Ear(Client(daemon.session_dir(session))) as listening:
        yield listening


def standing(daemon: RunningDaemon, operator: OperatorClient, session: str) -> set[str]:
    """Ids of cgroups that are no call's."""
    prefix = f"{session}/calls/"
    there = {path.removeprefix(prefix) for path in daemon.cgroups() if path.startswith(prefix)}
    return there - {call.id for call in operator.calls(session)}


def await_standing(
    daemon: RunningDaemon, operator: OperatorClient, session: str, count: int = 1
) -> set[str]:
    """Waits until `count` stand and no call is live."""
    wait_until(
        lambda: not operator.calls(session) and len(standing(daemon, operator, session)) == count,
        what=f"{count} standing grants",
    )
    return standing(daemon, operator, session)


def run(
    daemon: RunningDaemon,
    session: str,
    *command: str,
    options: tuple[str, ...] = SMALL,
    from_agent: bool = True,
) -> tuple[int, str, str]:
    process = daemon.launch(session, *command, options=options, from_agent=from_agent)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def call_of(said: str) -> str:
    """The call that `cat /proc/self/cgroup` says it is in."""
    return next(line for line in said.splitlines() if line.startswith("0::")).rpartition("/")[2]


def test_the_next_launch_of_its_kind_goes_into_the_call_that_stands(
    daemon: RunningDaemon, operator: OperatorClient, session: str, ear: Ear
) -> None:
    status, said, err = run(daemon, session, "cat", "/proc/self/cgroup")
    assert status == 0, err
    (ready,) = await_standing(daemon, operator, session)
    assert call_of(said) != ready
    assert [call.id for call in operator.calls(session)] == []

    status, said, err = run(
        daemon, session, "sh", "-c", "cat /proc/self/cgroup /proc/self/oom_score_adj; exit 7"
    )
    assert (status, call_of(said)) == (7, ready), err
    assert said.splitlines()[-1] == "500"
    report = ear.wait(lambda m: m.report is not None and m.call_id == ready, what="its report").report
    assert report is not None and (report.verdict, report.exit_code) == (Verdict.EXIT_CODE, 7)
    started = ear.wait(lambda m: m.kind is FeedbackKind.STARTED and m.call_id == ready, what="its start")
    assert "sh -c cat" in started.message
    (entry,) = [each for each in operator.history(session=session) if each.report.call_id == ready]
    assert entry.intent.memory_bytes == 100 << 20
    assert entry.intent.command[:2] == ("sh", "-c")
    (following,) = await_standing(daemon, operator, session)
    assert following != ready


def test_who_asks_for_something_new_each_time_has_it_prepared_once_it_asks_again(
    daemon: RunningDaemon, operator: OperatorClient, session: str
) -> None:
    # Of the latest three kinds, that is: 10M is forgotten for 40M, and neither 30M nor 40M is prepared for.
    for size, count in (("10M", 1), ("20M", 2), ("30M", 2), ("40M", 1), ("40M", 2)):
        run(daemon, session, "true", options=("--memory", size))
        ready = await_standing(daemon, operator, session, count)
    _, said, _ = run(daemon, session, "cat", "/proc/self/cgroup", options=("--memory", "40M"))
    assert call_of(said) in ready


def test_how_a_tool_ended_is_known_however_soon(
    daemon: RunningDaemon, operator: OperatorClient, session: str, ear: Ear
) -> None:
    for _ in range(20):
        assert run(daemon, session, "sh", "-c", "exit 3")[0] == 3
    wait_until(lambda: sum(m.report is not None for m in ear.heard) == 20, what="20 reports")
    assert {m.report.exit_code for m in ear.heard if m.report is not None} == {3}


def test_the_tool_has_the_environment_of_its_own_call(
    daemon: RunningDaemon, operator: OperatorClient, session: str
) -> None:
    run(daemon, session, "true")
    (ready,) = await_standing(daemon, operator, session)
    _, said, _ = run(daemon, session, "env")
    told = dict(line.partition("=")[::2] for line in said.splitlines())
    assert told["AGENTCGROUP_CALL_ID"] == ready
    assert (told["AGENTCGROUP_SESSION"], told["AGENTCGROUP_MEMORY_BYTES"]) == (session, str(100 << 20))


@pytest.mark.parametrize(
    "options",
    [
        ("--memory", "100M"),
        ("--pids", "50", "--memory", "100M"),
        (*SMALL, "--label", "a=b"),
        (*SMALL, "--json"),
    ],
)
def test_another_intent_is_ruled_on_by_itself(
    daemon: RunningDaemon, operator: OperatorClient, session: str, options: tuple[str, ...]
) -> None:
    run(daemon, session, "true")
    (ready,) = await_standing(daemon, operator, session)
    status, said, err = run(daemon, session, "cat", "/proc/self/cgroup", options=options)
    assert status == 0, err
    # --json is the launcher's own and no part of the intent.
    assert (call_of(said) == ready) is ("--json" in options)


def test_who_is_not_in_the_agent_leaf_waits_for_python(
    daemon: RunningDaemon, operator: OperatorClient, session: str
) -> None:
    run(daemon, session, "true")
    (ready,) = await_standing(daemon, operator, session)
    status, said, err = run(daemon, session, "cat", "/proc/self/cgroup", from_agent=False)
    assert status == 0, err
    assert call_of(said) != ready
    # From within a call it is a nested call, inside the call's limits.
    nested = f"exec {LAUNCHER} run {' '.join(SMALL)} -- cat /proc/self/cgroup"
    outer = ("--memory", "200M")
    status, said, err = run(daemon, session, "sh", "-c", nested, options=outer)
    assert status == 0, err
    assert call_of(said) != ready and said.count("/c-") == 2
    assert ready in standing(daemon, operator, session)


def test_it_gives_way_to_a_call_that_needs_its_memory(
    daemon: RunningDaemon, operator: OperatorClient, session: str
) -> None:
    run(daemon, session, "true", options=("--memory", "500M"))
    (ready,) = await_standing(daemon, operator, session)
    holder = daemon.launch(session, "sleep", "60", options=("--memory", "400M"))
    wait_until(lambda: len(operator.calls(session)) == 1, what="the larger call")
    assert ready not in standing(daemon, operator, session)
    holder.kill()
    holder.communicate()


def test_it_gives_way_to_another_session_on_a_full_host(tmp_path_factory: pytest.TempPathFactory) -> None:
    configuration = '[call]\nstanding_lifetime = "10m"\n'
    with (
        running_daemon(tmp_path_factory.mktemp("full"), configuration) as daemon,
        daemon.operator() as operator,
    ):
        capacity = operator.host().memory_capacity_bytes
        for name in ("one", "two"):
            operator.create_session(name, memory=capacity, agent_memory="16M")
        rest = capacity - (32 << 20)
        run(daemon, "one", "true", options=("--memory", str(rest * 2 // 3)))
        await_standing(daemon, operator, "one")
        status, _, err = run(daemon, "two", "true", options=("--memory", str(rest * 2 // 3)))
        assert status == 0, err
        assert standing(daemon, operator, "one") == set()


@pytest.mark.parametrize("change", ["update", "freeze", "adjust", "drain", "reload"])
def test_what_it_was_ruled_by_changes(
    daemon: RunningDaemon, operator: OperatorClient, session: str, change: str
) -> None:
    run(daemon, session, "true")
    (ready,) = await_standing(daemon, operator, session)
    holder = daemon.launch(session, "sleep", "60", options=("--memory", "50M"))
    wait_until(lambda: len(operator.calls(session)) == 1, what="a call")
    assert ready in standing(daemon, operator, session)
    match change:
        case "update":
            operator.update_session(session, memory="2G")
        case "freeze":
            operator.freeze_session(session)
            operator.thaw_session(session)
        case "adjust":
            operator.update_call(operator.calls(session)[0].id, memory="60M")
        case "drain":
            operator.drain_host(reason="a test")
            operator.resume_host()
        case "reload":
            before = daemon.config.read_text()
            daemon.config.write_text(before.replace("[call]", "[call]\npids_max = 77"))
            operator.reload_configuration()
            daemon.config.write_text(before)
            operator.reload_configuration()
    assert ready not in standing(daemon, operator, session)
    holder.kill()
    holder.communicate()


def test_what_a_reload_changes_holds_for_the_next_call_and_for_those_prepared_from_then_on(
    daemon: RunningDaemon, operator: OperatorClient, session: str
) -> None:
    before = daemon.config.read_text()
    daemon.config.write_text(before.replace("[call]", "[call]\noom_score_adj = 300"))
    try:
        operator.reload_configuration()
        for _ in range(2):
            assert run(daemon, session, "cat", "/proc/self/oom_score_adj")[1] == "300\n"
            await_standing(daemon, operator, session)
    finally:
        daemon.config.write_text(before)
        operator.reload_configuration()


def test_removing_the_session_takes_it_along(
    daemon: RunningDaemon, operator: OperatorClient, session: str
) -> None:
    run(daemon, session, "true")
    await_standing(daemon, operator, session)
    operator.remove_session(session)
    assert not any(path.startswith(session) for path in daemon.cgroups())


def test_it_lapses_and_is_switched_off_by_a_lifetime_of_0(tmp_path_factory: pytest.TempPathFactory) -> None:
    for lifetime, count in (("1s", 1), ("0", 0)):
        configuration = f'[call]\nstanding_lifetime = "{lifetime}"\n'
        with (
            running_daemon(tmp_path_factory.mktemp("lapse"), configuration) as daemon,
            daemon.operator() as operator,
        ):
            operator.create_session("s", memory=BUDGET)
            assert run(daemon, "s", "true")[0] == 0
            if count:
                await_standing(daemon, operator, "s")
            wait_until(lambda d=daemon: not d.call_cgroups(), what="nothing that stands")
            assert [each.report.verdict for each in operator.history(session="s")] == [Verdict.OK]


def test_a_burst_never_reserves_more_than_there_is(
    daemon: RunningDaemon, operator: OperatorClient, session: str, ear: Ear
) -> None:
    """Launches race against each other, against what is prepared, and against calls of another size."""
    for _ in range(3):
        run(daemon, session, "true")
    launched = [
        daemon.launch(session, "sleep", "1000", options=options, from_agent=True)
        for _ in range(8)
        for options in (SMALL, ("--memory", "150M"))
    ]
    try:
        wait_until(
            lambda: sum(process.poll() is None for process in launched) == len(operator.calls(session)),
            what="an answer for everybody",
        )
        # Those that are queued have none.
        reserved = [call.limits.memory_bytes for call in operator.calls(session) if call.limits.memory_bytes]
        assert sum(reserved) <= CALLS_BYTES
        assert len(reserved) >= 3
    finally:
        for process in launched:
            process.send_signal(signal.SIGTERM)
        for process in launched:
            process.communicate()
    wait_until(lambda: not operator.calls(session), what="no calls")


def test_a_killed_launcher_leaves_nothing(
    daemon: RunningDaemon, operator: OperatorClient, session: str, ear: Ear
) -> None:
    """Killed at whatever moment: before it is placed, between, or as the tool."""
    run(daemon, session, "true")
    await_standing(daemon, operator, session)
    for delay_us in range(0, 3000, 150):
        process = daemon.launch(session, "sleep", "1000", options=SMALL, from_agent=True)
        subprocess.run(["sleep", f"{delay_us / 1e6:f}"], check=True)
        process.kill()
        process.communicate()
    wait_until(lambda: not operator.calls(session), what="no calls")
    operator.remove_session(session)
    assert not any(path.startswith(session) for path in daemon.cgroups())
