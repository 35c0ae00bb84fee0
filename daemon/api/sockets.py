"""The directories and files of the sockets: who may reach them is who may use them, so they are made with care.

A socket is bound inside a directory that only this daemon can enter, gets its owner and mode there, and only
then is moved to where others find it: at no moment can anybody connect who may not. See unix(7): connecting
needs write permission on the socket and search permission on its path.
"""

import contextlib
import grp
import itertools
import os
import shutil
import socket
import stat
import urllib.parse
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

from agentcgroup.daemon.config import ConfigError
from agentcgroup.daemon.errors import Kind, RequestError
from agentcgroup.proto import launch

OPERATOR_SOCKET: Final = "operator.sock"
AGENT_SOCKET: Final = "agent.sock"
LAUNCH_SOCKET: Final = launch.SOCKET_NAME
SESSIONS: Final = "sessions"
# Where sockets are bound before anybody may reach them.
STAGING: Final = ".new"

_staged: Final = itertools.count()

# sun_path of unix(7), less the NUL.
_MOST_PATH_BYTES: Final = 107


def address(path: Path) -> str:
    """The gRPC address of a socket; it is a URI, in which some characters of a path mean something else."""
    return f"unix:{urllib.parse.quote(os.fspath(path))}"


def prepare_run_dir(run_dir: Path, kept: Collection[str] = ()) -> None:
    """Makes `run_dir` and removes what a former daemon left in it. Raises ConfigError when it cannot be trusted.

    The directories of the sessions `kept` stay: their agents may have them mounted. The caller holds the lock of the only
    daemon.
    """
    try:
        run_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        status = run_dir.stat()
    except OSError as error:
        raise ConfigError(f"daemon.run_dir: {error}: name a directory that agentcgroupd can make") from error
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise ConfigError(
            f"daemon.run_dir {run_dir} belongs to or can be written by others (uid {status.st_uid}, mode "
            f"{stat.S_IMODE(status.st_mode):o}): name a directory of agentcgroupd's own, for example /run/agentcgroup"
        )
    operator = run_dir / OPERATOR_SOCKET
    if operator.is_symlink() or (operator.exists() and not operator.is_socket()):
        raise ConfigError(f"{operator} is there and is no socket: move it away")
    try:
        operator.unlink(missing_ok=True)
        for name, mode in ((SESSIONS, 0o711), (STAGING, 0o700)):
            (run_dir / name).mkdir(mode=mode, exist_ok=True)
            (run_dir / name).chmod(mode)
        for left in (run_dir / SESSIONS).iterdir():
            if left.name not in kept:
                _remove_any(left)
        for left in (run_dir / STAGING).iterdir():
            _remove_any(left)
    except OSError as error:
        raise ConfigError(
            f"daemon.run_dir: {error}: name a directory that agentcgroupd can write"
        ) from error


def operator_gid(group: str) -> int | None:
    """The group id of `daemon.operator_group`; None when it is "". Raises ConfigError."""
    if not group:
        return None
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise ConfigError(
            f"daemon.operator_group: there is no group {group!r} on this host: make it (groupadd --system {group}), "
            'or set operator_group = "" for root alone'
        ) from None


def give_to_operators(staged: Path, path: Path, gid: int | None) -> None:
    """Shows the socket `staged` as `path`, for root alone or root and the group `gid`.

    Raises ConfigError when this daemon may not give it to the group.
    """
    try:
        if gid is not None:
            os.chown(staged, -1, gid)
        staged.chmod(0o600 if gid is None else 0o660)
        staged.rename(path)
    except OSError as error:
        raise ConfigError(f"daemon.operator_group: {path} cannot be given to the group: {error}") from error


def make_session_dir(path: Path, *, kept: bool) -> None:
    """Makes the directory of a session's sockets, for this daemon alone. Raises RequestError.

    `kept`: that of an earlier daemon stays the same directory, its owner's.
    """
    longest = max(len(AGENT_SOCKET), len(LAUNCH_SOCKET))
    room = _MOST_PATH_BYTES - longest - len(os.fsencode(path.parent)) - 2
    if len(os.fsencode(path.name)) > room:
        raise RequestError(
            Kind.INVALID,
            f"the socket of session {path.name} would have a path of more than {_MOST_PATH_BYTES} bytes",
            f"choose a name of at most {room} characters, or a shorter daemon.run_dir",
            "name",
        )
    with _host_errors(path):
        if kept and path.is_dir() and not path.is_symlink():
            return
        _remove_any(path)
        path.mkdir(mode=0o700)
        path.chmod(0o700)


def make_staging_dir(run_dir: Path) -> Path:
    """A new directory that nobody else may enter, of a name not used before. Raises RequestError.

    When gRPC closes a socket it unlinks the path that it was bound to, which must not be another session's by then.
    """
    with _host_errors(run_dir / STAGING):
        for number in _staged:
            place = run_dir / STAGING / str(number)
            with contextlib.suppress(FileExistsError):
                place.mkdir(mode=0o700)
                return place
    raise AssertionError("counting has no end")


def listen_for_launchers(path: Path, backlog: int) -> socket.socket:
    """A listening socket of the launcher's protocol at `path`. Raises RequestError."""
    with _host_errors(path):
        listener = socket.socket(
            socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        )
        try:
            listener.bind(os.fspath(path))
            listener.listen(backlog)
        except BaseException:
            listener.close()
            raise
    return listener


def give_to_owner(staged: Path, path: Path, uid: int, gid: int) -> None:
    """Gives the sockets in `staged` to a session's owner and shows them in `path`, which is then the owner's, too.

    A socket takes the place of an earlier daemon's at once: a caller meets the one or the other. What else is in a directory
    of somebody else's can be exchanged by them at any moment, so nothing there is touched by name but what is replaced.
    Raises RequestError.
    """
    with _host_errors(path):
        for name in (AGENT_SOCKET, LAUNCH_SOCKET):
            (staged / name).chmod(0o600)
            os.chown(staged / name, uid, gid)
        target = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            for name in (AGENT_SOCKET, LAUNCH_SOCKET):
                os.rename(staged / name, name, dst_dir_fd=target)
            os.fchown(target, uid, gid)
        finally:
            os.close(target)


def remove_session_dir(path: Path) -> None:
    """Removes the directory with whatever its owner put there. Raises OSError."""
    _remove_tree(path)


def _remove_any(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        _remove_tree(path)
    else:
        path.unlink(missing_ok=True)


def _remove_tree(path: Path) -> None:
    # Follows no link, also not one that its owner slips in meanwhile (shutil.rmtree.avoids_symlink_attacks
    # on Linux).
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(path)


@contextlib.contextmanager
def _host_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RequestError(
            Kind.HOST,
            f"the sockets in {path} cannot be made: {error}",
            "look at the directory's rights and at the file system's free space",
        ) from error
