"""Being told instead of asking: changes of interface files by inotify(7), and pressure triggers by poll(2).

What the kernel does on removal was tried on 6.18: removing a cgroup sends nothing to a watch on one of its
files, not even IN_IGNORED; only a watch on the *parent* directory is told (IN_DELETE). So every watched
cgroup has its parent watched too. Sources: inotify(7), Documentation/admin-guide/cgroup-v2.rst section 2-3,
Documentation/accounting/psi.rst.
"""

import contextlib
import ctypes
import errno
import os
import select
import struct
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, Self

from agentcgroup.cgroups.cgroup import Cgroup
from agentcgroup.cgroups.directory import from_os_error
from agentcgroup.cgroups.errors import BadFormat, CgroupError, CgroupGone, NotDelegated
from agentcgroup.cgroups.files import InterfaceFile
from agentcgroup.cgroups.values import Pressure, PressureKind

# include/uapi/linux/inotify.h
_IN_MODIFY: Final = 0x00000002
_IN_DELETE: Final = 0x00000200
_IN_IGNORED: Final = 0x00008000
_IN_Q_OVERFLOW: Final = 0x00004000
_IN_ONLYDIR: Final = 0x01000000
_EVENT: Final = struct.Struct("iIII")
_READ_SIZE: Final = 65536

# kernel/sched/psi.c: the window of a trigger.
_WINDOW_MIN_US: Final = 500_000
_WINDOW_MAX_US: Final = 10_000_000
_UNPRIVILEGED_WINDOW_US: Final = 2_000_000

_libc = ctypes.CDLL(None, use_errno=True)


class WatchEventKind(StrEnum):
    """``CHANGED``.

    Read the file. ``GONE``: the cgroup was removed, the watch has ended. ``OVERFLOW``: read them all.
    """

    CHANGED = "changed"
    GONE = "gone"
    OVERFLOW = "overflow"


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """What happened to one watch.

    An overflow concerns all of them: its ``watch_id`` is -1 and the rest is None.
    """

    kind: WatchEventKind
    watch_id: int
    cgroup_id: int | None = None
    file: InterfaceFile[Any] | None = None


@dataclass(slots=True)
class _Watch:
    cgroup: Cgroup
    file: InterfaceFile[Any]
    parent: int


@dataclass(slots=True)
class _Parent:
    # Watch ids by name of the child; several, when several files of one child are watched.
    children: dict[str, set[int]] = field(default_factory=dict)


class EventWatch:
    """One inotify descriptor for the interface files of many cgroups.

    Only files whose documentation says "generates a file modified event" tell of changes: ``cgroup.events``,
    ``memory.events`` and its relatives, ``pids.events``. The kernel sends at most one event for
    memory.events per 10 ms and merges what was not read yet: an event means "read again", not "once". Not
    thread safe.
    """

    def __init__(self) -> None:
        """Open the descriptor. Raises :class:`OSError` when fs.inotify.max_user_instances is used up."""
        fd = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if fd < 0:
            code = ctypes.get_errno()
            raise OSError(code, f"{os.strerror(code)}; raise fs.inotify.max_user_instances")
        self._fd: int = fd
        self._watches: dict[int, _Watch] = {}
        self._parents: dict[int, _Parent] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._watches)

    def close(self) -> None:
        """End all watches and close the descriptor; may be called twice."""
        fd, self._fd = self._fd, -1
        self._watches.clear()
        self._parents.clear()
        if fd >= 0:
            os.close(fd)

    def fileno(self) -> int:
        """Readable when there is something to :meth:`read`; for asyncio's add_reader."""
        return self._fd

    def add(self, cgroup: Cgroup, file: InterfaceFile[Any]) -> int:
        """Watch one file of one cgroup; its id comes back in events. The same file again has the same id.

        The cgroup must stay open while it is watched: a closed handle counts as gone. Raises
        :class:`CgroupGone`, and :class:`CgroupError` (ENOSPC) when fs.inotify.max_user_watches is used up.
        """
        # By way of the held directory, because a path may lead to another cgroup by now.
        held = f"/proc/self/fd/{cgroup.fileno()}"
        parent_id = self._add(f"{held}/..", _IN_DELETE | _IN_ONLYDIR, cgroup.path)
        try:
            watch_id = self._add(f"{held}/{file.name}", _IN_MODIFY, cgroup.path)
        except CgroupError as error:
            self._drop_parent_if_unused(parent_id)
            if error.errno == errno.ENOENT and cgroup.is_alive():
                raise cgroup.missing(file) from error
            raise
        self._watches[watch_id] = _Watch(cgroup, file, parent_id)
        parent = self._parents.setdefault(parent_id, _Parent())
        parent.children.setdefault(cgroup.name, set()).add(watch_id)
        if not cgroup.is_alive():
            # It went away between the two calls, so nobody will ever tell.
            self.remove(watch_id)
            raise CgroupGone(cgroup.path, "cannot watch it: the cgroup was removed", errno.ENOENT)
        return watch_id

    def _add(self, target: str, mask: int, path: str) -> int:
        watch_id: int = _libc.inotify_add_watch(self._fd, os.fsencode(target), ctypes.c_uint32(mask))
        if watch_id >= 0:
            return watch_id
        code = ctypes.get_errno()
        if code == errno.ENOSPC:
            raise CgroupError(path, "cannot watch it: raise fs.inotify.max_user_watches", code)
        raise from_os_error(path, "watch it", OSError(code, os.strerror(code)))

    def remove(self, watch_id: int) -> None:
        """End a watch. An id that has ended already is ignored."""
        watch = self._watches.pop(watch_id, None)
        if watch is None:
            return
        _libc.inotify_rm_watch(self._fd, watch_id)
        parent = self._parents.get(watch.parent)
        if parent is not None:
            siblings = parent.children.get(watch.cgroup.name, set())
            siblings.discard(watch_id)
            if not siblings:
                parent.children.pop(watch.cgroup.name, None)
        self._drop_parent_if_unused(watch.parent)

    def _drop_parent_if_unused(self, parent_id: int) -> None:
        parent = self._parents.get(parent_id)
        if parent is None or not parent.children:
            self._parents.pop(parent_id, None)
            # A file may be watched under the same id only if it is the same inode, which a directory never
            # is.
            _libc.inotify_rm_watch(self._fd, parent_id)

    def read(self) -> list[WatchEvent]:
        """What happened since the last call, each watch at most once for each kind; never blocks."""
        found: dict[WatchEvent, None] = {}
        while True:
            try:
                data = os.read(self._fd, _READ_SIZE)
            except BlockingIOError:
                return list(found)
            for watch_id, mask, name in _events(data):
                found.update(dict.fromkeys(self._interpret(watch_id, mask, name)))

    def _interpret(self, watch_id: int, mask: int, name: str) -> list[WatchEvent]:
        if mask & _IN_Q_OVERFLOW:
            # A lost IN_DELETE would never come again, so the handles are asked.
            gone = [one for one, watch in self._watches.items() if not watch.cgroup.is_alive()]
            return [WatchEvent(WatchEventKind.OVERFLOW, -1), *self._end(gone)]
        if (parent := self._parents.get(watch_id)) is not None:
            # Of two cgroups that had this name one after the other, only the dead one is gone.
            ids = parent.children.get(name, set())
            return self._end([one for one in ids if not self._watches[one].cgroup.is_alive()])
        watch = self._watches.get(watch_id)
        if watch is None:
            # Ours to ignore: an event that was queued before remove(), or IN_IGNORED after it.
            return []
        if mask & _IN_IGNORED:
            return self._end([watch_id])
        return [WatchEvent(WatchEventKind.CHANGED, watch_id, watch.cgroup.id, watch.file)]

    def _end(self, watch_ids: list[int]) -> list[WatchEvent]:
        ended = []
        for watch_id in watch_ids:
            watch = self._watches[watch_id]
            self.remove(watch_id)
            ended.append(WatchEvent(WatchEventKind.GONE, watch_id, watch.cgroup.id, watch.file))
        return ended


def _events(data: bytes) -> list[tuple[int, int, str]]:
    found = []
    offset = 0
    while offset < len(data):
        watch_id, mask, _, length = _EVENT.unpack_from(data, offset)
        offset += _EVENT.size
        found.append((watch_id, mask, os.fsdecode(data[offset : offset + length].rstrip(b"\0"))))
        offset += length
    return found


class PsiTrigger:
    """Wakes its descriptor when the tasks of a cgroup stalled ``stall_us`` within ``window_us``.

    The kernel fires at most once per window. :meth:`fileno` gives a descriptor that becomes *readable* then,
    which is what asyncio's add_reader waits for; the callback itself is the news, there is nothing to read.
    When the cgroup is removed the descriptor becomes readable for good: a callback asks :meth:`is_gone` and,
    if so, has the loop remove the reader.
    """

    # The kernel's own descriptor is always readable and signals with POLLPRI, which add_reader cannot ask
    # for and would spin on; and polling it takes the event away. An epoll descriptor around each trigger
    # turns POLLPRI into POLLIN; one epoll around many would lose which of them fired, because looking at it
    # polls, and so clears, every trigger.

    def __init__(
        self,
        cgroup: Cgroup,
        file: InterfaceFile[Pressure],
        kind: PressureKind,
        stall_us: int,
        window_us: int,
    ) -> None:
        """Set it up.

        Raises :class:`BadFormat` for times outside of what psi.rst allows (window 0.5 s to 10 s).
        """
        self.path = path = f"{cgroup.path}/{file.name}"
        if not 0 < stall_us <= window_us or not _WINDOW_MIN_US <= window_us <= _WINDOW_MAX_US:
            raise BadFormat(
                path,
                f"a trigger of {stall_us} us in {window_us} us is not possible: a window is 500000 to"
                " 10000000 us, and the stall at most the window",
            )
        self.kind = kind
        self.file = file
        self.cgroup_id = cgroup.id
        self._file_fd = cgroup.open_file(file, os.O_RDWR | os.O_NONBLOCK)
        try:
            os.write(self._file_fd, f"{kind} {stall_us} {window_us}\0".encode())
        except OSError as error:
            os.close(self._file_fd)
            if error.errno == errno.EINVAL and window_us % _UNPRIVILEGED_WINDOW_US:
                raise NotDelegated(
                    path, "a window that is not a multiple of 2 s takes CAP_SYS_RESOURCE", errno.EINVAL
                ) from error
            raise from_os_error(path, f"set a trigger of {stall_us} us in {window_us} us", error) from error
        self._epoll = select.epoll()
        self._epoll.register(self._file_fd, select.EPOLLPRI)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the trigger; may be called twice."""
        fd, self._file_fd = self._file_fd, -1
        self._epoll.close()
        if fd >= 0:
            os.close(fd)

    def fileno(self) -> int:
        """Readable when the trigger fired, and for good once the cgroup is gone; -1 when closed."""
        with contextlib.suppress(ValueError):
            return self._epoll.fileno()
        return -1

    def is_gone(self) -> bool:
        """Whether the cgroup was removed, and the trigger with it, or the trigger was closed."""
        return self._epoll.closed or any(events & select.EPOLLERR for _, events in self._epoll.poll(0))

    def wait(self, timeout_s: float) -> bool:
        """Block until it fires or time is up. Raises :class:`CgroupGone` when the cgroup was removed."""
        fired = self._epoll.poll(timeout_s)
        if any(events & select.EPOLLERR for _, events in fired):
            raise CgroupGone(self.path, "the trigger ended: the cgroup was removed", errno.ENODEV)
        return bool(fired)
