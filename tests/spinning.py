"""Processes that do nothing but use the CPU, in cgroups with a weight, for tests on a real kernel."""

import subprocess
from pathlib import Path
from typing import Final

SPIN: Final = ("/bin/sh", "-c", "while :; do :; done")


def make(path: Path, weight: int = 100, *, is_inner: bool = False) -> Path:
    path.mkdir()
    (path / "cpu.weight").write_text(str(weight))
    if is_inner:
        (path / "cgroup.subtree_control").write_text("+cpu")
    return path


def spin(group: Path, count: int = 2) -> list["subprocess.Popen[bytes]"]:
    started = []
    for _ in range(count):
        child = subprocess.Popen(SPIN)
        (group / "cgroup.procs").write_text(str(child.pid))
        started.append(child)
    return started


def end(children: list["subprocess.Popen[bytes]"]) -> None:
    for child in children:
        child.kill()
    for child in children:
        child.wait(timeout=60)


def usage_us(group: Path) -> int:
    return int((group / "cpu.stat").read_text().split()[1])
