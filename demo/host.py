"""Where the job runs: here, when this host's cgroup v2 really enforces limits, else in the guest; always with the reason.

Nothing is inferred from versions: a throw-away cgroup is made and limits are written into it (cgroup-v2.rst).
"""

import contextlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

CONTROLLERS: Final = ("cpu", "memory", "pids")
# What agents' tools and the stage need, and what Debian calls the package.
TOOLS: Final = {"git": "git", "cc": "gcc", "make": "make", "ar": "binutils", "xargs": "findutils"}
# File, and a value that changes nothing for an empty cgroup.
LIMITS: Final = (
    ("memory.max", "max"),
    ("memory.oom.group", "1"),
    ("pids.max", "max"),
    ("cpu.max", "max 100000"),
)
NEEDED_FILES: Final = {"cgroup.kill": "Linux 5.14", "memory.peak": "Linux 5.19"}


@dataclass(frozen=True, slots=True)
class Choice:
    """Whether to run natively, and why (not)."""

    is_native: bool
    why: str


def find_cgroup2(mountinfo: str) -> tuple[Path, bool] | None:
    """The mount point of cgroup2 in /proc/self/mountinfo (proc(5)) and whether it is writable; None without one."""
    for line in mountinfo.splitlines():
        mount, _, rest = line.partition(" - ")
        fields = mount.split()
        if len(fields) > 5 and rest.split()[:1] == ["cgroup2"]:
            return Path(fields[4].replace("\\040", " ")), "ro" not in fields[5].split(",")
    return None


def problem_of_cgroups(mountinfo: str) -> str:
    """Why cgroup v2 here cannot limit memory, cpu and pids; empty when it can."""
    found = find_cgroup2(mountinfo)
    if found is None:
        return "no cgroup v2 hierarchy is mounted"
    top, is_writable = found
    if not is_writable:
        return f"{top} is mounted read-only"
    try:
        available = (top / "cgroup.controllers").read_text().split()
        missing = [name for name in CONTROLLERS if name not in available]
        if missing:
            return f"cgroup v2 at {top} offers no {', '.join(missing)} controller"
        (top / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in CONTROLLERS))
        return _problem_of_child(top / f"agentcgroup-probe-{os.getpid()}")
    except OSError as error:
        return f"{error.filename or top}: {error.strerror}"


def _problem_of_child(child: Path) -> str:
    child.mkdir()
    try:
        for name, release in NEEDED_FILES.items():
            if not (child / name).exists():
                return f"this kernel has no {name} (it came with {release})"
        for name, value in LIMITS:
            (child / name).write_text(value)
        return ""
    finally:
        with contextlib.suppress(OSError):
            child.rmdir()


def missing_tools() -> list[str]:
    """Debian packages of the tools that are not installed here."""
    return sorted({package for tool, package in TOOLS.items() if shutil.which(tool) is None})


def choose() -> Choice:
    """Where to run when nobody says."""
    if os.geteuid() != 0:
        return Choice(
            False, "this user is not root, and only root may limit memory, CPU and processes of others"
        )
    problem = problem_of_cgroups(Path("/proc/self/mountinfo").read_text())
    if problem:
        return Choice(False, problem)
    missing = missing_tools()
    if missing:
        return Choice(False, f"the agents' tools are not all installed here (missing: {', '.join(missing)})")
    return Choice(True, "cgroup v2 here took limits for memory, CPU and processes")
