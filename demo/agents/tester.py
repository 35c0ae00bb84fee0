"""The tester, of normal priority: runs the tests of humanize, and makes an agent's usual mistakes."""

import sys

from demo.advice import options_in
from demo.harness import Harness, Tool
from demo.story import TESTER_MOST_MEMORY, TESTS_FIRST_MEMORY, Point, StepName


def script(harness: Harness) -> None:
    """Clone, install, serve the docs (and forget the server), test when there is room, wait too long, look once."""
    site, package = harness.site, harness.site.workspace / "humanize"
    wheels = site.input / "wheels"
    harness.launch(Tool(
        StepName.CLONE_PACKAGE, "clone the package",
        ["git", "clone", "--quiet", str(site.input / "humanize.bundle"), "humanize"],
        {"memory": "32M", "memory-max": "128M", "class": "interactive", "timeout": "60s"}, site.workspace,
    ))  # fmt: skip
    harness.launch(Tool(
        StepName.INSTALL, "install pytest and freezegun",
        [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index",
         f"--find-links={wheels}", "--no-compile", f"--target={site.workspace / 'site'}", "pytest", "freezegun"],
        {"memory": TESTER_MOST_MEMORY, "memory-max": "192M", "class": "batch", "timeout": "3m"}, site.workspace,
    ))  # fmt: skip
    harness.launch(Tool(
        StepName.SERVE, "serve the docs, and forget the server",
        ["sh", "-c", '"$0" -m http.server --bind 127.0.0.1 0 --directory docs >server.log 2>&1 & echo the docs are served',
         site.python],
        {"memory": "32M", "memory-max": "96M", "timeout": "60s"}, package,
    ))  # fmt: skip
    test(harness)
    wait = Tool(
        StepName.WAIT, "wait for a server that never comes up", ["sh", "-c", "until test -e server.ready; do sleep 1; done"],
        {"memory": "16M", "memory-max": "64M", "class": "interactive", "timeout": "4s"}, package,
    )  # fmt: skip
    stopped = harness.launch(wait)
    # "Do a smaller part of the work per call, or declare a longer --timeout": looks once and decides itself.
    look = ["sh", "-c", "test -e server.ready || echo 'not up yet'"]
    harness.launch(wait.retried(stopped, StepName.LOOK, "look once instead", command=look))


def test(harness: Harness) -> None:
    """Asks for more than there is, is refused, and does with what was suggested."""
    site = harness.site
    tests = Tool(
        StepName.TESTS_REFUSED, "run the test suite, declaring far too much",
        ["env", f"PYTHONPATH={site.workspace / 'site'}:src", site.python, "-m", "pytest", "-q", "-p", "no:cacheprovider",
         "--ignore=tests/test_benchmarks.py"],
        # It would rather do with less than wait until the host has so much.
        {"memory": TESTS_FIRST_MEMORY, "memory-max": TESTS_FIRST_MEMORY, "class": "batch", "timeout": "3m", "wait": "0"},
        site.workspace / "humanize",
    )  # fmt: skip
    harness.meeting.reach(Point.TESTER_READY)
    harness.meeting.wait(Point.ANALYST_RESERVED)
    refused = harness.declare(tests)
    harness.meeting.reach(Point.TESTER_REFUSED)
    if refused.call_id:
        # Not what the story wants, but the tests are to be run all the same; the expectations will say it.
        harness.launch_declared(tests, refused)
        return
    suggested = options_in(refused.suggestion)
    harness.findings["suggested_memory"] = suggested.get("memory", "")
    if "memory" not in suggested:
        sys.exit(f"the refusal suggests no figure to declare: {refused.suggestion!r}")
    # What is suggested is the most there is; the tests are known to need less, and others want room too.
    smaller = Tool(
        StepName.TESTS, "run the test suite with what is suggested", tests.command,
        tests.limits | {"memory": TESTER_MOST_MEMORY, "memory-max": "192M"}, tests.cwd, because_of=StepName.TESTS_REFUSED,
    )  # fmt: skip
    harness.launch_declared(smaller, harness.declare(smaller))
