"""The analyst, of low priority: sums up measurements, by a program that forks too much and one that loads too much."""

import sys

from demo.advice import options_in
from demo.harness import Harness, Tool
from demo.story import LOAD_FIRST_MEMORY_MAX, LOAD_GREEDY_MEMORY_MAX, Point, StepName


def script(harness: Harness) -> None:
    """Count with endless workers, then with few; load everything with too little memory, then with enough; then stream."""
    count(harness)
    load(harness)


def count(harness: Harness) -> None:
    """A fork bomb by mistake."""
    measurements = str(harness.site.input / "measurements.csv")
    endless = Tool(
        StepName.FORK_WITHOUT_END, "count rows, a worker for every block without end",
        [harness.site.python, harness.site.script("count_rows.py"), measurements],
        {"memory": "64M", "memory-max": "256M", "pids": "24", "timeout": "60s"}, harness.site.workspace,
    )  # fmt: skip
    stopped = harness.launch(endless)
    # "Use fewer parallel jobs": three.
    few = endless.retried(
        stopped,
        StepName.FORK_FEW,
        "count rows with three workers",
        command=[*endless.command, "--workers", "3"],
    )
    harness.launch(few)


def load(harness: Harness) -> None:
    """A burst of memory: too little declared, then more and trimmed, then less needed."""
    site = harness.site
    command = [site.python, site.script("sum_up.py"), str(site.input / "measurements.csv")]
    first = Tool(
        StepName.LOAD_TOO_LITTLE, "sum up, loading the whole file", command,
        {"memory": "128M", "memory-max": LOAD_FIRST_MEMORY_MAX, "class": "batch", "timeout": "3m"}, site.workspace,
    )  # fmt: skip
    # Of low priority, it leaves the host's memory to the builder's check.
    harness.meeting.wait(Point.BUILDER_CHECKED)
    killed = harness.launch(first)
    advised = options_in(killed.advice)
    harness.findings["advised_memory"] = advised.get("memory", "")
    if "memory" not in advised:
        sys.exit(f"the report of the killed call advises no figure to declare: {killed.advice!r}")
    more = first.retried(
        killed, StepName.LOAD, "sum up again with the memory advised", memory=advised["memory"],
        memory_max=LOAD_GREEDY_MEMORY_MAX,
    )  # fmt: skip
    # It holds its grant while the tester asks.
    harness.meeting.wait(Point.TESTER_READY)
    answer = harness.declare(more)
    harness.meeting.reach(Point.ANALYST_RESERVED)
    harness.meeting.wait(Point.TESTER_REFUSED)
    if answer.call_id:
        harness.launch_declared(more, answer)
    less = first.retried(
        killed, StepName.STREAM, "sum up again, streaming it", command=[*command, "--stream"], memory="48M",
        memory_max="96M",
    )  # fmt: skip
    harness.launch(less)
    harness.findings["loaded"] = read_table(harness, StepName.LOAD)
    harness.findings["streamed"] = read_table(harness, StepName.STREAM)


def read_table(harness: Harness, name: StepName) -> str:
    """What a step printed; empty when it never ran."""
    log = harness.site.workspace / f"{name}.log"
    return log.read_text("utf-8", "replace").strip() if log.exists() else ""
