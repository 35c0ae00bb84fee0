"""The stage: whom agents run as, how the daemon is configured, what counts as left over, how the guest is called."""

import fcntl
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from agentcgroup.daemon import config as configuration
from demo import remains, service, stage
from demo.__main__ import make_parser, sole
from demo.fetch import SetupFailed
from demo.guest import Guest
from demo.story import HOST_MEMORY_BYTES


def test_agents_run_as_whoever_called_sudo() -> None:
    assert stage.owner_of(1, {"SUDO_UID": "1000", "SUDO_GID": "100"}, []) == (1000, 100)


def test_else_each_runs_as_an_unprivileged_user_of_its_own() -> None:
    owners = {stage.owner_of(index, {}, [Path("/usr/bin/env")]) for index in range(3)}

    assert len(owners) == 3
    assert all(owner is not None and owner[0] != 0 for owner in owners)


def test_programs_that_only_root_can_reach_leave_root(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)

    assert stage.owner_of(0, {}, [closed / "python"]) is None
    assert not stage.is_open_to_all(closed / "python")
    assert stage.is_open_to_all(Path("/usr/bin/env"))


def test_the_daemon_takes_the_configuration_it_is_given(tmp_path: Path) -> None:
    config = configuration.parse(service.Settings(tmp_path, 9999).text())

    assert config.host.memory == HOST_MEMORY_BYTES
    assert config.host.unenforced == "refuse"
    assert config.metrics.port == 9999
    assert not config.host.favordynmods
    assert config.daemon.state_dir == str(tmp_path)
    assert (
        configuration.parse(service.Settings(tmp_path, 1, runs_unenforced=True).text()).host.unenforced
        == "run"
    )


def test_a_port_that_is_taken_is_passed_over() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]

        assert service.free_port(port) not in (0, port)


def test_a_daemon_that_runs_there_already_is_noticed(tmp_path: Path) -> None:
    service.refuse_second(tmp_path)
    with (tmp_path / "daemon.lock").open("w") as lock:
        service.refuse_second(tmp_path)
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(service.DaemonFailed, match="another make run"):
            service.refuse_second(tmp_path)


def test_cgroups_below_the_root_are_found_but_the_daemons_own(tmp_path: Path) -> None:
    for name in ("daemon", "builder/calls/c-1"):
        (tmp_path / name).mkdir(parents=True)

    assert remains.cgroups_under(tmp_path) == ["builder", "builder/calls", "builder/calls/c-1"]
    assert remains.cgroups_under(tmp_path / "gone") == []


def test_a_process_is_found_by_its_environment() -> None:
    mark = f"AGENTCGROUP_TEST_MARK={os.getpid()}"
    name, _, value = mark.partition("=")
    with subprocess.Popen(
        [sys.executable, "-c", "print(flush=True); input()"], env={**os.environ, name: value},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        process.stdout.readline()
        found = remains.processes_with(mark.encode())
        process.communicate(b"\n")

    assert [each.split()[0] for each in found] == [str(process.pid)]
    assert remains.processes_with(mark.encode()) == []


def test_the_guest_runs_the_same_job_natively(tmp_path: Path) -> None:
    guest = Guest("6.12", tmp_path / "input", tmp_path, 200)

    command = guest.command("no controllers", ["--keep"])
    own, job = command[: command.index("--")], command[command.index("--") + 1 :]

    assert own[0].endswith("vm/run")
    assert own[own.index("--kernel") + 1] == "6.12"
    assert int(own[own.index("--timeout") + 1]) > 200
    words = job[job.index("-m") + 2 :]
    arguments = make_parser().parse_args(words)
    assert arguments.native
    assert arguments.events
    assert arguments.keep
    assert (arguments.why, arguments.input, str(arguments.out)) == (
        "no controllers",
        "/mnt/share/input",
        "/mnt/out",
    )


def test_two_jobs_do_not_share_a_directory(tmp_path: Path) -> None:
    with sole(tmp_path), pytest.raises(SetupFailed, match="another make run"), sole(tmp_path):
        pass


def test_native_and_guest_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        make_parser().parse_args(["--native", "--guest"])
    assert "not allowed with" in capsys.readouterr().err
