"""A cgroup: make it, limit it, fill it, watch it, stop it, remove it.

This is the hot path of placing a process, so nothing is checked twice and no path is walked: every call is
one or three system calls on the held directory. A cgroup is its inode id, never its name.
"""

import contextlib
import os
import select
import signal
import time
from collections.abc import Iterator
from typing import Final, Self, TypeVar

from agentcgroup.cgroups import files
from agentcgroup.cgroups.directory import Directory, from_os_error
from agentcgroup.cgroups.errors import (
    BadFormat,
    CgroupBusy,
    CgroupError,
    CgroupGone,
    ControllerMissing,
    InterfaceMissing,
)
from agentcgroup.cgroups.files import InterfaceFile
from agentcgroup.cgroups.names import check_name
from agentcgroup.cgroups.values import Reclaim

T = TypeVar("T")

# Signals in one round of the fallback of kill(); every round sees fewer processes unless they fork faster
# than we kill.
_KILL_ROUNDS: Final = 64


class Cgroup:
    """One cgroup, held open. Use it as a context manager, or :meth:`close` it; closing removes nothing.

    ``path`` is the absolute path at which it was opened or made and ``name`` its last part; ``id`` is the
    kernel's cgroup id, never reused. ``directory`` is the files behind it, for this package.
    """

    __slots__ = ("directory", "id", "name", "path")

    def __init__(self, directory: Directory) -> None:
        """Wrap an open directory; use :meth:`open` and :meth:`create_child`."""
        self.directory = directory
        self.path = path = directory.path
        self.name = path.rpartition("/")[2]
        self.id = directory.id

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, verify: bool = True) -> Self:
        """Hold an existing cgroup. ``verify=False`` accepts a plain directory, for tests.

        Raises :class:`CgroupGone` when there is none and :class:`NotCgroup2` when it is something else.
        """
        return cls(Directory.open(os.fspath(path), verify=verify))

    def __repr__(self) -> str:
        return f"Cgroup({self.path!r}, id={self.id})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.directory.close()

    def close(self) -> None:
        """Let go of the descriptor. The cgroup stays."""
        self.directory.close()

    def fileno(self) -> int:
        """The directory descriptor, for clone3(2) and BPF; -1 when closed."""
        return self.directory.fileno()

    def same_as(self, other: "Cgroup") -> bool:
        """Whether both are the same cgroup, whatever it is called."""
        return self.id == other.id

    def is_alive(self) -> bool:
        """Whether the cgroup still exists; False also when the handle is closed."""
        return self.directory.is_alive()

    # ---- children -----------------------------------------------------------------------------------------

    def create_child(self, name: str) -> Self:
        """Make a child cgroup.

        Raises :class:`BadFormat` for an impossible name, :class:`CgroupExists` for a taken one.
        """
        return type(self)(self.directory.make_child(check_name(name, self.path)))

    def open_child(self, name: str) -> Self:
        """Hold an existing child; :class:`CgroupGone` when there is none."""
        if name in ("", ".", "..") or "/" in name or "\0" in name:
            raise BadFormat(self.path, f"{name[:64]!r} is not the name of a child cgroup")
        return type(self)(self.directory.open_child(name))

    def child_names(self) -> list[str]:
        """Names of the direct children, sorted."""
        return sorted(self.directory.child_names())

    def walk(self) -> Iterator[Self]:
        """This cgroup's descendants, depth first, a parent before its children and siblings by name.

        The caller owns what it is given; closing or removing one skips what is below it. What vanishes
        meanwhile is skipped too.
        """
        # Entries refer to their parent, so it stays open exactly as long as something below it is still to
        # be opened.
        pending = [(self, name) for name in reversed(self.child_names())]
        while pending:
            parent, name = pending.pop()
            try:
                child = parent.open_child(name)
                names = child.child_names()
            except CgroupGone:
                continue
            pending.extend((child, below) for below in reversed(names))
            yield child

    # ---- files --------------------------------------------------------------------------------------------

    def read(self, file: InterfaceFile[T]) -> T | None:
        """The value of an interface file; None when this kernel or this cgroup does not have the file.

        Raises :class:`CgroupGone` when the cgroup was removed and :class:`BadFormat` when the text is not
        understood.
        """
        if not file.readable:
            raise BadFormat(f"{self.path}/{file.name}", "this file can only be written")
        text = self.directory.read(file.name)
        if text is None:
            return None
        try:
            return file.parse(text)
        except (ValueError, TypeError) as error:
            raise BadFormat(f"{self.path}/{file.name}", f"cannot be understood: {error}") from error

    def write(self, file: InterfaceFile[T], value: T, *, nonblocking: bool = False) -> None:
        """Set the value of an interface file.

        ``nonblocking``: lowering memory.high or memory.max below the usage makes the *writer* reclaim memory
        until the limit holds; with it (kernel 6.16, ignored before) the tasks of the cgroup do that at their
        next allocation. Raises :class:`ControllerMissing` or :class:`InterfaceMissing` when there is no such
        file.
        """
        if not self.write_if_present(file, value, nonblocking=nonblocking):
            raise self.missing(file)

    def write_if_present(self, file: InterfaceFile[T], value: T, *, nonblocking: bool = False) -> bool:
        """As :meth:`write`, but False when the file does not exist."""
        try:
            text = file.format(value)
        except ValueError as error:
            raise BadFormat(f"{self.path}/{file.name}", f"cannot be set to {value!r}: {error}") from error
        flags = os.O_NONBLOCK if nonblocking else 0
        if file.is_line_by_line:
            return all([self.directory.write(file.name, line, flags) for line in text.splitlines()])
        return self.directory.write(file.name, text, flags)

    def open_file(self, file: InterfaceFile[T], flags: int) -> int:
        """A close-on-exec descriptor of an interface file, for those who poll it; the caller closes it."""
        try:
            return self.directory.open_file(file.name, flags)
        except CgroupGone as error:
            if self.is_alive():
                raise self.missing(file) from error
            raise

    def missing(self, file: InterfaceFile[T]) -> InterfaceMissing:
        """The exception that says why this cgroup does not have ``file``."""
        path = f"{self.path}/{file.name}"
        enabled = self.read(files.CGROUP_CONTROLLERS) or frozenset()
        if file.controller is not None and file.controller not in enabled:
            return ControllerMissing(
                path,
                f"the {file.controller} controller is not enabled here; enable it in the parent's"
                " cgroup.subtree_control, from the root down",
            )
        return InterfaceMissing(path, "this kernel does not have the file, or not in this cgroup")

    def enable_controllers(self, names: frozenset[str]) -> None:
        """Enable controllers for the children.

        All of them or none. :class:`CgroupBusy` when processes are in the way.
        """
        self.write(files.CGROUP_SUBTREE_CONTROL, names)

    def disable_controllers(self, names: frozenset[str]) -> None:
        """Disable controllers for the children; :class:`CgroupBusy` when a child has passed them on."""
        self.directory.write(
            files.CGROUP_SUBTREE_CONTROL.name, " ".join(f"-{name}" for name in sorted(names)) or "\n"
        )

    # ---- processes ----------------------------------------------------------------------------------------

    def place(self, pid: int) -> None:
        """Move a process with all its threads into this cgroup.

        Raises :class:`ProcessGone` when there is none, :class:`CgroupBusy` when this cgroup controls its
        children, and :class:`CgroupError` (EINVAL) for a kernel thread. A zombie is accepted by the kernel
        and not moved.
        """
        if pid < 1:
            raise BadFormat(self.path, f"{pid} is not the id of a process; 0 would move the caller itself")
        self.directory.write("cgroup.procs", str(pid))

    def process_ids(self) -> tuple[int, ...]:
        """The live processes in this cgroup itself, without those our pid namespace cannot see.

        Zombies are not listed.
        """
        found = self.read(files.CGROUP_PROCS)
        if found is None:
            raise CgroupError(
                f"{self.path}/cgroup.procs", "cannot be read: this is a threaded cgroup; read its domain"
            )
        return tuple(pid for pid in found if pid)

    def all_process_ids(self) -> tuple[int, ...]:
        """The live processes here and in every descendant."""
        found = list(self.process_ids())
        for below in self.walk():
            with contextlib.suppress(CgroupGone):
                found.extend(below.process_ids())
        return tuple(found)

    def is_populated(self) -> bool:
        """Whether a live process is in this cgroup or below it."""
        events = self.read(files.CGROUP_EVENTS)
        # The root has no cgroup.events.
        return bool(self.all_process_ids()) if events is None else events.populated

    def freeze(self) -> None:
        """Ask the kernel to stop everything here and below; cgroup.events says when it is done."""
        self.write(files.CGROUP_FREEZE, True)

    def thaw(self) -> None:
        """Let it run again, unless an ancestor is frozen."""
        self.write(files.CGROUP_FREEZE, False)

    def kill(self) -> None:
        """SIGKILL everything here and below, forks in flight included.

        Frozen tasks too. Returns before they are dead.
        """
        if not self.write_if_present(files.CGROUP_KILL, True):
            self.kill_by_signals()

    def kill_by_signals(self) -> None:
        """What :meth:`kill` does before kernel 5.14: freeze, so that nothing forks, signal all, thaw as it was.

        The root can be neither frozen nor killed, and raises :class:`InterfaceMissing`.
        """
        was_frozen = self.read(files.CGROUP_FREEZE)
        if was_frozen is None:
            # Without this every process of the machine would be meant, ourselves included.
            raise self.missing(files.CGROUP_KILL)
        self.freeze()
        try:
            signalled: set[int] = set()
            for _ in range(_KILL_ROUNDS):
                # A pid seen twice is a task that dies slowly, not a new one: a frozen tree does not reuse
                # ids.
                fresh = set(self.all_process_ids()) - signalled
                if not fresh:
                    return
                for pid in fresh:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                signalled |= fresh
        finally:
            if not was_frozen:
                self.thaw()

    # ---- memory -------------------------------------------------------------------------------------------

    def reclaim(self, amount_bytes: int) -> Reclaim:
        """Ask the kernel to free memory of this cgroup now. Blocks while it works; call it from a thread.

        Freeing less than asked (EAGAIN) is a value. Raises :class:`InterfaceMissing` before kernel 5.19.
        """
        before = self.read(files.MEMORY_CURRENT)
        is_complete = True
        try:
            self.write(files.MEMORY_RECLAIM, amount_bytes)
        except CgroupError as error:
            if not isinstance(error.__cause__, BlockingIOError):
                raise
            is_complete = False
        after = self.read(files.MEMORY_CURRENT)
        freed = None if before is None or after is None else before - after
        return Reclaim(amount_bytes, is_complete, freed)

    # ---- removal ------------------------------------------------------------------------------------------

    def remove(self) -> bool:
        """rmdir it and close the handle.

        False when it was gone already; :class:`CgroupBusy` while it is in use.
        """
        return self.directory.remove()

    def try_remove_tree(self) -> bool:
        """Kill what is left here and below and remove it all, bottom up, without waiting.

        True when it is gone. False when something is still dying: try again when cgroup.events says it is
        empty.
        """
        try:
            self.directory.remove()
            return True
        except CgroupBusy:
            pass
        try:
            if self.is_populated():
                self.kill()
            self._remove_descendants()
            self.directory.remove()
        except CgroupBusy:
            return False
        except CgroupGone:
            return not self.is_alive()
        return True

    def _remove_descendants(self) -> None:
        # One held directory per level and no recursion, so neither the number of descendants nor their
        # depth, which whoever made them chose, can exhaust ours.
        branch = [self]
        while branch:
            tip = branch[-1]
            with contextlib.suppress(CgroupGone):
                if names := tip.child_names():
                    branch.append(tip.open_child(names[0]))
                    continue
            branch.pop()
            if branch:
                tip.remove()

    def remove_tree(self, deadline_s: float) -> None:
        """As :meth:`try_remove_tree`, waiting up to ``deadline_s`` seconds for the killed to be gone.

        Blocks. Raises :class:`CgroupBusy`, naming the processes, when time is up.
        """
        end = time.monotonic() + deadline_s
        pause_s = 0.001
        while not self.try_remove_tree():
            left_s = end - time.monotonic()
            if left_s <= 0:
                raise CgroupBusy(
                    self.path,
                    f"still in use {deadline_s:g} s after SIGKILL by processes {self.all_process_ids()[:16]}"
                    " (a task in uninterruptible sleep dies only when its I/O ends)",
                )
            if self.wait_until_empty(left_s):
                # Empty and yet EBUSY: the kernel lets go of the last task a moment after it says so.
                time.sleep(min(pause_s, left_s))
                pause_s = min(pause_s * 2, 0.05)

    def wait_until_empty(self, timeout_s: float) -> bool:
        """Block until no live process is here or below, or time is up. True when it is empty or gone."""
        end = time.monotonic() + timeout_s
        try:
            fd = self.open_file(files.CGROUP_EVENTS, os.O_RDONLY)
        except CgroupGone:
            return True
        poll = select.poll()
        poll.register(fd, select.POLLPRI)
        try:
            # kernfs raises POLLPRI when the file changed since the last read, so every round reads anew.
            while True:
                text = os.pread(fd, 4096, 0).decode()
                if not files.CGROUP_EVENTS.parse(text).populated:
                    return True
                left_s = end - time.monotonic()
                if left_s <= 0 or not poll.poll(left_s * 1000):
                    return False
        except OSError as error:
            failure = from_os_error(self.path, "read cgroup.events", error)
            if isinstance(failure, CgroupGone):
                return True
            raise failure from error
        finally:
            os.close(fd)

    # ---- extended attributes ------------------------------------------------------------------------------

    def get_xattr(self, name: str) -> bytes | None:
        """An extended attribute such as ``trusted.agentcgroup.call``; None when not set."""
        return self.directory.get_xattr(name)

    def set_xattr(self, name: str, value: bytes) -> None:
        """Set an extended attribute; it lives as long as the cgroup, whoever dies."""
        self.directory.set_xattr(name, value)

    def list_xattrs(self) -> list[str]:
        """The names of the extended attributes this process may see."""
        return self.directory.list_xattrs()
