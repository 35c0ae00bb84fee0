"""Exit statuses of `agentcg`, in one table; the native launcher uses the same numbers where it has the same ends."""

from enum import IntEnum
from typing import Final

from agentcgroup.client import errors


class ExitStatus(IntEnum):
    OK = 0
    NOTHING_ENFORCED = 1
    INVALID = 2
    NOT_FOUND = 3
    EXISTS = 4
    STATE = 5
    DENIED = 6
    EXHAUSTED = 7
    HOST = 8
    REFUSED = 120
    UNREACHABLE = 121
    INTERNAL = 125
    NOT_EXECUTABLE = 126
    COMMAND_NOT_FOUND = 127
    INTERRUPTED = 130


# Of any command.
MEANINGS: Final[dict[ExitStatus, str]] = {
    ExitStatus.OK: "done",
    ExitStatus.INVALID: "the command line or the request is wrong",
    ExitStatus.NOT_FOUND: "no such session or call",
    ExitStatus.STATE: "not possible in the state the session or call is in",
    ExitStatus.DENIED: "not allowed for this user",
    ExitStatus.EXHAUSTED: "a bound of the daemon is reached",
    ExitStatus.HOST: "the kernel would not",
    ExitStatus.UNREACHABLE: "no answer from the daemon",
    ExitStatus.INTERNAL: "the daemon or this program failed",
    ExitStatus.INTERRUPTED: "interrupted",
}

_NAME_TAKEN: Final = {ExitStatus.EXISTS: "a session of this name is live"}

# Of one command besides.
MEANINGS_OF: Final[dict[str, dict[ExitStatus, str]]] = {
    "check": {ExitStatus.NOTHING_ENFORCED: "the daemon runs, but this host enforces nothing"},
    "session create": _NAME_TAKEN,
    "session run": _NAME_TAKEN
    | {
        ExitStatus.NOT_EXECUTABLE: "the agent cannot be executed",
        ExitStatus.COMMAND_NOT_FOUND: "the agent was not found",
    },
    "call set": {ExitStatus.REFUSED: "the session or the host has no room"},
    "replay": _NAME_TAKEN | {ExitStatus.REFUSED: "not every session survived"},
}

_OF_ERROR: Final[dict[type[errors.ClientError], ExitStatus]] = {
    errors.InvalidRequest: ExitStatus.INVALID,
    errors.NotFound: ExitStatus.NOT_FOUND,
    errors.AlreadyExists: ExitStatus.EXISTS,
    errors.WrongState: ExitStatus.STATE,
    errors.Denied: ExitStatus.DENIED,
    errors.Exhausted: ExitStatus.EXHAUSTED,
    errors.HostError: ExitStatus.HOST,
    errors.Refused: ExitStatus.REFUSED,
    errors.Unreachable: ExitStatus.UNREACHABLE,
    errors.TimedOut: ExitStatus.UNREACHABLE,
}


def status_of(error: errors.ClientError) -> ExitStatus:
    """The exit status for `error`."""
    return _OF_ERROR.get(type(error), ExitStatus.INTERNAL)


def as_help(command: str = "") -> str:
    """The table for the --help of `command`, "session run"; without one what all commands have in common."""
    meanings = sorted((MEANINGS | MEANINGS_OF.get(command, {})).items())
    return "Exit status:\n" + "\n".join(f"  {status:>3}  {meaning}" for status, meaning in meanings)
