"""A cgroup tree in plain files, for unit tests of code that uses this package: no root, no kernel, no cgroup2.

:class:`FakeCgroupTree` gives real :class:`~agentcgroup.cgroups.cgroup.Cgroup` objects over a temporary
folder and does what the kernel does when they are used: new children get the files of the controllers that
are enabled for them, a placed process moves, ``cgroup.events`` follows, ``cgroup.kill`` empties the tree, a
used cgroup cannot be removed and a new one never has an old id. What the kernel would count (memory, CPU
time) a test sets with :meth:`FakeCgroupTree.set`. It limits nothing, and there are no pressure triggers and
no spawning here: those need the kernel.
"""

import contextlib
import errno
import itertools
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from agentcgroup.cgroups import files
from agentcgroup.cgroups.cgroup import Cgroup
from agentcgroup.cgroups.directory import Directory, from_os_error
from agentcgroup.cgroups.errors import CgroupGone
from agentcgroup.cgroups.files import InterfaceFile
from agentcgroup.cgroups.subtree import Subtree
from agentcgroup.cgroups.values import Controller

_PRESSURE: Final = (
    "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"
)
_MEMORY_EVENTS: Final = "low 0\nhigh 0\nmax 0\noom 0\noom_kill 0\noom_group_kill 0\n"

NEW_CGROUP: Final[dict[str, str]] = {
    "cgroup.type": "domain\n",
    "cgroup.procs": "",
    "cgroup.threads": "",
    "cgroup.controllers": "\n",
    "cgroup.subtree_control": "\n",
    "cgroup.events": "populated 0\nfrozen 0\n",
    "cgroup.max.descendants": "max\n",
    "cgroup.max.depth": "max\n",
    "cgroup.stat": "nr_descendants 0\nnr_dying_descendants 0\n",
    "cgroup.stat.local": "frozen_usec 0\n",
    "cgroup.freeze": "0\n",
    "cgroup.kill": "",
    "cgroup.pressure": "1\n",
    "irq.pressure": "full avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
    "cpu.stat": "usage_usec 0\nuser_usec 0\nsystem_usec 0\nnice_usec 0\n"
    "nr_periods 0\nnr_throttled 0\nthrottled_usec 0\nnr_bursts 0\nburst_usec 0\n",
    "cpu.stat.local": "throttled_usec 0\n",
    "cpu.weight": "100\n",
    "cpu.weight.nice": "0\n",
    "cpu.max": "max 100000\n",
    "cpu.max.burst": "0\n",
    "cpu.idle": "0\n",
    "cpu.uclamp.min": "0.00\n",
    "cpu.uclamp.max": "max\n",
    "cpu.pressure": _PRESSURE,
    "memory.current": "0\n",
    "memory.min": "0\n",
    "memory.low": "0\n",
    "memory.high": "max\n",
    "memory.max": "max\n",
    "memory.reclaim": "",
    "memory.peak": "0\n",
    "memory.oom.group": "0\n",
    "memory.events": _MEMORY_EVENTS,
    "memory.events.local": _MEMORY_EVENTS,
    "memory.stat": "anon 0\nfile 0\nkernel 0\nslab 0\npgfault 0\npgmajfault 0\n",
    "memory.numa_stat": "anon N0=0\nfile N0=0\n",
    "memory.swap.current": "0\n",
    "memory.swap.high": "max\n",
    "memory.swap.max": "max\n",
    "memory.swap.peak": "0\n",
    "memory.swap.events": "high 0\nmax 0\nfail 0\n",
    "memory.zswap.current": "0\n",
    "memory.zswap.max": "max\n",
    "memory.zswap.writeback": "1\n",
    "memory.pressure": _PRESSURE,
    "io.stat": "",
    "io.max": "",
    "io.weight": "default 100\n",
    "io.bfq.weight": "default 100\n",
    "io.latency": "",
    "io.prio.class": "no-change\n",
    "io.pressure": _PRESSURE,
    "pids.current": "0\n",
    "pids.max": "max\n",
    "pids.peak": "0\n",
    "pids.events": "max 0\n",
    "pids.events.local": "max 0\n",
    "cpuset.cpus": "\n",
    "cpuset.cpus.effective": "0-1\n",
    "cpuset.cpus.exclusive": "\n",
    "cpuset.cpus.exclusive.effective": "\n",
    "cpuset.cpus.partition": "member\n",
    "cpuset.mems": "\n",
    "cpuset.mems.effective": "0\n",
}
"""The text of every file of a new cgroup that has all controllers, as the kernel prints it."""

# The real root has neither these nor any file of cpu, memory and pids that limits.
_NOT_ON_ROOT: Final = (
    "cgroup.type", "cgroup.events", "cgroup.freeze", "cgroup.kill", "cgroup.stat.local",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Write:
    """One write(2) that reached the tree.

    The cgroup's path, the file and the text, in :attr:`FakeCgroupTree.writes`.
    """

    path: str
    file: str
    text: str


class _FakeDirectory(Directory):
    """A directory of the tree: does what the kernel would."""

    __slots__ = ("tree",)

    tree: "FakeCgroupTree"

    def _hold(self, fd: int, path: str) -> Self:
        child = type(self)(fd, path, is_cgroup2=False)
        child.tree = self.tree
        child.id = self.tree.ids[path]
        return child

    def make_child(self, name: str) -> Self:
        path = f"{self.path}/{name}"
        if not self.is_alive():
            raise CgroupGone(self.path, f"cannot make {name!r} in it: the cgroup was removed", errno.ENOENT)
        try:
            os.mkdir(path)
        except OSError as error:
            raise from_os_error(path, "make it", error) from error
        self.tree.populate(Path(path), frozenset((self.read("cgroup.subtree_control") or "").split()))
        return self.open_child(name)

    def write(self, name: str, text: str, flags: int = 0) -> bool:
        if not self.has_file(name):
            return False
        self.tree.writes.append(Write(self.path, name, text))
        try:
            self.tree.take(Path(self.path), name, text)
        except OSError as error:
            raise from_os_error(self.path, f"write {text!r} to {name}", error) from error
        return True

    def remove(self) -> bool:
        if not self.is_alive():
            self.close()
            return False
        if self.child_names() or self.tree.processes_below(Path(self.path)):
            busy = OSError(errno.EBUSY, os.strerror(errno.EBUSY))
            raise from_os_error(self.path, "remove it", busy)
        self.tree.depopulate(Path(self.path))
        self.close()
        return True

    def get_xattr(self, name: str) -> bytes | None:
        return self.tree.xattrs.get(self.id, {}).get(name)

    def set_xattr(self, name: str, value: bytes) -> None:
        self.tree.xattrs.setdefault(self.id, {})[name] = value

    def list_xattrs(self) -> list[str]:
        return list(self.tree.xattrs.get(self.id, {}))


class FakeCgroupTree:
    """A cgroup hierarchy in ``folder``, whose :attr:`root` has ``controllers`` available and none enabled.

    ``processes`` maps every process to the path of its cgroup, ``killed`` lists whom cgroup.kill ended, in
    order, and ``writes`` every write that came through a Cgroup.
    """

    def __init__(self, folder: Path, controllers: Iterable[str] = tuple(Controller)) -> None:
        """Make the root cgroup as ``folder/cgroup``."""
        self.processes: dict[int, Path] = {}
        self.killed: list[int] = []
        self.writes: list[Write] = []
        self.ids: dict[str, int] = {}
        self.xattrs: dict[int, dict[str, bytes]] = {}
        self._numbers = itertools.count(1)
        self._refusals: dict[tuple[str, str], int] = {}
        path = Path(os.path.realpath(folder)) / "cgroup"
        path.mkdir()
        self.path = path
        self.populate(path, frozenset(str(one) for one in controllers))
        for name in _NOT_ON_ROOT:
            (path / name).unlink()
        directory = _FakeDirectory(
            os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), str(path), is_cgroup2=False
        )
        directory.tree = self
        directory.id = self.ids[str(path)]
        self.root = Cgroup(directory)

    def subtree(self, controllers: Iterable[str] = tuple(Controller)) -> Subtree:
        """The whole tree as a :class:`Subtree`, its controllers enabled."""
        found = Subtree(self.root, (str(one) for one in controllers))
        found.enable()
        return found

    # ---- what a test does in the kernel's place -----------------------------------------------------------

    def set(self, cgroup: Cgroup, file: InterfaceFile[Any], text: str) -> None:
        """Make a file read ``text``, as if the kernel had counted or changed it.

        The file is made if missing.
        """
        _replace(Path(cgroup.path) / file.name, text if text.endswith("\n") else text + "\n")

    def count(self, cgroup: Cgroup, file: InterfaceFile[Any], **numbers: int) -> None:
        """Set some lines of a flat keyed file: ``tree.count(call, MEMORY_EVENTS, oom_kill=1)``."""
        path = Path(cgroup.path) / file.name
        lines = dict(line.split(" ", 1) for line in path.read_text().splitlines())
        lines.update((key, str(number)) for key, number in numbers.items())
        _replace(path, "".join(f"{key} {number}\n" for key, number in lines.items()))

    def drop_file(self, cgroup: Cgroup, file: InterfaceFile[Any]) -> None:
        """Make it a kernel that does not have this file."""
        (Path(cgroup.path) / file.name).unlink()

    def refuse(self, cgroup: Cgroup, file: InterfaceFile[Any], error_number: int) -> None:
        """Make writes of that file fail with this errno from now on; 0 ends it."""
        self._refusals[cgroup.path, file.name] = error_number

    def add_process(self, pid: int, cgroup: Cgroup) -> None:
        """Let a process that exists nowhere else live in a cgroup."""
        self._move(pid, Path(cgroup.path))

    def end_process(self, pid: int) -> None:
        """Let a process exit."""
        self._move(pid, None)

    # ---- what the kernel does, called by the directories --------------------------------------------------

    def populate(self, path: Path, controllers: frozenset[str]) -> None:
        """Make the interface files of a new cgroup."""
        for name, text in NEW_CGROUP.items():
            file = files.BY_NAME[name]
            if file.controller is None or file.controller in controllers:
                (path / name).write_text(text)
        (path / "cgroup.controllers").write_text(" ".join(sorted(controllers)) + "\n")
        self.ids[str(path)] = next(self._numbers)

    def depopulate(self, path: Path) -> None:
        """Remove an empty cgroup."""
        for name in os.listdir(path):
            (path / name).unlink()
        path.rmdir()
        self.xattrs.pop(self.ids.pop(str(path)), None)

    def processes_below(self, path: Path) -> list[int]:
        """The processes here and below."""
        return [pid for pid, where in self.processes.items() if where == path or path in where.parents]

    def take(self, path: Path, name: str, text: str) -> None:
        """Do what one write to an interface file does. Raises :class:`OSError` as write(2) would fail."""
        if code := self._refusals.get((str(path), name)):
            raise OSError(code, os.strerror(code))
        match name:
            case "cgroup.procs":
                self._place(int(text), path)
            case "cgroup.kill":
                for pid in self.processes_below(path):
                    self.killed.append(pid)
                    self._move(pid, None)
            case "cgroup.freeze":
                _replace(path / name, text + "\n")
                self._refresh(path)
            case "cgroup.subtree_control":
                self._control(path, text.split())
            case "memory.reclaim":
                self._reclaim(path, int(text))
            case _ if files.BY_NAME[name].is_line_by_line:
                _merge(path / name, text)
            case _:
                _replace(path / name, text.rstrip("\n") + "\n")

    def _place(self, pid: int, path: Path) -> None:
        if pid not in self.processes and not os.path.exists(f"/proc/{pid}"):
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
        domain = {"memory", "io"} & set((path / "cgroup.subtree_control").read_text().split())
        if domain and path != self.path:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        self._move(pid, path)

    def _move(self, pid: int, path: Path | None) -> None:
        before = self.processes.pop(pid, None)
        if path is not None:
            self.processes[pid] = path
        for changed in (before, path):
            if changed is None:
                continue
            inside = [one for one, where in self.processes.items() if where == changed]
            for name in ("cgroup.procs", "cgroup.threads"):
                _replace(changed / name, "".join(f"{one}\n" for one in inside))
            self._refresh(changed)

    def _refresh(self, path: Path) -> None:
        # The files that follow from what is inside, here and in every ancestor.
        for one in (path, *path.parents):
            if self.path not in (one, *one.parents):
                return
            number = len(self.processes_below(one))
            if (one / "pids.current").exists():
                _replace(one / "pids.current", f"{number}\n")
                peak = max(number, int((one / "pids.peak").read_text()))
                _replace(one / "pids.peak", f"{peak}\n")
            if one != self.path:
                frozen = (one / "cgroup.freeze").read_text().strip()
                _replace(one / "cgroup.events", f"populated {int(number > 0)}\nfrozen {frozen}\n")

    def _control(self, path: Path, words: list[str]) -> None:
        control = path / "cgroup.subtree_control"
        enabled = set(control.read_text().split())
        offered = set((path / "cgroup.controllers").read_text().split())
        wanted = {word[1:] for word in words if word.startswith("+")}
        dropped = {word[1:] for word in words if word.startswith("-")}
        if wanted - offered:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        if wanted & {"memory", "io"} and path != self.path and path in self.processes.values():
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        children = [path / name for name in os.listdir(path) if (path / name).is_dir()]
        if any(dropped & set((child / "cgroup.subtree_control").read_text().split()) for child in children):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        now = (enabled | wanted) - dropped
        _replace(control, " ".join(sorted(now)) + "\n")
        for child in children:
            for name, text in NEW_CGROUP.items():
                controller = files.BY_NAME[name].controller
                if controller in wanted - enabled:
                    (child / name).write_text(text)
                elif controller in dropped:
                    (child / name).unlink(missing_ok=True)
            _replace(child / "cgroup.controllers", " ".join(sorted(now)) + "\n")

    def _reclaim(self, path: Path, amount_bytes: int) -> None:
        current = int((path / "memory.current").read_text())
        _replace(path / "memory.current", f"{max(0, current - amount_bytes)}\n")
        if amount_bytes > current:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))


def _replace(path: Path, text: str) -> None:
    # Nothing changed, nobody is told: as the kernel does it with its *.events files.
    with contextlib.suppress(FileNotFoundError):
        if path.read_text() == text:
            return
    path.write_text(text)


def _merge(path: Path, line: str) -> None:
    # io.max and its relatives: the written keys of one device replace the old ones, and "default" resets an
    # override.
    lines = {key: rest for key, _, rest in (old.partition(" ") for old in path.read_text().splitlines())}
    key, _, rest = line.partition(" ")
    if rest == "default":
        lines.pop(key, None)
    elif "=" in rest:
        pairs = dict(pair.split("=", 1) for pair in (*lines.get(key, "").split(), *rest.split()))
        lines[key] = " ".join(f"{name}={value}" for name, value in pairs.items())
    else:
        lines[key] = rest
    _replace(path, "".join(f"{one} {text}\n" for one, text in lines.items()))
