"""How long a thread waits between being woken and running, as the kernel's own tracepoints tell it.

The same instrument under every scheduler: sched_waking to sched_switch of that thread (Documentation/trace/events.rst),
with the clock of CLOCK_MONOTONIC. What a late timer adds, which in an emulated machine is more than all else, happens
before the wake-up and is not part of it.
"""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

TRACEFS: Final = Path("/sys/kernel/tracing")
_BUFFER_KIB: Final = 2048
# "  wake-191  [001] d.h4.  26.401590: sched_waking: comm=wake pid=191 prio=120 target_cpu=001"
_LINE: Final = re.compile(r"\s(\d+)\.(\d{6}): (sched_waking|sched_switch): ")


@contextlib.contextmanager
def traced(pid: int, name: str = "agentcgroup-bench") -> Iterator[Path]:
    """Traces the wake-ups of thread `pid` into a trace of their own, whose folder it yields. Needs root and tracefs."""
    instance = TRACEFS / "instances" / name
    instance.mkdir()
    try:
        (instance / "trace_clock").write_text("mono")
        (instance / "buffer_size_kb").write_text(str(_BUFFER_KIB))
        for event, field in (("sched_waking", "pid"), ("sched_switch", "next_pid")):
            folder = instance / "events" / "sched" / event
            (folder / "filter").write_text(f"{field} == {pid}")
            (folder / "enable").write_text("1")
        yield instance
    finally:
        for event in ("sched_waking", "sched_switch"):
            (instance / "events" / "sched" / event / "enable").write_text("0")
        instance.rmdir()


def latencies_us(trace: str) -> list[int]:
    """Microseconds from each wake-up to the thread's next turn. A switch without a wake-up before it is a preemption."""
    found, woken_at_us = [], None
    for line in trace.splitlines():
        match = _LINE.search(line)
        if match is None:
            continue
        at_us = int(match[1]) * 1_000_000 + int(match[2])
        if match[3] == "sched_waking":
            woken_at_us = at_us if woken_at_us is None else woken_at_us
        elif woken_at_us is not None:
            found.append(at_us - woken_at_us)
            woken_at_us = None
    return found
