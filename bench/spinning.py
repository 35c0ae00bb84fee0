"""Processes that do nothing but use the CPU, in cgroups with a weight."""

import contextlib
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

SPIN: Final = ("/bin/sh", "-c", "while :; do :; done")


def make(path: Path, weight: int = 100, *, is_inner: bool = False) -> Path:
    """A new cgroup; `is_inner`: its children have the cpu controller."""
    path.mkdir()
    (path / "cpu.weight").write_text(str(weight))
    if is_inner:
        (path / "cgroup.subtree_control").write_text("+cpu")
    return path


def spin(group: Path, count: int = 2) -> list["subprocess.Popen[bytes]"]:
    started = []
    for _ in range(count):
        child = subprocess.Popen(SPIN)
        started.append(child)
        (group / "cgroup.procs").write_text(str(child.pid))
    return started


def end(children: Sequence["subprocess.Popen[bytes]"]) -> None:
    for child in children:
        child.kill()
    for child in children:
        child.wait(timeout=60)


@contextlib.contextmanager
def spinning(places: Mapping[Path, int]) -> Iterator[None]:
    """So many endless loops in each cgroup."""
    children: list[subprocess.Popen[bytes]] = []
    try:
        for group, count in places.items():
            children += spin(group, count)
        yield
    finally:
        end(children)


def usage_us(group: Path) -> int:
    """CPU time of the cgroup so far, cpu.stat."""
    return int((group / "cpu.stat").read_text().split()[1])
