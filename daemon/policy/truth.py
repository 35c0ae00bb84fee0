"""The truth about a call's CPU and memory, in the variables by which tools size themselves.

A tool that asks the kernel how many CPUs there are hears of the host's, and starts as many workers, each with its memory.
Only what tools are known to honour is set, only where a cap is in force, and only as a default: the launcher leaves alone
what the caller has set, and the daemon's configuration can switch it off (`call.environment`).

    OMP_NUM_THREADS                 OpenMP, OpenBLAS and MKL; GNU nproc(1), hence `make -j$(nproc)`
    GOMAXPROCS, GOMEMLIMIT          Go before 1.25, which did not read cpu.max; Go reads no memory.max (pkg.go.dev/runtime)
    PYTHON_CPU_COUNT                os.cpu_count() of Python 3.13 and later (docs.python.org/3/using/cmdline.html)
    PYTEST_XDIST_AUTO_NUM_WORKERS   pytest -n auto (pytest-xdist, "Running tests across multiple CPUs")

Left out on purpose: Rust's available_parallelism (cargo, rayon), ninja, the JVM, Node.js and .NET read cgroup files
themselves; MAKEFLAGS and CMAKE_BUILD_PARALLEL_LEVEL would make parallel what its author runs one by one; CARGO_BUILD_JOBS
would go before the project's own configuration.
"""

from dataclasses import dataclass
from typing import Final

from agentcgroup.daemon.model import CallLimits

Environment = tuple[tuple[str, str], ...]

# The Go collector works harder near its limit and needs room to do so; the rest is stacks and what is not its heap.
_GO_SHARE: Final = 0.9


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Caps around a call; None: none at that level."""

    cpu_milli: tuple[int | None, ...]
    host_cpu_milli: int
    memory_bytes: tuple[int | None, ...]


def cpu_milli(limits: CallLimits, around: Surroundings) -> int:
    """The CPU a call has at most: the least of its own cap, those around it and the host."""
    return min(
        each for each in (limits.cpu_milli, *around.cpu_milli, around.host_cpu_milli) if each is not None
    )


def memory_max_bytes(limits: CallLimits, around: Surroundings) -> int | None:
    """The memory at which a call is stopped, whichever level does it."""
    caps = [each for each in (limits.memory_max_bytes, *around.memory_bytes) if each is not None]
    return min(caps) if caps else None


def defaults(limits: CallLimits, around: Surroundings) -> Environment:
    """What the launcher sets for the tool unless its caller has; empty where nothing is capped."""
    set_for_tool: list[tuple[str, str]] = []
    milli = cpu_milli(limits, around)
    if milli < around.host_cpu_milli:
        # Of one core and a half two workers make full use; a part of a core is one worker.
        workers = str(-(-milli // 1000))
        names = ("OMP_NUM_THREADS", "GOMAXPROCS", "PYTHON_CPU_COUNT", "PYTEST_XDIST_AUTO_NUM_WORKERS")
        set_for_tool += ((name, workers) for name in names)
    most = memory_max_bytes(limits, around)
    if most is not None:
        set_for_tool.append(("GOMEMLIMIT", f"{int(most * _GO_SHARE)}B"))
    return tuple(set_for_tool)
