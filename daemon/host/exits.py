"""When a process that is not our child ends, and how: pidfds on the asyncio loop.

All watched pidfds hang in one epoll descriptor, and that one hangs in the loop: a watch costs one system
call and no entry in the loop's selector, and nothing at all runs while nothing ends.

A pidfd becomes readable (EPOLLIN) when the last thread of the process has ended, and hangs up (EPOLLHUP,
kernel 6.9) when its parent has reaped it (pidfd_open(2)). How it ended is told by one of four sources,
chosen by trying, never by version:

* ``KERNEL_EVENTS``: the exit record of our BPF programs, told by `tell`. It comes before the pidfd becomes
  readable, so the status needs no parent that reaps. One that was lost is asked of the other sources.
* ``PIDFD_INFO``: ioctl PIDFD_GET_INFO with PIDFD_INFO_EXIT (kernel 6.15). The kernel keeps the status with
  the pidfd from the moment of reaping, so it cannot be missed.
* ``PROC_CONNECTOR``: exit messages of the whole host, thinned in the kernel; see :mod:`.proc_connector`. It
  is switched on only while something is watched, so a daemon at rest pays nothing. A process that ended
  before the first watch began is missed.
* ``ZOMBIE``: the ``exit_code`` field of /proc/PID/stat, readable between end and reaping. A parent that
  waits closes that gap within microseconds, so this is the last resort of both others, for a parent that
  does not reap.
"""

import asyncio
import functools
import logging
import os
import select
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from agentcgroup.daemon.host.pidfd import has_ended, wait_status
from agentcgroup.daemon.host.proc_connector import ConnectorUnavailable, ProcConnector
from agentcgroup.daemon.model import ExitStatus

__all__ = ["ExitSource", "ExitWatch", "decode_wait_status", "probe_exit_source", "zombie_status"]

log = logging.getLogger(__name__)

# pidfd_open(2): a descriptor of one thread rather than of its process (kernel 6.9); the flag is O_EXCL.
_PIDFD_THREAD: Final = os.O_EXCL

_CAP_SYS_PTRACE: Final = 19
# A process that the door's thread has placed may end before the loop hears of it.
_MOST_TOLD_EARLY: Final = 1024
# How many ends are handled before the loop may do other things.
_BATCH: Final = 128


class ExitSource(StrEnum):
    """Who tells how a process ended."""

    KERNEL_EVENTS = "kernel_events"
    PIDFD_INFO = "pidfd_info"
    PROC_CONNECTOR = "proc_connector"
    ZOMBIE = "zombie"


def decode_wait_status(status: int) -> ExitStatus:
    """A wait status, as wait(2) and the kernel's ``exit_code`` fields hold it."""
    if os.WIFSIGNALED(status):
        return ExitStatus(signal=os.WTERMSIG(status))
    return ExitStatus(exit_code=os.WEXITSTATUS(status))


def _reaped_status(pidfd: int) -> ExitStatus | None:
    """The kernel's own record of a reaped process; None when it keeps none (older kernel) or has not been
    reaped.
    """
    status = wait_status(pidfd)
    return None if status is None else decode_wait_status(status)


def pid_of(pidfd: int) -> int | None:
    """The pid behind `pidfd` as this process sees it; None once it is reaped (proc_pid_fdinfo(5), field
    Pid).
    """
    with open(f"/proc/self/fdinfo/{pidfd}", encoding="ascii") as lines:
        for line in lines:
            if line.startswith("Pid:"):
                pid = int(line[4:])
                return pid if pid > 0 else None
    raise ValueError(f"descriptor {pidfd} is no pidfd")


@functools.cache
def _may_read_any_exit_code() -> bool:
    """Whether /proc/PID/stat shows us everybody's exit_code; without CAP_SYS_PTRACE it shows 0 for other
    users'.
    """
    with open("/proc/self/status", encoding="ascii") as lines:
        for line in lines:
            if line.startswith("CapEff:"):
                return bool(int(line[7:], 16) >> _CAP_SYS_PTRACE & 1)
    return False


def zombie_status(pidfd: int) -> ExitStatus | None:
    """How an ended but not yet reaped process ended, from /proc/PID/stat; None when that cannot be known.

    The pid is checked to be still the pidfd's own after the read, so a reused pid cannot lend its status.
    """
    pid = pid_of(pidfd)
    if pid is None:
        return None
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read()
            owner = os.fstat(file.fileno()).st_uid
    except (FileNotFoundError, ProcessLookupError):
        return None
    if pid_of(pidfd) != pid:
        return None
    # The command name, field 2, may hold anything, also ") Z"; what follows its last ")" is numbers and the
    # state.
    fields = text[text.rindex(b")") + 2 :].split()
    state, exit_code = fields[0], int(fields[49])
    if state not in (b"Z", b"X"):
        return None
    if exit_code == 0 and owner != os.geteuid() and not _may_read_any_exit_code():
        return None
    return decode_wait_status(exit_code)


def _keeps_exit_info() -> bool:
    """Whether this kernel keeps the status with a pidfd: tried on a thread of our own, which ends and is
    reaped alone.
    """
    end = threading.Event()
    thread = threading.Thread(target=end.wait, name="exit-probe", daemon=True)
    thread.start()
    try:
        pidfd = os.pidfd_open(thread.native_id or 0, _PIDFD_THREAD)
    except OSError:
        return False  # before 6.9, so before 6.15
    finally:
        end.set()
        thread.join()
    try:
        poll = select.poll()
        poll.register(pidfd, 0)
        return bool(poll.poll(1000)) and _reaped_status(pidfd) is not None
    finally:
        os.close(pidfd)


def probe_exit_source() -> ExitSource:
    """The best source of exit statuses that works here. Takes about a millisecond."""
    if _keeps_exit_info():
        return ExitSource.PIDFD_INFO
    try:
        ProcConnector().close()
    except ConnectorUnavailable as error:
        log.info("exit statuses come from zombies only: %s", error)
        return ExitSource.ZOMBIE
    return ExitSource.PROC_CONNECTOR


@dataclass(slots=True)
class _Watched:
    pidfd: int
    on_exit: Callable[[], None]
    on_status: Callable[[ExitStatus], None]
    # Known only where the source names processes by pid: the connector and the BPF programs.
    pid: int | None = None
    registered: bool = True
    ended: bool = False
    status: ExitStatus | None = None
    deadline: asyncio.TimerHandle | None = None


class ExitWatch:
    """Calls back when watched processes end. Lives on one asyncio loop and is used from that loop only.

    For each watch `on_exit` is called once, as soon as the process has ended, and then `on_status` once,
    when its status is known or known to be unknowable (an ExitStatus with neither field). Both are called
    from the loop, never from within `watch`. A parent that does not reap is waited for `reap_wait_s` after
    the end; then the zombie itself is read.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop | None = None,
        source: ExitSource | None = None,
        reap_wait_s: float = 0.5,
    ) -> None:
        """`loop`: default is the running one. `source`: default is what `probe_exit_source` finds."""
        self._loop = loop or asyncio.get_running_loop()
        self.source = source or probe_exit_source()
        self._drain: Callable[[], None] | None = None
        self._reap_wait_s = reap_wait_s
        self._watched: dict[int, _Watched] = {}
        self._by_pid: dict[int, _Watched] = {}
        # Ends of processes that are not watched, the latest last.
        self._told_early: OrderedDict[int, ExitStatus] = OrderedDict()
        self._connector: ProcConnector | None = None
        self._epoll = select.epoll()
        self._loop.add_reader(self._epoll.fileno(), self._on_events)

    def __len__(self) -> int:
        return len(self._watched)

    def watch(
        self,
        pidfd: int,
        on_exit: Callable[[], None],
        on_status: Callable[[ExitStatus], None],
        *,
        pid: int | None = None,
    ) -> None:
        """Watch the process behind `pidfd`, which stays the caller's and open until `on_status` or `forget`.

        `pid` is its pid where the caller knows it; then also one that has been reaped already has its status from the
        kernel's events. Raises ValueError for a descriptor that is watched already or is no pidfd.
        """
        if pidfd in self._watched:
            raise ValueError(
                f"pidfd {pidfd} is watched already: forget it before it is closed or watched again"
            )
        watched = _Watched(pidfd, on_exit, on_status)
        if self.source is ExitSource.PROC_CONNECTOR:
            self._listen()
        if self.source in (ExitSource.PROC_CONNECTOR, ExitSource.KERNEL_EVENTS):
            watched.pid = pid or pid_of(pidfd)
        if watched.pid is not None and watched.pid in self._told_early:
            status = self._told_early.pop(watched.pid)
            # A process that lives is another one than that which ended under this pid.
            watched.status = status if has_ended(pidfd) else None
        self._epoll.register(pidfd, select.EPOLLIN)
        self._watched[pidfd] = watched
        if watched.pid is not None:
            self._by_pid[watched.pid] = watched

    def use_records(self, drain: Callable[[], None]) -> None:
        """From now on, before the first watch, the status is what `tell` is told. `drain` brings waiting records to it."""
        if self._watched:
            raise ValueError("the source of statuses is chosen before the first watch")
        self.source = ExitSource.KERNEL_EVENTS
        self._drain = drain

    def tell(self, pid: int, status: ExitStatus) -> None:
        """The kernel says how `pid` ended. One that is not watched is remembered for a while: it may be soon.

        The record precedes the end of the pidfd's wait, and a watched process that is not reaped keeps its pid, so the
        pid means the process that is watched under it. The callbacks come when the pidfd says so, too.
        """
        watched = self._by_pid.get(pid)
        if watched is None:
            self._told_early[pid] = status
            if len(self._told_early) > _MOST_TOLD_EARLY:
                self._told_early.popitem(last=False)
            return
        watched.status = status
        if watched.ended:
            self._finish(watched, status)

    def hear(self) -> None:
        """Calls back for the ends that are there, before the loop comes to it; also from within a callback."""
        self._on_events()

    def forget(self, pidfd: int) -> None:
        """Stop watching; none of the callbacks comes any more. An unknown descriptor is no error."""
        watched = self._watched.get(pidfd)
        if watched is not None:
            self._drop(watched)

    def close(self) -> None:
        """Forget everything and give the descriptors back. The pidfds stay open."""
        for watched in list(self._watched.values()):
            self._drop(watched)
        if not self._epoll.closed:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()

    def _drop(self, watched: _Watched) -> None:
        del self._watched[watched.pidfd]
        if watched.deadline is not None:
            watched.deadline.cancel()
        if watched.pid is not None and self._by_pid.get(watched.pid) is watched:
            del self._by_pid[watched.pid]
        self._unregister(watched)
        if not self._watched and self._connector is not None:
            self._epoll.unregister(self._connector.fileno())
            self._connector.close()
            self._connector = None

    def _unregister(self, watched: _Watched) -> None:
        if not watched.registered:
            return
        watched.registered = False
        try:
            self._epoll.unregister(watched.pidfd)
        except OSError as error:
            # The caller closed the pidfd first, against the contract; the kernel has then unregistered it.
            log.warning("pidfd %d was closed while it was watched: %s", watched.pidfd, error)

    def _listen(self) -> None:
        if self._connector is not None:
            return
        try:
            self._connector = ProcConnector()
        except ConnectorUnavailable as error:
            log.warning("exit statuses of processes that are reaped at once stay unknown: %s", error)
            return
        self._epoll.register(self._connector.fileno(), select.EPOLLIN)

    def _on_events(self) -> None:
        events = self._epoll.poll(0, _BATCH)
        if self._drain is not None:
            self._drain()
        connector = self._connector
        # Looked up before any callback runs: a callback may forget one pidfd of this batch and watch another
        # process under the same number.
        batch = [(watched, mask) for fd, mask in events if (watched := self._watched.get(fd)) is not None]
        if connector is not None and any(fd == connector.fileno() for fd, _ in events):
            self._on_connector(connector)
        for watched, mask in batch:
            if self._is_watched(watched):
                self._on_pidfd(watched, mask)

    def _is_watched(self, watched: _Watched) -> bool:
        return self._watched.get(watched.pidfd) is watched

    def _on_pidfd(self, watched: _Watched, mask: int) -> None:
        is_reaped = bool(mask & select.EPOLLHUP)
        if not watched.ended:
            watched.ended = True
            # Readable it stays for good; from here on only the hang-up, which is always reported, is of
            # interest.
            self._epoll.modify(watched.pidfd, 0)
            if (
                watched.status is None
                and self.source is not ExitSource.PIDFD_INFO
                and self._connector is None
            ):
                # Nobody else will tell: be quicker than the parent, if it is not waiting already.
                watched.status = zombie_status(watched.pidfd)
            if not is_reaped and watched.status is None:
                watched.deadline = self._loop.call_later(self._reap_wait_s, self._on_deadline, watched)
            watched.on_exit()
            if not self._is_watched(watched):
                return
        if watched.status is not None:
            self._finish(watched, watched.status)
        elif is_reaped:
            self._on_reaped(watched)

    def _on_reaped(self, watched: _Watched) -> None:
        if self.source is ExitSource.PIDFD_INFO:
            self._finish(watched, _reaped_status(watched.pidfd) or ExitStatus())
        elif self.source is ExitSource.KERNEL_EVENTS:
            # Its record was lost; the kernel may have kept the status with the pidfd.
            self._finish(watched, _reaped_status(watched.pidfd) or ExitStatus())
        elif watched.pid is None or self._connector is None:
            self._finish(watched, ExitStatus())
        else:
            # The exit message is sent just after the parent is woken, so a fast parent can reap before it.
            # The hang-up would be reported again and again; the message or the deadline ends the wait.
            self._unregister(watched)
            if watched.deadline is None:
                watched.deadline = self._loop.call_later(self._reap_wait_s, self._on_deadline, watched)

    def _on_connector(self, connector: ProcConnector) -> None:
        exits, is_drained = connector.read()
        for pid, ended_with in exits:
            watched = self._by_pid.get(pid)
            # The first thread of a process may end before the others; its status is not the process's then.
            if watched is None or not has_ended(watched.pidfd):
                continue
            watched.status = decode_wait_status(ended_with)
            if watched.ended:
                self._finish(watched, watched.status)
        if not is_drained:
            log.warning("exit messages were lost: more processes ended at once than the socket buffer holds")

    def _on_deadline(self, watched: _Watched) -> None:
        watched.deadline = None
        self._finish(watched, zombie_status(watched.pidfd) or _reaped_status(watched.pidfd) or ExitStatus())

    def _finish(self, watched: _Watched, status: ExitStatus) -> None:
        self._drop(watched)
        watched.on_status(status)
