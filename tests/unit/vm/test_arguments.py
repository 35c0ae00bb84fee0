"""The command line: what it means, and that nonsense ends with the status for failed set-ups."""

from pathlib import Path

import pytest

from vm.arguments import DEFAULT_OUT, DEFAULT_TIMEOUT_S, make_parser, parse
from vm.kernel import DEFAULT_SERIES
from vm.outcome import ExitStatus


def test_a_command_alone_gets_the_defaults() -> None:
    found = parse(["--", "uname", "-a"])
    assert found.command == ("uname", "-a")
    assert (found.series, found.cpus, found.memory) == (DEFAULT_SERIES, 2, "4G")
    assert (found.out, found.timeout_s, found.shares) == (DEFAULT_OUT, DEFAULT_TIMEOUT_S, ())


def test_everything_after_the_first_dashes_belongs_to_the_command() -> None:
    found = parse(["--cpus", "4", "--", "tool", "--cpus", "8", "--", "x"])
    assert found.cpus == 4
    assert found.command == ("tool", "--cpus", "8", "--", "x")


def test_every_option_arrives(tmp_path: Path) -> None:
    first, second = tmp_path / "one", tmp_path / "two"
    first.mkdir()
    second.mkdir()
    options = f"--kernel 6.12 --cpus 1 --memory 512M --share {first} --share {second} --out o --timeout 1.5"
    found = parse([*options.split(), "--bare", "--no-daemon", "--", "true"])
    assert (found.series, found.cpus, found.memory, found.timeout_s) == ("6.12", 1, "512M", 1.5)
    assert (found.shares, found.out) == ((first, second), Path("o"))
    assert found.is_bare
    assert found.is_without_daemon
    assert not found.is_counted


@pytest.mark.parametrize(("words", "cpus"), [("--counted", 1), ("--counted --cpus 2", 2)])
def test_a_guest_that_counts_instructions_has_one_processor_unless_told(words: str, cpus: int) -> None:
    found = parse([*words.split(), "--", "true"])
    assert (found.is_counted, found.cpus) == (True, cpus)


@pytest.mark.parametrize("option", ["--build-only", "--print-cache", "--clean"])
def test_some_options_need_no_command(option: str) -> None:
    assert parse([option]).command == ()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("", "a command is missing"),
        ("--", "a command is missing"),
        ("--build-only -- true", "takes no command"),
        ("--build-only --clean", "exclude each other"),
        ("uname -a", "goes after --: vm/run [OPTIONS] -- uname"),
        ("--kernel 7 -- true", "not a kernel series"),
        ("--kernel linux-7.3 -- true", "not a kernel series"),
        ("--cpus 0 -- true", "number of CPUs"),
        ("--cpus 2.5 -- true", "number of CPUs"),
        ("--cpus -1 -- true", "number of CPUs"),
        ("--memory 4 -- true", "not a size"),
        ("--memory 0G -- true", "not a size"),
        ("--timeout 0 -- true", "not a number of seconds"),
        ("--timeout nan -- true", "not a number of seconds"),
        ("--timeout inf -- true", "not a number of seconds"),
        ("--share /nowhere/at/all -- true", "not a directory"),
        ("--share / -- true", "/ cannot be shared"),
        ("--share /usr/lib --share /lib -- true", "two shares would both be /mnt/share/lib"),
        ("--kern=7.3 -- true", "unrecognized arguments: --kern=7.3"),
    ],
)
def test_nonsense_ends_with_the_status_of_a_failed_set_up(
    words: str, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        parse(words.split())
    said = capsys.readouterr().err
    assert end.value.code == ExitStatus.SETUP_FAILED
    assert said.startswith("vm: ")
    assert complaint in said
    assert "Next step" in said


def test_help_names_every_exit_status_and_option() -> None:
    text = make_parser().format_help()
    for status in ExitStatus:
        assert str(status.value) in text
    for option in (
        "--kernel",
        "--share",
        "--out",
        "--timeout",
        "--bare",
        "--no-daemon",
        "--build-only",
        "--clean",
    ):
        assert option in text
