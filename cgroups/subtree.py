"""The delegated subtree: its root, its controllers, what is in it and what is left over in it.

Whether a controller really works here is found out by setting a limit in a throw-away child and reading it
back, never by looking at permissions: a cgroup namespace, a read-only mount and a controller bound to cgroup
v1 all lie to stat(2). Source: Documentation/admin-guide/cgroup-v2.rst sections 2-4 "Controlling Controllers"
and 2-5 "Delegation".
"""

import contextlib
import errno
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Self

from agentcgroup.cgroups import files
from agentcgroup.cgroups.cgroup import Cgroup
from agentcgroup.cgroups.errors import (
    CgroupBusy,
    CgroupError,
    CgroupExists,
    CgroupGone,
    NotCgroup2,
    NotDelegated,
    ProcessGone,
)
from agentcgroup.cgroups.files import InterfaceFile
from agentcgroup.cgroups.membership import find_mount
from agentcgroup.cgroups.values import Controller, IoWeight

# One harmless limit per controller: (file, a value that is not the default). Every cgroup of that controller
# has it, except io, whose files depend on the kernel's configuration; reading io.stat is what all of them
# have in common.
_PROBES: Final[dict[str, tuple[InterfaceFile[Any], object]]] = {
    Controller.CPU: (files.CPU_WEIGHT, 99),
    Controller.CPUSET: (files.CPUSET_CPUS, frozenset({0})),
    Controller.IO: (files.IO_WEIGHT, (IoWeight(None, 99),)),
    Controller.MEMORY: (files.MEMORY_HIGH, 64 << 20),
    Controller.PIDS: (files.PIDS_MAX, 99),
}
# Processes may fork while they are moved; every round moves what the one before has missed.
_EVACUATION_ROUNDS: Final = 16


@dataclass(frozen=True, slots=True)
class Probe:
    """Whether a limit of one controller takes effect in a child of the subtree; ``reason`` says why not."""

    controller: str
    is_working: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Delegation:
    """What was found out by :meth:`Subtree.probe_delegation`.

    ``can_make_children`` is the first thing needed; ``reason`` says why it does not work. Without it nothing
    else was tried.
    """

    can_make_children: bool
    probes: tuple[Probe, ...] = ()
    reason: str = ""

    @property
    def is_complete(self) -> bool:
        """Whether every controller that was asked for works."""
        return self.can_make_children and all(probe.is_working for probe in self.probes)


@dataclass(frozen=True, slots=True)
class SweepResult:
    """Paths of the cgroups that a sweep removed, and (path, reason) of those it could not remove in time."""

    removed: tuple[str, ...]
    failed: tuple[tuple[str, str], ...]


class Subtree:
    """The cgroup below which everything is ours, with the controllers its children are to have."""

    def __init__(self, root: Cgroup, controllers: Iterable[str] = ()) -> None:
        """Take a root that is open already; nothing is enabled. Closing the subtree closes it."""
        self.root = root
        self.controllers = frozenset(controllers)

    @classmethod
    def open_or_create(
        cls,
        path: str | os.PathLike[str],
        controllers: Iterable[str],
        *,
        evacuate_into: str | None = None,
    ) -> Self:
        """Make every missing cgroup on the way to ``path`` and enable ``controllers`` all the way, ``path`` included.

        ``path`` is absolute, below the cgroup2 mount. A controller that this host does not offer is skipped
        and shows in :meth:`missing_controllers`. A cgroup where all is enabled already is not written to, so
        a delegated subtree needs no rights above itself. ``evacuate_into``: the child of ``path`` that takes
        the processes sitting in ``path`` itself, which may not have any when its children are controlled;
        without it they raise :class:`CgroupBusy`.

        Raises :class:`NotCgroup2` for a path elsewhere and :class:`NotDelegated` where we may not write.
        """
        wanted = frozenset(controllers)
        absolute = os.path.abspath(os.fspath(path))
        mount = os.path.realpath(find_mount().path)
        relative = os.path.relpath(os.path.realpath(absolute), mount)
        if relative.split("/")[0] == "..":
            raise NotCgroup2(absolute, f"is not below the cgroup2 mount {mount}")
        here = Cgroup.open(mount)
        for name in () if relative == "." else relative.split("/"):
            with here:
                _enable(here, wanted)
                try:
                    below = here.open_child(name)
                except CgroupGone:
                    # Another starter may be as fast.
                    with contextlib.suppress(CgroupExists):
                        here.create_child(name).close()
                    below = here.open_child(name)
            here = below
        subtree = cls(here, wanted)
        try:
            if evacuate_into is not None and subtree.missing_from_children():
                subtree.evacuate_into(evacuate_into).close()
            subtree.enable()
        except CgroupError:
            subtree.close()
            raise
        return subtree

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the root; the cgroups stay."""
        self.root.close()

    # ---- controllers --------------------------------------------------------------------------------------

    def available_controllers(self) -> frozenset[str]:
        """What the parent has enabled for the root."""
        return self.root.read(files.CGROUP_CONTROLLERS) or frozenset()

    def enabled_controllers(self) -> frozenset[str]:
        """What the root has enabled for its children."""
        return self.root.read(files.CGROUP_SUBTREE_CONTROL) or frozenset()

    def missing_controllers(self) -> frozenset[str]:
        """What was asked for and is not offered to the root.

        Not in this kernel, bound to v1, or not delegated.
        """
        return self.controllers - self.available_controllers()

    def missing_from_children(self) -> frozenset[str]:
        """What was asked for, is offered, and is not enabled for the children yet."""
        return (self.controllers & self.available_controllers()) - self.enabled_controllers()

    def enable(self) -> None:
        """Enable what was asked for, as far as it is offered.

        :class:`CgroupBusy` when processes are in the way.
        """
        _enable(self.root, self.controllers)

    def evacuate_into(self, name: str) -> Cgroup:
        """Move every process that sits in the root itself into its child ``name``, made if missing, and return that.

        Raises :class:`CgroupBusy` when processes are left: kernel threads, or some that fork faster than we
        move.
        """
        try:
            leaf = self.root.create_child(name)
        except CgroupExists:
            leaf = self.root.open_child(name)
        try:
            evacuate(self.root, leaf)
        except CgroupError:
            leaf.close()
            raise
        return leaf

    # ---- what really works --------------------------------------------------------------------------------

    def probe_delegation(self) -> Delegation:
        """Set a limit of every controller in a throw-away child and read it back.

        Costs well under a millisecond.
        """
        name = f"probe-{os.getpid()}"
        try:
            with contextlib.suppress(CgroupExists):
                self.root.create_child(name).close()
            child = self.root.open_child(name)
        except CgroupError as error:
            return Delegation(can_make_children=False, reason=str(error))
        with child:
            try:
                probes = tuple(_probe(child, one) for one in sorted(self.controllers))
            finally:
                child.try_remove_tree()
        return Delegation(can_make_children=True, probes=probes)

    # ---- what is in it ------------------------------------------------------------------------------------

    def scan(self) -> Iterator[Cgroup]:
        """All descendants of the root, depth first, parents first; the caller owns what it is given."""
        return self.root.walk()

    def sweep(self, is_leftover: Callable[[Cgroup], bool], deadline_s: float = 5.0) -> SweepResult:
        """Kill and remove every descendant for which ``is_leftover`` is true, with all that is below it.

        ``deadline_s`` is for each of them. Blocks while killed processes die. What vanishes by itself is in
        neither list of the result.
        """
        removed: list[str] = []
        failed: list[tuple[str, str]] = []
        for found in self.scan():
            try:
                if is_leftover(found):
                    found.remove_tree(deadline_s)
                    removed.append(found.path)
            except CgroupGone:
                continue
            except CgroupError as error:
                failed.append((found.path, error.reason))
        return SweepResult(tuple(removed), tuple(failed))


def evacuate(source: Cgroup, leaf: Cgroup) -> None:
    """Move every process that sits in ``source`` itself to ``leaf``, those that are forked meanwhile included.

    Raises :class:`CgroupBusy` when some are left: kernel threads, or processes that fork faster than we
    move.
    """
    inside: tuple[int, ...] = ()
    for _ in range(_EVACUATION_ROUNDS):
        inside = source.process_ids()
        if not inside:
            return
        for pid in inside:
            try:
                leaf.place(pid)
            except ProcessGone:
                continue
            except CgroupGone:
                raise
            except CgroupError as error:
                reason = f"process {pid} cannot be moved out: {error.reason}"
                raise CgroupBusy(source.path, reason, error.errno or 0) from error
    raise CgroupBusy(source.path, f"processes {inside[:16]} fork faster than they can be moved out")


def _enable(cgroup: Cgroup, wanted: frozenset[str]) -> None:
    offered = cgroup.read(files.CGROUP_CONTROLLERS) or frozenset()
    enabled = cgroup.read(files.CGROUP_SUBTREE_CONTROL) or frozenset()
    needed = (wanted & offered) - enabled
    if not needed:
        return
    try:
        # The kernel refuses memory and io while processes are inside, but takes cpu and pids and makes the
        # cgroup a threaded domain, whose new children cannot be used (EOPNOTSUPP). Only the root, which has
        # no type, is exempt.
        if cgroup.read(files.CGROUP_TYPE) is not None and cgroup.process_ids():
            raise CgroupBusy(cgroup.path, error_number=errno.EBUSY)
        cgroup.enable_controllers(needed)
    except CgroupBusy as error:
        raise CgroupBusy(
            cgroup.path,
            f"cannot enable {', '.join(sorted(needed))} for its children while processes {cgroup.process_ids()[:16]}"
            " are in it; move them into a child first (evacuate_into)",
            error.errno or 0,
        ) from error
    except NotDelegated as error:
        raise NotDelegated(
            cgroup.path,
            f"cannot enable {', '.join(sorted(needed))} for its children: {os.strerror(error.errno or 0)}; the one who"
            " owns this cgroup has to do it (systemd: Delegate=yes in the unit)",
            error.errno or 0,
        ) from error


def _probe(child: Cgroup, controller: str) -> Probe:
    if controller not in _PROBES:
        return Probe(controller, False, "this package knows no limit of that controller")
    file, value = _PROBES[controller]
    if controller == Controller.IO and not child.directory.has_file(file.name):
        # io.weight takes CONFIG_BLK_CGROUP_IOCOST; the controller works without.
        is_there = child.read(files.IO_STAT) is not None
        return Probe(controller, is_there, "" if is_there else str(child.missing(files.IO_STAT).reason))
    try:
        child.write(file, value)
        found = child.read(file)
    except CgroupError as error:
        return Probe(controller, False, error.reason)
    if found != value:
        return Probe(controller, False, f"{file.name} was set to {value} and reads {found}")
    return Probe(controller, True)
