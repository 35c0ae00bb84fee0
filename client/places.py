"""Where the sockets and the launcher are: as the launcher itself finds them (client/launcher/options.c)."""

import os
import shutil
import sys
from collections.abc import Mapping
from typing import Final

from agentcgroup.client.errors import ClientError, InvalidRequest

SESSION_DIR_VARIABLE: Final = "AGENTCGROUP_SESSION_DIR"
OPERATOR_SOCKET_VARIABLE: Final = "AGENTCGROUP_OPERATOR_SOCKET"
# Where a sandbox bind-mounts its session's directory.
DEFAULT_SESSION_DIR: Final = "/run/agentcgroup/session"
DEFAULT_OPERATOR_SOCKET: Final = "/run/agentcgroup/operator.sock"
AGENT_SOCKET_NAME: Final = "agent.sock"

# sun_path of unix(7), without its NUL; gRPC does not get around it.
_MOST_PATH_BYTES: Final = 107


def session_dir(
    given: str | os.PathLike[str] | None = None, environment: Mapping[str, str] = os.environ
) -> str:
    """The session's directory: `given`, else $AGENTCGROUP_SESSION_DIR, else where sandboxes mount it; absolute."""
    if given is not None:
        return _absolute(given, "session_dir")
    return os.path.abspath(environment.get(SESSION_DIR_VARIABLE) or DEFAULT_SESSION_DIR)


def is_inside_session(environment: Mapping[str, str] = os.environ) -> bool:
    """True when this process was told of a session of its own, or finds one where sandboxes mount it."""
    return bool(environment.get(SESSION_DIR_VARIABLE)) or os.path.exists(DEFAULT_SESSION_DIR)


def operator_socket(
    given: str | os.PathLike[str] | None = None, environment: Mapping[str, str] = os.environ
) -> str:
    """The operator socket: `given`, else $AGENTCGROUP_OPERATOR_SOCKET, else the daemon's default; absolute."""
    if given is not None:
        return _absolute(given, "socket")
    return os.path.abspath(environment.get(OPERATOR_SOCKET_VARIABLE) or DEFAULT_OPERATOR_SOCKET)


def _absolute(given: str | os.PathLike[str], field: str) -> str:
    """An empty name would be the working directory. Raises InvalidRequest."""
    if not os.fspath(given):
        raise InvalidRequest(
            f"the name given for {field} is empty",
            "Name a path, or leave it out for the default",
            field=field,
        )
    return os.path.abspath(given)


def check_socket_path(path: str) -> str:
    """`path`, when a Unix socket can have it. Raises InvalidRequest."""
    if len(os.fsencode(path)) > _MOST_PATH_BYTES:
        raise InvalidRequest(
            f"{path} is longer than a socket's name can be ({_MOST_PATH_BYTES} bytes)",
            "Reach the directory by a shorter path, for example through a symbolic link",
        )
    return path


def launcher() -> str:
    """The path of `agentcg`: beside this Python, else on PATH. Raises ClientError when there is none."""
    beside = os.path.join(os.path.dirname(sys.executable), "agentcg")
    if os.access(beside, os.X_OK):
        return beside
    found = shutil.which("agentcg")
    if found is None:
        raise ClientError(
            f"there is no agentcg beside {sys.executable} nor on PATH",
            "Install the package agentcgroup, which brings it, or put its bin directory on PATH",
        )
    return os.path.abspath(found)
