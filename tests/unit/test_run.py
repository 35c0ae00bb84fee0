"""`make test` in a guest that is played here: what is run again, and when a guest is booted once more."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests import run
from vm.outcome import ExitStatus

FILE = "tests/kernel/test_memory.py"
NODE = f"{FILE}::test_it[a b]"
GOOD = '<testcase classname="tests.kernel.test_memory" name="test_it[a b]"/>'
BAD = GOOD.replace("/>", "><failure/></testcase>")
OTHER = '<testcase classname="tests.kernel.test_memory" name="test_other"/>'

# What a boot leaves: the exit status of vm/run, whether pytest began, and its test cases, if it came to its end.
Boot = tuple[int, bool, str | None]
Boots = Callable[..., list[Sequence[str]]]


@pytest.fixture
def boots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Boots:
    """Plays these boots, one after the other; gives the arguments of pytest in each."""

    def play(*played: Boot) -> list[Sequence[str]]:
        asked: list[Sequence[str]] = []
        coming = iter(played)

        def boot(kernel: str, out: Path, arguments: Sequence[str]) -> int:
            asked.append(arguments)
            status, has_begun, cases = next(coming)
            out.mkdir(parents=True)
            if has_begun:
                (out / "began").touch()
            if cases is not None:
                (out / "junit.xml").write_text(f"<testsuites><testsuite>{cases}</testsuite></testsuites>")
            return status

        monkeypatch.setattr(run, "BUILD", tmp_path)
        monkeypatch.setattr(run, "_boot", boot)
        return asked

    return play


def test_what_failed_is_run_again_alone_in_a_guest_of_its_own(boots: Boots) -> None:
    asked = boots((1, True, BAD + OTHER), (0, True, GOOD))
    found = run.run_in_guest("7.3", [])
    assert (found.passed, [each.name for each in found.unstable], found.is_good) == (2, [NODE], True)
    assert asked[1:] == [[f"/mnt/share/agentcgroup/{NODE}"]]


def test_what_fails_again_has_failed(boots: Boots) -> None:
    boots((1, True, BAD + OTHER), (1, True, BAD))
    found = run.run_in_guest("7.3", [])
    assert (found.passed, [each.name for each in found.failed]) == (1, [NODE])


def test_with_arguments_of_ones_own_nothing_is_run_again(boots: Boots) -> None:
    asked = boots((1, True, BAD))
    assert not run.run_in_guest("7.3", ["-k", "it"]).is_good
    assert len(asked) == 1


def test_a_guest_that_is_lost_before_pytest_began_is_booted_once_more_and_that_is_told(boots: Boots) -> None:
    boots((ExitStatus.PANIC, False, None), (0, True, GOOD))
    found = run.run_in_guest("6.12", [])
    assert found.is_good and found.passed == 1
    assert "booted again" in found.notes[0]


@pytest.mark.parametrize(
    ("played", "count"),
    [
        ([(ExitStatus.GUEST_LOST, False, None)] * 2, 2),
        ([(ExitStatus.PANIC, True, None)], 1),
        ([(ExitStatus.SETUP_FAILED, False, None)] * 2, 2),
    ],
)
def test_a_guest_that_is_lost_twice_or_later_or_cannot_be_made_is_a_failure(
    boots: Boots, played: list[Boot], count: int
) -> None:
    asked = boots(*played)
    assert not run.run_in_guest("6.12", []).is_good
    assert len(asked) == count


def test_what_is_left_to_the_older_kernels_is_there(boots: Boots) -> None:
    asked = boots((0, True, GOOD), (0, True, GOOD))
    run.run_in_guest("6.12", [])
    run.run_in_guest("6.18", [], only_bpf=True)
    shown = [
        word.partition("/mnt/share/agentcgroup/")[2] for words in asked for word in words if "mnt" in word
    ]
    assert all((run.ROOT / name).exists() for name in shown)
    assert "tests/kernel/test_scheduler.py" in shown and "tests/kernel/test_scheduler_daemon.py" not in shown
