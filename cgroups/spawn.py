"""Start a process inside a cgroup, from a process with many threads.

Between fork and exec of a process with threads only async-signal-safe work is allowed (fork(2),
signal-safety(7)), and Python code is not: a lock that another thread held stays locked for ever in the
child. subprocess does that part in C, but cannot enter a cgroup there. So a small single-threaded process,
started on first use and kept, does the cloning (:mod:`agentcgroup.cgroups.clone_server`): it calls clone3(2)
with CLONE_INTO_CGROUP and makes the new process the child of its own parent, us. Measured on two shared
cores (p50, a static ``true``, fork to exit): see docs of the benchmark.
"""

import array
import atexit
import contextlib
import errno
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

from agentcgroup.cgroups import clone_server
from agentcgroup.cgroups.cgroup import Cgroup
from agentcgroup.cgroups.directory import from_os_error
from agentcgroup.cgroups.errors import CgroupError, CgroupGone, SpawnFailed

_REPORT_BYTES: Final = 256
# An answer takes a millisecond, the first one a Python start; this only ends the wait for a server that is
# stopped.
_SERVER_TIMEOUT_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Credentials:
    """Who the process runs as. ``groups`` are the supplementary groups; none unless given."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Spawned:
    """A child process of ours. ``pidfd`` is close-on-exec and readable when the process has ended.

    Whoever spawns has to :meth:`wait`, or a zombie stays, and to close the pidfd (:meth:`close`).
    """

    pid: int
    pidfd: int

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def wait(self, timeout_s: float | None = None) -> int | None:
        """The exit status, negative for a signal, as subprocess has it.

        None when it still runs at ``timeout_s``.
        """
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        if not poll.poll(None if timeout_s is None else timeout_s * 1000):
            return None
        result = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED)
        if result is None:
            return None
        return result.si_status if result.si_code == os.CLD_EXITED else -result.si_status

    def send_signal(self, number: signal.Signals) -> None:
        """Signal the process; nothing happens when it has ended."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, number)

    def close(self) -> None:
        """Close the pidfd, once."""
        os.close(self.pidfd)


class Spawner:
    """The clone server as seen from here: started on first use, restarted if it died, thread safe."""

    def __init__(self, *, use_clone3: bool = True) -> None:
        """Nothing is started yet.

        ``use_clone3=False`` has every child place itself before anything else, which is what happens without
        asking where a seccomp filter refuses clone3.
        """
        self._mode = clone_server.WITH_CLONE3 if use_clone3 else clone_server.WITHOUT_CLONE3
        self._lock = threading.Lock()
        self._connection: socket.socket | None = None
        self._server: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the server.

        The processes it started live on. May be called twice; the next spawn starts a new one.
        """
        with self._lock:
            self._stop()

    @property
    def server_pid(self) -> int | None:
        """The process that clones; None while there is none."""
        return None if self._server is None else self._server.pid

    def _stop(self) -> None:
        if self._connection is not None:
            self._connection.close()
        if self._server is not None and self._owner == os.getpid():
            # It ends by itself when the connection is closed.
            self._server.wait()
        self._connection = self._server = None

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            self._server = subprocess.Popen(
                [sys.executable, "-I", "-S", clone_server.__file__, str(theirs.fileno()), self._mode],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        ours.settimeout(_SERVER_TIMEOUT_S)
        self._connection = ours
        self._owner = os.getpid()
        return ours

    def request(self, message: dict[str, Any], fds: list[int]) -> tuple[dict[str, Any], int]:
        """Ask the server for one process. Returns its answer and the pidfd, -1 when there is none.

        Raises :class:`OSError` when the server gives no answer; whether it cloned is unknown then, so
        nothing is tried again.
        """
        data = json.dumps(message).encode()
        data = len(data).to_bytes(clone_server.LENGTH_BYTES, "little") + data
        with self._lock:
            if self._owner != os.getpid():
                # We are a fork of the process that started the server: neither it nor what it clones is our
                # child.
                self._stop()
            connection = self._connection or self._start()
            try:
                try:
                    self._send(connection, data, fds)
                except BrokenPipeError:
                    # The server was killed while it had nothing to do; the request has not reached anybody.
                    self._stop()
                    connection = self._start()
                    self._send(connection, data, fds)
                received = clone_server.receive(connection)
                if received is None:
                    raise ConnectionResetError(errno.ECONNRESET, "the clone server ended without an answer")
            except OSError:
                if self._server is not None:
                    self._server.kill()
                self._stop()
                raise
        answer, pidfds = received
        return answer, pidfds[0] if pidfds else -1

    def _send(self, connection: socket.socket, data: bytes, fds: list[int]) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
        sent = connection.sendmsg([data], rights)
        connection.sendall(data[sent:])


_shared = Spawner()
atexit.register(_shared.close)


def spawn(
    cgroup: Cgroup,
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: str | os.PathLike[str] | None = None,
    user: Credentials | None = None,
    stdin: int | None = None,
    stdout: int | None = None,
    stderr: int | None = None,
    umask: int | None = None,
    oom_score_adj: int | None = None,
    new_session: bool = False,
    process_group: int | None = None,
    timeout_s: float = 30.0,
    spawner: Spawner | None = None,
) -> Spawned:
    """Start ``argv`` in ``cgroup`` from its first instruction, as our child, and return once it executes the program.

    ``env`` is the whole environment; a program name without a slash is looked for in its PATH. ``cwd`` None
    is ours. It is entered as ``user``. ``stdin`` and so on are descriptors; None is our own.
    ``process_group`` 0 makes a new one. Ignored signals and the signal mask are reset; umask, resource
    limits, nice value and oom_score_adj are, unless given, ours as of the first spawn. No descriptor above 2
    is passed on. Blocks for about a millisecond, at most ``timeout_s``.

    Raises :class:`SpawnFailed` with the ``step`` and errno that failed, up to and including exec;
    :class:`~agentcgroup.cgroups.errors.CgroupBusy` for a cgroup that controls its children;
    :class:`~agentcgroup.cgroups.errors.CgroupGone` for one that was removed.
    """
    _check_arguments(cgroup, argv, env)
    if cgroup.fileno() < 0:
        raise CgroupGone(cgroup.path, "cannot start a process in it: its handle was closed", errno.EBADF)
    request = {
        "argv": list(argv),
        "env": dict(env),
        "cwd": _working_directory(cgroup) if cwd is None else os.fspath(cwd),
        "uid": user.uid if user else None,
        "gid": user.gid if user else None,
        "groups": list(user.groups) if user else None,
        "umask": umask,
        "oom_score_adj": oom_score_adj,
        "new_session": new_session,
        "process_group": process_group,
    }
    return _start(cgroup, request, (stdin, stdout, stderr), timeout_s, spawner or _shared)


def _start(
    cgroup: Cgroup,
    request: dict[str, Any],
    streams: tuple[int | None, int | None, int | None],
    timeout_s: float,
    spawner: Spawner,
) -> Spawned:
    report, report_end = os.pipe2(os.O_CLOEXEC)
    try:
        with contextlib.ExitStack() as cleanup:
            cleanup.callback(os.close, report_end)
            stdio = [_standard(cgroup, number, fd, cleanup) for number, fd in enumerate(streams)]
            try:
                answer, pidfd = spawner.request(request, [cgroup.fileno(), *stdio, report_end])
            except OSError as error:
                reason = f"the clone server gives no answer: {error}"
                raise SpawnFailed(cgroup.path, reason, error.errno or errno.EIO, "server") from error
        if pidfd < 0:
            raise _clone_failure(cgroup, int(answer["errno"]))
        child = Spawned(int(answer["pid"]), pidfd)
        _await_exec(cgroup, child, report, request, timeout_s)
        return child
    finally:
        os.close(report)


def _check_arguments(cgroup: Cgroup, argv: Sequence[str], env: Mapping[str, str]) -> None:
    if not argv or not argv[0]:
        reason = "there is no program to execute"
    elif any("\0" in word for word in (*argv, *env, *env.values())):
        reason = "an argument or environment variable holds a NUL"
    elif any(not name or "=" in name for name in env):
        reason = "the name of an environment variable is empty or holds '='"
    else:
        return
    raise SpawnFailed(cgroup.path, f"cannot start a process: {reason}", errno.EINVAL, "arguments")


def _working_directory(cgroup: Cgroup) -> str:
    try:
        return os.getcwd()
    except FileNotFoundError as error:
        reason = "our own working directory was removed; give cwd"
        raise SpawnFailed(cgroup.path, reason, errno.ENOENT, "chdir") from error


def _standard(cgroup: Cgroup, number: int, fd: int | None, cleanup: contextlib.ExitStack) -> int:
    try:
        os.fstat(number if fd is None else fd)
    except OSError as error:
        if fd is not None:
            reason = f"descriptor {fd}, meant to be its descriptor {number}, is not open"
            raise SpawnFailed(cgroup.path, reason, error.errno or errno.EBADF, "stdio") from error
        # A daemon may have closed its own; a program that finds 0, 1 or 2 closed would open files there.
        fd = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        cleanup.callback(os.close, fd)
    return number if fd is None else fd


def _clone_failure(cgroup: Cgroup, code: int) -> CgroupError:
    if code == errno.EAGAIN:
        reason = (
            "cannot start a process: pids.max of this cgroup or an ancestor, or a system limit, is reached"
        )
        return SpawnFailed(cgroup.path, reason, code, "clone")
    return from_os_error(cgroup.path, "start a process in it", OSError(code, os.strerror(code)))


def _await_exec(
    cgroup: Cgroup, child: Spawned, report: int, request: dict[str, Any], timeout_s: float
) -> None:
    # The child's end of the pipe is close-on-exec: end of file without a word means that exec succeeded.
    poll = select.poll()
    poll.register(report, select.POLLIN)
    if poll.poll(timeout_s * 1000):
        words = os.read(report, _REPORT_BYTES).decode().split()
        if not words:
            return
        step, code = words[0], int(words[1])
        reason = os.strerror(code) if code else "unexpected error"
    else:
        step, code = "timeout", errno.ETIMEDOUT
        reason = f"it did not reach its program within {timeout_s:g} s; is the cgroup frozen?"
        child.send_signal(signal.SIGKILL)
    child.wait()
    child.close()
    path = {"exec": request["argv"][0], "chdir": request["cwd"]}.get(step, cgroup.path)
    raise SpawnFailed(path, f"cannot start the process at step {step!r}: {reason}", code, step)
