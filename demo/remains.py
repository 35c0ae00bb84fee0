"""What is left of sessions when they are over: cgroups under the job's root, and processes that once were in one."""

import os
import time
from pathlib import Path
from typing import Final

from demo.host import find_cgroup2
from demo.records import Remains

# Of an emulated machine: what was killed needs a moment to be gone.
PATIENCE_S: Final = 15.0
# The daemon's own leaf, if it keeps one.
OWN: Final = frozenset({"daemon"})


def cgroups_under(root: Path) -> list[str]:
    """Every cgroup below `root`, relative to it, without the daemon's own."""
    if not root.exists():
        return []
    found = (Path(base).relative_to(root) for base, _, _ in os.walk(root))
    return sorted(str(path) for path in found if path.parts and path.parts[0] not in OWN)


def processes_with(mark: bytes, proc: Path = Path("/proc")) -> list[str]:
    """Processes whose environment holds `mark`, wherever they are now, as "PID NAME"."""
    found = []
    for entry in proc.iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if mark in (entry / "environ").read_bytes():
                found.append(f"{entry.name} {(entry / 'comm').read_text().strip()}")
        except OSError:
            # It ended in between, or it is a kernel thread.
            continue
    return found


def cgroup_root(name: str) -> Path | None:
    """The directory of the cgroup `name` right under the cgroup2 mount; None without such a mount."""
    found = find_cgroup2(Path("/proc/self/mountinfo").read_text())
    return found[0] / name if found else None


def look(root: Path, mark: bytes, sessions: list[str]) -> Remains:
    """What remains now."""
    return Remains(tuple(sessions), tuple(cgroups_under(root)), tuple(processes_with(mark)))


def settle(root: Path, mark: bytes, patience_s: float = PATIENCE_S) -> None:
    """Comes back when nothing remains, or when waiting does not help."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline and (cgroups_under(root) or processes_with(mark)):
        time.sleep(0.1)
