"""The last word on a tool's standard error: written where the tool could, never waited for, never where it means more."""

import contextlib
import fcntl
import os
import pty
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from agentcgroup.daemon.host import stderr

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="takes descriptors of other processes")


@contextlib.contextmanager
def taken(where: int | IO[Any] | None) -> Iterator[int | None]:
    """What is taken of a process whose standard error is `where`; None: it has closed it."""
    command = ["sh", "-c", "exec sleep 60 2>&-"] if where is None else ["sleep", "60"]
    process = subprocess.Popen(command, stderr=where)
    pidfd = os.pidfd_open(process.pid)
    try:
        if where is None:
            while Path(f"/proc/{process.pid}/comm").read_text() != "sleep\n":
                pass
        fd = stderr.take(pidfd)
        yield fd
        if fd is not None:
            os.close(fd)
    finally:
        os.close(pidfd)
        process.kill()
        process.wait()


def test_a_pipe_gets_the_line_whole_and_keeps_its_flags() -> None:
    reader, writer = os.pipe()
    with taken(writer) as fd:
        assert fd is not None and stderr.write_line(fd, "the\nline")
        assert not fcntl.fcntl(writer, fcntl.F_GETFL) & os.O_NONBLOCK, (
            "the tool's own description is as it was"
        )
    assert os.read(reader, 100) == b"the line\n"
    os.close(reader)
    os.close(writer)


def test_a_full_pipe_is_not_waited_for() -> None:
    reader, writer = os.pipe()
    size = fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ)
    os.write(writer, b"x" * size)
    with taken(writer) as fd:
        assert fd is not None and not stderr.write_line(fd, "line")
    os.close(reader)
    os.close(writer)


def test_a_pipe_without_a_reader_is_no_error() -> None:
    reader, writer = os.pipe()
    with taken(writer) as fd:
        os.close(reader)
        assert fd is not None and not stderr.write_line(fd, "line")
    os.close(writer)


def test_a_socket_a_terminal_and_a_file_are_fit(tmp_path: Path) -> None:
    near, far = socket.socketpair()
    with near, far, taken(near.fileno()) as fd:
        assert fd is not None and stderr.write_line(fd, "line")
        assert far.recv(100) == b"line\n"
    master, slave = pty.openpty()
    with taken(slave) as fd:
        assert fd is not None and stderr.write_line(fd, "line")
        assert os.read(master, 100).strip() == b"line"
    os.close(master)
    os.close(slave)
    with (tmp_path / "log").open("w") as file:
        file.write("before\n")
        file.flush()
        with taken(file) as fd:
            assert fd is not None and stderr.write_line(fd, "line")
    assert (tmp_path / "log").read_text() == "before\nline\n"


@pytest.mark.parametrize(
    ("path", "mode"),
    [("/dev/null", "w"), ("/proc/self/comm", "r+"), ("/proc/sys/vm/swappiness", "r"), ("/etc/passwd", "r")],
)
def test_what_is_not_open_for_writing_or_means_more_than_bytes_is_not_touched(path: str, mode: str) -> None:
    with open(path, mode) as file, taken(file) as fd:
        assert fd is None


def test_a_closed_standard_error_and_a_dead_process_have_none() -> None:
    with taken(None) as fd:
        assert fd is None
    process = subprocess.Popen([sys.executable, "-c", ""])
    pidfd = os.pidfd_open(process.pid)
    process.wait()
    assert stderr.take(pidfd) is None
    os.close(pidfd)


def test_a_long_text_is_cut() -> None:
    reader, writer = os.pipe()
    with taken(writer) as fd:
        assert fd is not None and stderr.write_line(fd, "\N{SNOWMAN}" * 5000)
    line = os.read(reader, 1 << 16)
    assert len(line) <= stderr.MOST_BYTES and line.endswith("\N{SNOWMAN}\n".encode())
    os.close(reader)
    os.close(writer)
