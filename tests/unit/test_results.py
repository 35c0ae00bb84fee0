"""What `make test` makes of a run that failed, and of a second run."""

from pathlib import Path
from xml.sax.saxutils import quoteattr

import pytest

from tests.results import RERUN_MAX, UNSTABLE_MAX, Failure, Results, closing, read

FILE = "tests/unit/test_results.py"
MODULE = "tests.unit.test_results"
ROOT = Path(__file__).resolve().parents[2]


def case(name: str, inside: str = "", module: str = MODULE) -> str:
    return f"<testcase classname={quoteattr(module)} name={quoteattr(name)}>{inside}</testcase>"


def results(tmp_path: Path, *cases: str, status: int = 1, skips_fail: bool = True) -> Results:
    junit = tmp_path / "junit.xml"
    junit.write_text(f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>")
    return read(junit, status, ROOT, skips_fail=skips_fail)


def failures(count: int) -> list[Failure]:
    return [Failure(f"{FILE}::test_{number}", f"{FILE}::test_{number}") for number in range(count)]


def test_a_failure_has_the_name_that_pytest_takes(tmp_path: Path) -> None:
    found = results(
        tmp_path,
        case("test_good"),
        case("test_bad[a-b::c]", "<failure/>"),
        case("test_bad[d]", "<failure/>"),
        case("test_inside", "<failure/>", f"{MODULE}.TestAll"),
    )
    assert found.passed == 1
    names = [f"{FILE}::test_bad[a-b::c]", f"{FILE}::test_bad[d]", f"{FILE}::TestAll::test_inside"]
    assert [failure.name for failure in found.failed] == found.to_run_again == names
    assert len({failure.cause for failure in found.failed}) == 2


def test_what_a_file_sets_up_fails_once_however_many_tests_need_it(tmp_path: Path) -> None:
    error = '<error message="failed on setup with &quot;no&quot;"/>'
    found = results(tmp_path, *(case(f"test_{number}", error) for number in range(2 * RERUN_MAX)))
    assert {failure.cause for failure in found.failed} == {FILE}
    assert len(found.to_run_again) == 2 * RERUN_MAX


@pytest.mark.parametrize("skips_fail", [True, False])
def test_a_skip_is_told_and_may_be_a_failure_that_is_not_run_again(tmp_path: Path, skips_fail: bool) -> None:
    found = results(
        tmp_path, case("test_it", '<skipped message="no dockerd"/>'), status=0, skips_fail=skips_fail
    )
    assert found.skipped == [f"{FILE}::test_it: no dockerd"]
    assert (found.is_good, found.to_run_again) == (not skips_fail, [])


@pytest.mark.parametrize(
    "failed",
    [
        failures(RERUN_MAX + 1),
        [*failures(1), Failure("pytest ended with status 3", "pytest ended with status 3")],
    ],
)
def test_many_failures_and_those_outside_of_tests_are_not_run_again(failed: list[Failure]) -> None:
    assert Results(passed=100, failed=failed).to_run_again == []


def test_a_run_without_results_or_that_ended_oddly_has_failed(tmp_path: Path) -> None:
    assert not read(tmp_path / "none.xml", 242, ROOT, skips_fail=True).is_good
    assert not results(tmp_path, case("test_good"), status=2).is_good
    assert not results(tmp_path, case("tests.broken", "<error/>", ""), status=2).is_good


def test_what_fails_twice_has_failed_and_what_passes_then_is_named() -> None:
    first, second = failures(2)
    found = Results(passed=5, failed=[first, second]).with_second_run(
        Results(passed=1, failed=[second], notes=["the guest was booted again"])
    )
    assert (found.passed, found.failed, found.unstable) == (6, [second], [first])
    assert not found.is_good
    told = closing([("guest", found, 61.0)])
    assert f"unstable: {first.name} (passed when run again)" in told
    assert f"failed {second.name}" in told and "the guest was booted again" in told
    assert told.splitlines()[-1] == "6 passed (1 of them only when run again), 1 failed, 0 skipped"


@pytest.mark.parametrize(
    "again",
    [
        Results(failed=[Failure("pytest left no results (status 242)", "")]),
        Results(passed=1),
        Results(passed=1, failed=[Failure("another", "another")]),
    ],
)
def test_a_second_run_that_was_not_whole_excuses_nothing(again: Results) -> None:
    found = Results(passed=5, failed=failures(2)).with_second_run(again)
    assert (found.passed, found.failed, found.unstable) == (5, failures(2), [])
    assert found.notes


@pytest.mark.parametrize(("count", "is_good"), [(UNSTABLE_MAX, True), (UNSTABLE_MAX + 1, False)])
def test_too_many_unstable_tests_are_a_failure(count: int, is_good: bool) -> None:
    found = Results(passed=5, failed=failures(count)).with_second_run(Results(passed=count))
    assert found.is_good is is_good
    assert ("which is a failure" in closing([("guest", found, 1.0)])) is not is_good
