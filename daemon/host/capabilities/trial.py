"""A throw-away cgroup on which the host is tried: a limit that can be written is a limit, a file that exists
is not.

Delegation fails in many ways that no stat(2) shows: a controller that is listed but still bound to cgroup
v1, an ancestor with processes in it, a container runtime that mounts the hierarchy read-only. So each
controller is enabled and a limit written and read back, two levels below the place where the sessions will
live, and everything is put back as it was.
"""

import contextlib
import select
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from agentcgroup.cgroups import files
from agentcgroup.cgroups.cgroup import Cgroup
from agentcgroup.cgroups.errors import CgroupBusy, CgroupError
from agentcgroup.cgroups.files import InterfaceFile
from agentcgroup.cgroups.values import CpuMax
from agentcgroup.cgroups.watch import EventWatch, WatchEventKind
from agentcgroup.daemon.host.kept import write_record
from agentcgroup.daemon.ids import random_hex

__all__ = ["CONTROLLERS", "TRIAL_PREFIX", "Found", "Trial", "nearest_cgroup", "try_cgroups"]

T = TypeVar("T")

CONTROLLERS: Final = ("memory", "cpu", "pids")

# No session can be called so; what a killed trial left behind may be removed by whoever finds it.
TRIAL_PREFIX: Final = "_trial-"

_EVENT_WAIT_MS: Final = 500

# Which limit is written for each controller.
_LIMITS: Final[dict[str, tuple[InterfaceFile[Any], Any]]] = {
    "memory": (files.MEMORY_MAX, 64 << 20),
    "cpu": (files.CPU_MAX, CpuMax(50_000)),
    "pids": (files.PIDS_MAX, 16),
}


@dataclass(frozen=True, slots=True)
class Found:
    """The answer to one question about this host."""

    is_available: bool
    detail: str


@dataclass(slots=True)
class Trial:
    """What was found about one place in the hierarchy. A question that could not be asked is absent."""

    found: dict[str, Found] = field(default_factory=dict)

    def note(self, name: str, is_available: bool, detail: str) -> None:
        """Keep one answer."""
        self.found[name] = Found(is_available, detail)


def nearest_cgroup(path: Path) -> Cgroup:
    """The cgroup at `path`, or its nearest ancestor that exists. Raises CgroupError when there is none."""
    for place in (path, *path.parents):
        if place.is_dir():
            return Cgroup.open(place)
    raise CgroupError(path, "neither it nor any ancestor exists")


def try_cgroups(root: Path) -> Trial:
    """Try everything that sessions under `root` will need. Leaves nothing behind and never raises for the
    kernel.
    """
    trial = Trial()
    try:
        with nearest_cgroup(root) as anchor:
            _try_below(anchor, trial)
    except CgroupError as error:
        trial.note("cgroup2", False, str(error))
    return trial


def _try_below(anchor: Cgroup, trial: Trial) -> None:
    with _enabled(anchor, trial), _child(anchor, f"{TRIAL_PREFIX}{random_hex(4)}") as middle:
        trial.note("cgroup2", True, f"cgroups can be made in {anchor.path}")
        for name in CONTROLLERS:
            if name not in trial.found:
                _enable_in_trial(middle, name, trial)
        with _child(middle, "leaf") as leaf:
            for name in CONTROLLERS:
                if name not in trial.found:
                    _try_limit(leaf, name, trial)
            _try_core(leaf, trial)
            if trial.found["memory"].is_available:
                _try_memory(leaf, trial)


@contextlib.contextmanager
def _enabled(anchor: Cgroup, trial: Trial) -> Iterator[None]:
    """The controllers enabled for the children of `anchor`, and those that were not, disabled again
    afterwards.
    """
    present = anchor.read(files.CGROUP_CONTROLLERS) or frozenset()
    enabled = anchor.read(files.CGROUP_SUBTREE_CONTROL) or frozenset()
    ours: set[str] = set()
    for name in CONTROLLERS:
        if name in enabled:
            continue
        if name not in present:
            trial.note(name, False, f"not in {anchor.path}/cgroup.controllers")
            continue
        try:
            anchor.enable_controllers(frozenset({name}))
            ours.add(name)
        except CgroupError as error:
            trial.note(name, False, str(error))
    try:
        yield
    finally:
        if ours:
            # Busy: somebody has come to rely on them meanwhile.
            with contextlib.suppress(CgroupBusy):
                anchor.disable_controllers(frozenset(ours))


@contextlib.contextmanager
def _child(parent: Cgroup, name: str) -> Iterator[Cgroup]:
    child = parent.create_child(name)
    try:
        yield child
    finally:
        child.remove()


def _enable_in_trial(middle: Cgroup, name: str, trial: Trial) -> None:
    try:
        middle.enable_controllers(frozenset({name}))
    except CgroupError as error:
        trial.note(name, False, str(error))


def _try_limit(leaf: Cgroup, name: str, trial: Trial) -> None:
    file, value = _LIMITS[name]
    works, detail = _write_back(leaf, file, value)
    trial.note(name, works, detail)


def _write_back(leaf: Cgroup, file: InterfaceFile[T], value: T) -> tuple[bool, str]:
    """Write a value and see whether it is there."""
    try:
        leaf.write(file, value)
        held = leaf.read(file)
    except CgroupError as error:
        return False, str(error)
    if held != value:
        return False, f"{file.name}: wrote {file.format(value)}, read {held}"
    return True, f"{file.name} can be written"


def _try_core(leaf: Cgroup, trial: Trial) -> None:
    has_kill = leaf.directory.has_file(files.CGROUP_KILL.name)
    trial.note("cgroup_kill", has_kill, "cgroup.kill exists" if has_kill else "no cgroup.kill (kernel 5.14)")
    _try_freeze_and_events(leaf, trial)
    pressure = leaf.read(files.MEMORY_PRESSURE)
    trial.note(
        "psi", pressure is not None, "memory.pressure can be read" if pressure else "no memory.pressure"
    )
    try:
        write_record(leaf, b"{}")
        trial.note("xattr", True, "records can be kept with cgroups")
    except CgroupError as error:
        trial.note("xattr", False, str(error))


def _try_freeze_and_events(leaf: Cgroup, trial: Trial) -> None:
    """Freezing an empty cgroup changes cgroup.events at once, so one trial shows both."""
    try:
        with EventWatch() as watch:
            watch.add(leaf, files.CGROUP_EVENTS)
            leaf.freeze()
            events = leaf.read(files.CGROUP_EVENTS)
            # The kernel notifies from a work queue, a moment after the file has changed.
            poll = select.poll()
            poll.register(watch.fileno(), select.POLLIN)
            poll.poll(_EVENT_WAIT_MS)
            told = any(event.kind is WatchEventKind.CHANGED for event in watch.read())
            leaf.thaw()
    except (CgroupError, OSError) as error:
        trial.note("cgroup_freeze", False, str(error))
        trial.note("cgroup_events", False, str(error))
        return
    is_frozen = events is not None and events.frozen is True
    trial.note("cgroup_freeze", is_frozen, f"cgroup.freeze {'works' if is_frozen else 'had no effect'}")
    trial.note("cgroup_events", told, "inotify tells of cgroup.events" if told else "inotify told nothing")


def _try_memory(leaf: Cgroup, trial: Trial) -> None:
    peak = leaf.read(files.MEMORY_PEAK)
    trial.note(
        "memory_peak", peak is not None, "memory.peak exists" if peak is not None else "no memory.peak"
    )
    trial.note("memory_oom_group", *_write_back(leaf, files.MEMORY_OOM_GROUP, True))
    trial.note("swap_accounting", *_write_back(leaf, files.MEMORY_SWAP_MAX, 0))
    has_reclaim = leaf.directory.has_file(files.MEMORY_RECLAIM.name)
    trial.note("memory_reclaim", has_reclaim, f"{'has' if has_reclaim else 'no'} memory.reclaim")
