"""What a run of pytest came to, read from its JUnit file, and what a second run of its failures makes of it."""

import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

# More failures than this are not the machine's.
RERUN_MAX: Final = 10
# As many may have passed only when run again, in one stage; more is no accident any more.
UNSTABLE_MAX: Final = 3


@dataclass(frozen=True, slots=True)
class Failure:
    """`name`: a node id, which pytest takes; of a failure outside of any test, a word.

    Failures of one `cause` are one: those of a function with all its parameters, those of what a file sets up.
    """

    name: str
    cause: str


@dataclass(slots=True)
class Results:
    """Of one stage."""

    passed: int = 0
    failed: list[Failure] = field(default_factory=list)
    # With the reasons, for people.
    skipped: list[str] = field(default_factory=list)
    # Failed, and passed when run again.
    unstable: list[Failure] = field(default_factory=list)
    # What else is to be told.
    notes: list[str] = field(default_factory=list)

    @property
    def has_too_many_unstable(self) -> bool:
        return len({failure.cause for failure in self.unstable}) > UNSTABLE_MAX

    @property
    def is_good(self) -> bool:
        return not self.failed and not self.has_too_many_unstable

    @property
    def to_run_again(self) -> list[str]:
        """The failures, if they may be the machine's: few, and every one of a test that can be named."""
        can_be = len({failure.cause for failure in self.failed}) <= RERUN_MAX
        names = [failure.name for failure in self.failed]
        return names if can_be and all("::" in name for name in names) else []

    def with_second_run(self, again: "Results") -> "Results":
        """`again`: of the failures alone. What failed there too has failed; so has everything if it did not all run."""
        before, after = ({failure.name for failure in each.failed} for each in (self, again))
        notes = [*self.notes, *again.notes]
        if not after <= before or again.passed + len(after) != len(before):
            notes.append("the second run did not run what it was to run")
            return Results(self.passed, self.failed, self.skipped, notes=notes)
        unstable = [failure for failure in self.failed if failure.name not in after]
        failed = [failure for failure in self.failed if failure.name in after]
        return Results(self.passed + len(unstable), failed, self.skipped, unstable, notes)


def read(junit: Path, status: int, root: Path, *, skips_fail: bool) -> Results:
    """The results in a JUnit file of a pytest that ended with `status`; `root` is what node ids are relative to.

    A file that is missing is a failure: the run did not end as it should. So is a failure that no test case tells.
    """
    results = Results()
    if not junit.exists():
        results.failed.append(_outside(f"pytest left no results (status {status})"))
        return results
    for case in ElementTree.parse(junit).iter("testcase"):
        name = _node_id(case.get("classname") or "", case.get("name") or "", root)
        error, skip = case.find("error"), case.find("skipped")
        if error is not None and (error.get("message") or "").startswith("failed on setup"):
            results.failed.append(Failure(name, name.partition("::")[0]))
        elif error is not None or case.find("failure") is not None:
            results.failed.append(Failure(name, name.partition("[")[0]))
        elif skip is not None:
            results.skipped.append(f"{name}: {skip.get('message')}")
            if skips_fail:
                results.failed.append(_outside("what was skipped"))
        else:
            results.passed += 1
    # pytest can fail outside of any test (a collection error, a crash).
    if status not in (0, 1) and not results.failed:
        results.failed.append(_outside(f"pytest ended with status {status}"))
    return results


def _outside(what: str) -> Failure:
    return Failure(what, what)


def _node_id(classname: str, name: str, root: Path) -> str:
    """`name` alone where it is no test of a file: a collection error."""
    words = classname.split(".")
    for count in range(len(words), 0, -1):
        path = Path(f"{'/'.join(words[:count])}.py")
        if (root / path).is_file():
            return "::".join([str(path), *words[count:], name])
    return name


def closing(stages: list[tuple[str, Results, float]]) -> str:
    """The summary of all stages by name and duration in s; its last line counts everything."""
    lines = []
    for name, results, seconds in stages:
        counts = f"{results.passed:5} passed {len(results.failed):4} failed {len(results.skipped):4} skipped"
        lines.append(f"{name:12} {counts}  {seconds:6.0f} s")
        told = [
            *(f"skipped {reason}" for reason in results.skipped),
            *(f"failed {failure.name}" for failure in results.failed),
            *(f"unstable: {failure.name} (passed when run again)" for failure in results.unstable),
            *results.notes,
        ]
        if results.has_too_many_unstable:
            told.append(f"more than {UNSTABLE_MAX} are unstable, which is a failure")
        lines += [f"             {line}" for line in told]
    passed = sum(results.passed for _, results, _ in stages)
    failed = sum(len(results.failed) for _, results, _ in stages)
    skipped = sum(len(results.skipped) for _, results, _ in stages)
    unstable = sum(len(results.unstable) for _, results, _ in stages)
    aside = f" ({unstable} of them only when run again)" if unstable else ""
    return "\n".join([*lines, "", f"{passed} passed{aside}, {failed} failed, {skipped} skipped"])
