"""A session's sockets, shown to a container through its bind mount.

A container's mount is made before its session exists and outlives every restart of the daemon, whereas a
session's own directory comes and goes with it. So the mount is of a directory that stays, below
`<run_dir>/containers`, and the sockets are hard-linked into it: the same socket under a second name. No user
of the host gets through `containers` (mode 0700); a container sees its own directory and nothing beside it.
"""

import contextlib
import os
import stat
from pathlib import Path
from typing import Final

from agentcgroup.daemon.errors import Kind, RequestError
from agentcgroup.daemon.ids import random_hex

__all__ = ["DIRECTORY", "lend", "make_directory", "take_back"]

DIRECTORY: Final = "containers"
_OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def make_directory(run_dir: Path) -> None:
    """Makes `<run_dir>/containers`, for root alone. dockerd may have made it before, open to everybody."""
    place = run_dir / DIRECTORY
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    place.chmod(0o700)


def lend(socket_dir: Path, source: Path, run_dir: Path) -> None:
    """Link every socket of `socket_dir` into `source`, in place of what has its name there. Raises
    RequestError.

    Inside the container whoever can see the socket may use it: the container is the caller.
    """
    place = run_dir / DIRECTORY
    if source.parent != place or source.name in ("", ".", ".."):
        raise RequestError(
            Kind.INVALID,
            f"the container mounts {source}",
            f"mount a directory of {place}: -v {place}/NAME:...",
        )
    try:
        target = os.open(source, _OPEN_DIRECTORY)
    except OSError as error:
        raise RequestError(
            Kind.HOST, f"the mounted directory {source} cannot be opened: {error}", ""
        ) from error
    try:
        for path in socket_dir.iterdir():
            if path.is_socket():
                path.chmod(0o666)
                _link(path, target)
    except OSError as error:
        raise RequestError(
            Kind.HOST,
            f"the sockets cannot be linked into {source}: {error}",
            f"keep {place} on one filesystem",
        ) from error
    finally:
        os.close(target)


def _link(path: Path, target: int) -> None:
    # By way of a name of its own, so that the socket appears at once and whole. Everything happens relative
    # to the held directory: a container that writes to its mount can exchange names in it, but lead nobody
    # elsewhere.
    passing = f".{path.name}-{random_hex(4)}"
    os.link(path, passing, dst_dir_fd=target, follow_symlinks=False)
    try:
        os.rename(passing, path.name, src_dir_fd=target, dst_dir_fd=target)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(passing, dir_fd=target)
        raise


def take_back(source: Path) -> None:
    """Remove the sockets in `source`; what is gone already is no error, the directory stays."""
    try:
        target = os.open(source, _OPEN_DIRECTORY)
    except OSError:
        return
    try:
        for name in os.listdir(target):
            with contextlib.suppress(OSError):
                if stat.S_ISSOCK(os.stat(name, dir_fd=target, follow_symlinks=False).st_mode):
                    os.unlink(name, dir_fd=target)
    finally:
        os.close(target)
