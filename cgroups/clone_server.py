"""The process that clones: single-threaded for life, so that all that runs between clone and exec is safe.

Run as a script by :mod:`agentcgroup.cgroups.spawn`, isolated (``python -I -S``) and with one argument: the
number of its socket. It therefore imports nothing of this package. A request is four bytes of length and a
JSON object, with five descriptors: the cgroup's directory, stdin, stdout, stderr, and the pipe on which the
child reports what failed before its exec. The answer is the same, with the pidfd. It ends when the other
side closes the socket.

clone3(2) with CLONE_INTO_CGROUP starts the child *in* the cgroup, so not one instruction of it is charged
elsewhere, and without the global lock that moving a process takes. CLONE_PARENT makes it the child of
whoever started this server, who can then wait for it. Where clone3 is refused (a seccomp filter answers
ENOSYS or EPERM), clone(2) is used and the child places itself before anything else.
"""

import array
import contextlib
import ctypes
import errno
import gc
import json
import os
import signal
import socket
import sys
from collections.abc import Iterator
from typing import Any, Final, NoReturn

# include/uapi/linux/sched.h
CLONE_PIDFD: Final = 0x00001000
CLONE_PARENT: Final = 0x00008000
CLONE_INTO_CGROUP: Final = 0x200000000
SYS_CLONE3: Final = 435  # the same on every architecture, as all calls since 424
# clone(2) by uname machine; elsewhere only clone3 is tried.
SYS_CLONE: Final = {"x86_64": 56, "aarch64": 220, "riscv64": 220, "ppc64le": 120}

# The second argument.
WITH_CLONE3: Final = "clone3"
WITHOUT_CLONE3: Final = "clone"
LENGTH_BYTES: Final = 4
DESCRIPTORS: Final = 5

# PyDLL keeps the interpreter lock, which the child needs to run Python at all.
_libc = ctypes.PyDLL(None, use_errno=True)


class CloneArgs(ctypes.Structure):
    """struct clone_args of clone3(2), as of Linux 5.7."""

    _fields_ = [
        (name, ctypes.c_uint64)
        for name in (
            "flags", "pidfd", "child_tid", "parent_tid", "exit_signal", "stack", "stack_size", "tls",
            "set_tid", "set_tid_size", "cgroup",
        )
    ]  # fmt: skip


def clone_into(cgroup_fd: int, use_clone3: bool) -> tuple[int, int, bool]:
    """(pid, pidfd, is placed). pid is 0 in the child. Raises :class:`OSError`."""
    if use_clone3:
        try:
            return (*_clone3(cgroup_fd), True)
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.EPERM) or os.uname().machine not in SYS_CLONE:
                raise
    return (*_clone(), False)


def _clone3(cgroup_fd: int) -> tuple[int, int]:
    pidfd = ctypes.c_int(-1)
    args = CloneArgs(
        flags=CLONE_PIDFD | CLONE_PARENT | CLONE_INTO_CGROUP,
        pidfd=ctypes.addressof(pidfd),
        # exit_signal has to be 0 with CLONE_PARENT: the child sends what this server would send, SIGCHLD.
        cgroup=cgroup_fd,
    )
    size = ctypes.c_size_t(ctypes.sizeof(args))
    pid: int = _libc.syscall(ctypes.c_long(SYS_CLONE3), ctypes.byref(args), size)
    if pid < 0:
        raise _os_error()
    return pid, pidfd.value


def _clone() -> tuple[int, int]:
    pidfd = ctypes.c_int(-1)
    flags = ctypes.c_ulong(CLONE_PIDFD | CLONE_PARENT)
    zero = ctypes.c_ulong(0)
    number = ctypes.c_long(SYS_CLONE[os.uname().machine])
    # The third argument is where the pidfd goes; the order of the last two differs between architectures.
    pid: int = _libc.syscall(number, flags, zero, ctypes.byref(pidfd), zero, zero)
    if pid < 0:
        raise _os_error()
    return pid, pidfd.value


def _os_error() -> OSError:
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code))


def become(request: dict[str, Any], is_placed: bool, fds: list[int], ignored: list[int]) -> NoReturn:
    """In the child.

    Take on everything the request says and execute the program, or report the step that failed.
    """
    step = "start"
    try:
        for step in take_on(request, is_placed, fds, ignored):  # noqa: B007  (the last one is the one that failed)
            pass
        step = "exec"
        execute(request["argv"], request["env"])
    except OSError as error:
        failure = f"{step} {error.errno or 0}"
    except BaseException as error:
        failure = f"{step}:{type(error).__name__} 0"
    os.write(fds[-1], failure.encode())
    os._exit(127)


def take_on(request: dict[str, Any], is_placed: bool, fds: list[int], ignored: list[int]) -> Iterator[str]:
    """Become what the request says, one step after another; yields the name of a step before it is done."""
    if not is_placed:
        yield "place"
        procs = os.open("cgroup.procs", os.O_WRONLY | os.O_CLOEXEC, dir_fd=fds[0])
        os.write(procs, b"0")
        os.close(procs)
    yield "signals"
    # Handlers end with exec by themselves; what is ignored (SIGPIPE by Python) would stay ignored.
    for one in ignored:
        signal.signal(one, signal.SIG_DFL)
    if request["new_session"]:
        yield "setsid"
        os.setsid()
    if request["process_group"] is not None:
        yield "setpgid"
        os.setpgid(0, request["process_group"])
    if request["oom_score_adj"] is not None:
        yield "oom_score_adj"
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write(str(request["oom_score_adj"]))
    yield "stdio"
    for number, fd in enumerate(fds[1:4]):
        os.dup2(fd, number, inheritable=True)
    if request["umask"] is not None:
        os.umask(request["umask"])
    if request["uid"] is not None:
        # Groups first: once the uid is gone, so is the right to change them.
        yield "setgroups"
        os.setgroups(request["groups"])
        yield "setgid"
        os.setresgid(request["gid"], request["gid"], request["gid"])
        yield "setuid"
        os.setresuid(request["uid"], request["uid"], request["uid"])
    yield "chdir"
    os.chdir(request["cwd"])


def execute(argv: list[str], env: dict[str, str]) -> NoReturn:
    """execve(2), looking for the program in the PATH of ``env`` when its name holds no slash."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    if "/" in argv[0]:
        os.execve(argv[0], argv, env)
    refused: OSError | None = None
    for folder in env.get("PATH", os.defpath).split(":"):
        try:
            os.execve(os.path.join(folder or ".", argv[0]), argv, env)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except PermissionError as error:
            # As execvp(3): go on looking, but say "not allowed" rather than "not found" in the end.
            refused = refused or error
    raise refused or FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))


def answer(connection: socket.socket, message: dict[str, Any], fds: list[int]) -> None:
    """Send one answer."""
    data = json.dumps(message).encode()
    data = len(data).to_bytes(LENGTH_BYTES, "little") + data
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sent = connection.sendmsg([data], ancillary)
    connection.sendall(data[sent:])


def receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """One request and its descriptors, close-on-exec; None at the end."""
    fds = array.array("i")
    space = socket.CMSG_SPACE(DESCRIPTORS * fds.itemsize)
    data, ancillary, _, _ = connection.recvmsg(65536, space, socket.MSG_CMSG_CLOEXEC)
    for _, _, content in ancillary:
        fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    buffer = bytearray(data)
    while data and (len(buffer) < LENGTH_BYTES or len(buffer) < LENGTH_BYTES + _length(buffer)):
        data = connection.recv(65536)
        buffer += data
    if not data:
        return None
    return json.loads(buffer[LENGTH_BYTES:]), list(fds)


def _length(buffer: bytearray) -> int:
    return int.from_bytes(buffer[:LENGTH_BYTES], "little")


def serve(connection: socket.socket, use_clone3: bool) -> None:
    """Answer requests until the other side is gone."""
    # Every page that the child touches is copied for it, so all that can be known before is worked out here.
    ignored = [int(one) for one in signal.valid_signals() if signal.getsignal(one) == signal.SIG_IGN]
    gc.disable()
    gc.freeze()
    while (received := receive(connection)) is not None:
        request, fds = received
        try:
            pid, pidfd, is_placed = clone_into(fds[0], use_clone3)
        except OSError as error:
            answer(connection, {"errno": error.errno}, [])
        else:
            if pid == 0:
                become(request, is_placed, fds, ignored)
            answer(connection, {"pid": pid}, [pidfd])
            os.close(pidfd)
        for fd in fds:
            os.close(fd)


def main() -> None:
    """Serve the socket whose number is the first argument."""
    # The keyboard's signals go to the whole foreground process group, but are meant for the one who started
    # us.
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTSTP):
        signal.signal(number, signal.SIG_IGN)
    # 0, 1 and 2 have to be taken, or a descriptor that is received could become one of them.
    while (spare := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(spare)
    # Keep no file system busy.
    os.chdir("/")
    with contextlib.suppress(ConnectionError), socket.socket(fileno=int(sys.argv[1])) as connection:
        connection.set_inheritable(False)
        serve(connection, use_clone3=sys.argv[2] != WITHOUT_CLONE3)


if __name__ == "__main__":
    main()
