"""`agentcg session run`: starts an agent as the agent of a session of its own, by becoming it.

What can fail is done before this process is in the session: removing the session later would kill it before it said why.
"""

import argparse
import ctypes
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Final

from agentcgroup.client import places
from agentcgroup.client.agent_client import Client
from agentcgroup.client.cli import identity, options
from agentcgroup.client.cli.output import complain, shown
from agentcgroup.client.cli.statuses import ExitStatus
from agentcgroup.client.errors import ClientError, Denied, InvalidRequest
from agentcgroup.client.operator_client import OperatorClient
from agentcgroup.client.values import Session, SessionLimits

# include/uapi/linux/sched.h; os.unshare came with Python 3.12.
_CLONE_FILES: Final = 0x00000400
_STDERR: Final = 2


def add_parser(subparsers: options.Subparsers) -> None:
    parser = options.add_command(
        subparsers,
        "run",
        _run,
        summary="start an agent in a session of its own",
        description="Makes the session NAME, enters its agent leaf and becomes AGENT: process id, terminal, signals and\n"
        "exit status are the agent's own. The session is removed when the agent ends, unless --keep is given.\n"
        "In a work tree of git the session gets its name as the label project, unless --label says another.\n"
        "The agent runs as whoever called sudo, or as --user; it finds in its environment\n"
        "  AGENTCGROUP_SESSION_DIR   the session's sockets, for agentcg run, agentcg limits and the SDK\n"
        "  AGENTCGROUP_SESSION       the session's name\n"
        "  AGENTCGROUP_FEEDBACK      a file with what is happening to its calls\n"
        "  AGENTCGROUP_MEMORY_BYTES  memory of the session in all\n"
        "  AGENTCGROUP_CPU_MILLI     CPU it can get, in thousandths of a core\n"
        "  AGENTCGROUP_LAUNCHER      the path of agentcg",
        examples=(
            "sudo agentcg session run reviewer --memory 4G --priority high -- my-agent --task 42",
            "sudo agentcg session run sandbox --user nobody --keep -- bash",
        ),
    )
    parser.add_argument("name", help="1 to 63 characters of a-z, 0-9, '.', '_', '-'")
    parser.add_argument(
        "--user", metavar="USER", help="run the agent as NAME, UID or UID:GID; root only when asked so"
    )
    parser.add_argument("--keep", action="store_true", help="keep the session when the agent ends")
    options.add_budget(parser)
    options.add_transparent(parser)
    options.add_labels(parser)
    options.add_operator_socket(parser)
    parser.usage = "agentcg session run NAME [OPTIONS] -- AGENT [ARGUMENT...]"
    # What stands behind -- is set aside before argparse sees it; this catches an agent without --.
    parser.add_argument("before", nargs="*", help=argparse.SUPPRESS)
    parser.set_defaults(takes_behind=True)


def _command(arguments: argparse.Namespace) -> list[str]:
    if arguments.before:
        raise InvalidRequest(
            f"'{arguments.before[0]}' stands before --",
            "Write the agent's command line behind --, for example -- my-agent",
        )
    if not arguments.behind:
        raise InvalidRequest(
            "there is no agent to run", "Write its command line behind --, for example -- my-agent"
        )
    return list(arguments.behind)


def _run(arguments: argparse.Namespace) -> int:
    command = _command(arguments)
    user = identity.choose(arguments.user, os.environ, os.getuid(), os.getgid())
    program = shutil.which(command[0])
    if program is None:
        exists = os.sep in command[0] and os.path.exists(command[0])
        told = "cannot be executed" if exists else "command not found"
        return _no_agent(arguments, f"{command[0]}: {told}", is_missing=not exists)
    launcher = places.launcher()
    with options.operator_client(arguments) as client:
        session = client.create_session(
            arguments.name,
            priority=arguments.priority,
            owner_uid=user.uid,
            owner_gid=user.gid,
            labels=project_label(os.getcwd()) | options.labels_of(arguments),
            ends_with_agent=not arguments.keep,
            transparent=arguments.transparent,
            **options.budget_of(arguments),
        )
        limits = _enter(client, session)
    # Where the operator's socket is, is nothing for the agent.
    outside = {key: value for key, value in os.environ.items() if key != places.OPERATOR_SOCKET_VARIABLE}
    environment = identity.environment_of(user, outside, os.getuid()) | {
        places.SESSION_DIR_VARIABLE: session.socket_dir,
        "AGENTCGROUP_SESSION": session.name,
        "AGENTCGROUP_FEEDBACK": os.path.join(session.socket_dir, "feedback.json"),
        "AGENTCGROUP_CPU_MILLI": str(limits.cpu_available_milli),
        "AGENTCGROUP_LAUNCHER": launcher,
    }
    if limits.budget.memory_max_bytes is not None:
        environment["AGENTCGROUP_MEMORY_BYTES"] = str(limits.budget.memory_max_bytes)
    return _become(arguments, user, program, command, environment, launcher)


def _no_agent(arguments: argparse.Namespace, cause: str, *, is_missing: bool) -> ExitStatus:
    status = ExitStatus.COMMAND_NOT_FOUND if is_missing else ExitStatus.NOT_EXECUTABLE
    next_step = (
        "Write its name as it is found in PATH, or its path"
        if is_missing
        else "Name a program that the agent's user may execute (chmod +x), or its interpreter before it"
    )
    complain(InvalidRequest(cause, next_step), json_wanted=arguments.json, exit_status=status)
    return status


def project_label(directory: str) -> dict[str, str]:
    """The label `project`, the name of the work tree around `directory`: calls of one project learn from each other.

    None outside any, so that nothing is learned under the name of a home directory.
    """
    for folder in (path := Path(directory), *path.parents):
        if (folder / ".git").exists():
            return {"project": folder.name} if folder.name else {}
    return {}


def _enter(client: OperatorClient, session: Session) -> SessionLimits:
    """Reads the session's true limits over its own socket and enters its agent leaf; on failure the session is removed."""
    try:
        with Client(session.socket_dir) as agent:
            limits = agent.limits("")
        client.place_agent(session.name, os.getpid())
        return limits
    except ClientError as error:
        try:
            client.remove_session(session.name, reason="its agent could not be started")
        except ClientError as second:
            error.add_note(f"and the session {session.name} could not be removed: {second}")
        raise


def _become(
    arguments: argparse.Namespace,
    user: identity.Identity,
    program: str,
    command: list[str],
    environment: dict[str, str],
    launcher: str,
) -> int:
    """Becomes `program` as `user`; comes back only with an exit status."""
    try:
        identity.become(user)
    except OSError as error:
        who = user.name or user.uid
        denied = Denied(f"cannot become {who}: {error.strerror}", "Run it with sudo, or leave --user out")
        complain(denied, json_wanted=arguments.json, exit_status=ExitStatus.DENIED)
        return ExitStatus.DENIED
    if not os.access(launcher, os.X_OK):
        print(
            f"agentcg: {shown(launcher)} cannot be executed by {user.name or user.uid}: tools of this agent run without "
            "limits\nagentcg: install agentcgroup where every user may read it",
            file=sys.stderr,
        )
    # Python ignores these two; an agent and its tools expect what every program starts with.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    sys.stdout.flush()
    sys.stderr.flush()
    _silence_other_threads()
    try:
        os.execve(program, command, environment)
    except OSError as error:
        is_missing = isinstance(error, FileNotFoundError)
        status = _no_agent(arguments, f"{command[0]}: {error.strerror}", is_missing=is_missing)
        sys.stderr.flush()
        # At once: gRPC cannot be shut down in order by threads that no longer share their descriptors.
        os._exit(status)


def _silence_other_threads() -> None:
    """From now on this thread alone writes to the standard error.

    A thread of gRPC's that begins another one while this process becomes the agent cannot (execve(2) and clone(2) exclude
    each other: EAGAIN), which hurts nobody, but it says so on what is the agent's standard error by then. How much gRPC
    says is settled when it is imported, too early for us; so the others keep a table of descriptors of their own.
    """
    try:
        kept = os.dup(_STDERR)
        null = os.open(os.devnull, os.O_WRONLY)
    except OSError:
        return
    os.dup2(null, _STDERR)
    # Should it fail, what is put back is put back for everybody.
    ctypes.CDLL(None).unshare(_CLONE_FILES)
    os.dup2(kept, _STDERR)
