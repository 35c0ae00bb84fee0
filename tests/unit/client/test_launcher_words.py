"""The launcher's command line, its help, and where it sends every command but `run`."""

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from agentcgroup.proto.launch import Reply, Status
from tests.unit.client.conftest import Door, RunLauncher

GRANTED = Reply(Status.GRANTED, call_id="c1")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ((), "no command"),
        (("--memory", "1G", "--"), "no command"),
        (("--memroy", "1G", "--", "true"), "unknown option --memroy"),
        (("-m", "1G", "--", "true"), "unknown option -m"),
        (("--memory",), "--memory needs a value"),
        (("--memory", "1G", "--memory=2G", "--", "true"), "--memory is given twice"),
        (("--json=yes", "--", "true"), "--json takes no value"),
        (("--answer-timeout", "soon", "--", "true"), "'soon' is no time"),
        (("--answer-timeout", "99999999999999999999", "--", "true"), "is no time"),
        (("--answer-timeout=", "--", "true"), "is no time"),
        (("--if-unreachable", "maybe", "--", "true"), "'maybe' is neither run nor refuse"),
        (("--session-dir", "", "--", "true"), "name is empty"),
        (("--session-dir", "/" + "d" * 5000, "--", "true"), "too long"),
    ],
)
def test_a_wrong_command_line_exits_with_2_and_says_what_is_wrong(
    run: RunLauncher, words: tuple[str, ...], complaint: str
) -> None:
    done = run(*words)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert "see agentcg run --help" in done.stderr


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--json",), "no command"),
        (("--memroy", "1G", "--json", "--", "true"), "unknown option --memroy"),
        (("-m", "1G", "--json", "--", "true"), "unknown option -m"),
        (("-", "--json", "true"), "unknown option -"),
        (("--memory=1G", "--memory", "2G", "--json", "true"), "--memory is given twice"),
        (("--label", "--json", "--answer-timeout", "soon", "--json", "--", "true"), "'soon' is no time"),
    ],
)
def test_what_is_wrong_is_json_when_json_is_asked_for_anywhere(
    run: RunLauncher, words: tuple[str, ...], complaint: str
) -> None:
    done = run(*words)
    told = json.loads(done.stderr)
    assert (done.returncode, told["exit_status"], told["placed"]) == (2, 2, False)
    assert (told["decision"], told["reason"], told["suggestion"]) == (
        "invalid",
        "invalid",
        "see agentcg run --help",
    )
    assert complaint in told["message"]


@pytest.mark.parametrize(
    "words", [("--bad", "--", "true", "--json"), ("--label", "--json", "--bad", "true")]
)
def test_json_that_is_no_option_of_the_launcher_asks_for_nothing(
    run: RunLauncher, words: tuple[str, ...]
) -> None:
    done = run(*words)
    assert done.returncode == 2
    assert done.stderr.startswith("agentcg: unknown option --bad\n")


def test_a_wrong_variable_is_an_error_before_it_is_needed(door: Door, run: RunLauncher) -> None:
    with door([GRANTED]):
        policy = run("--", "true", variables={"AGENTCGROUP_IF_UNREACHABLE": "Run"})
        wait = run("--", "true", variables={"AGENTCGROUP_ANSWER_TIMEOUT": "-1"})
    assert (policy.returncode, wait.returncode) == (2, 2)
    assert "AGENTCGROUP_IF_UNREACHABLE: 'Run'" in policy.stderr
    assert "AGENTCGROUP_ANSWER_TIMEOUT: '-1'" in wait.stderr
    told = json.loads(run("--json", "--", "true", variables={"AGENTCGROUP_ANSWER_TIMEOUT": "-1"}).stderr)
    assert told["message"].startswith("AGENTCGROUP_ANSWER_TIMEOUT: '-1' is no time")


def test_the_help_names_every_option_and_every_exit_status(run: RunLauncher) -> None:
    done = run("--help")
    assert (done.returncode, done.stderr) == (0, "")
    statuses = done.stdout.partition("Exit status:")[2].partition("Examples:")[0]
    for status in (2, 120, 121, 125, 126, 127):
        assert f"\n  {status:>3}  " in statuses
    options = (
        "memory memory-max cpu weight class pids timeout expect on-exceed throttle-limit label ticket session-dir "
        "if-unreachable wait json quiet help"
    )
    for option in options.split():
        assert f"\n  --{option} " in done.stdout
    assert run("-h").stdout == done.stdout


def test_the_command_itself_has_help_and_a_version(launcher: Path) -> None:
    def ask(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([launcher, *words], capture_output=True, text=True, check=False, timeout=60)

    assert ask("--version").stdout == "agentcg 9.8.7\n"
    assert ask("--help").returncode == 0
    for command in ("run", "limits", "watch", "session", "call", "explain", "history", "replay", "check"):
        assert f"\n  {command} " in ask("--help").stdout
    assert (ask().returncode, ask().stdout) == (2, "")
    assert ask().stderr == ask("--help").stdout


def test_another_command_goes_to_the_python_beside_the_launcher(launcher: Path, tmp_path: Path) -> None:
    beside = tmp_path / "bin"
    beside.mkdir()
    (beside / "agentcg").symlink_to(launcher)
    copy = beside / "copy"
    copy.write_bytes(launcher.read_bytes())
    copy.chmod(0o755)
    # A wrapper, because a link to this venv's Python would lose the venv.
    (beside / "python3").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (beside / "python3").chmod(0o755)
    done = subprocess.run(
        [copy, "session", "--help"], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0
    assert "usage: agentcg session" in done.stdout


def test_a_launcher_without_its_package_says_that_it_only_knows_run(launcher: Path, tmp_path: Path) -> None:
    alone = tmp_path / "agentcg"
    alone.write_bytes(launcher.read_bytes())
    alone.chmod(alone.stat().st_mode | stat.S_IXUSR)
    nowhere = subprocess.run(
        [alone, "session", "list"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={"PATH": "/nonexistent"},
    )
    # -S: a Python without site-packages has no agentcgroup.
    (tmp_path / "python3").write_text(f'#!/bin/sh\nexec {sys.executable} -S -E "$@"\n')
    (tmp_path / "python3").chmod(0o755)
    without = subprocess.run(
        [alone, "session", "list"], capture_output=True, text=True, check=False, timeout=60
    )
    for done in (nowhere, without):
        assert done.returncode == 125
        assert "standalone launcher, which knows only run" in done.stderr
        assert "pip install agentcgroup" in done.stderr
