"""What can be wrong with a request: one class a kind, each with the cause and the next step.

The edges map the kind to a gRPC status, a launcher status and an exit code, in one table each. Being refused or trimmed is
no error but an Answer.
"""

from enum import StrEnum


class Kind(StrEnum):
    INVALID = "invalid"  # the request makes no sense, whatever the state
    NOT_FOUND = "not_found"
    EXISTS = "exists"
    STATE = "state"  # makes sense, but not now
    DENIED = "denied"
    EXHAUSTED = "exhausted"  # a bound of the daemon, not of a budget
    HOST = "host"  # the kernel would not


class RequestError(Exception):
    """A request that cannot be carried out; nothing was changed. `field` names the culprit when there is one."""

    def __init__(self, kind: Kind, cause: str, next_step: str = "", field: str = "") -> None:
        super().__init__(f"{cause}. {next_step}" if next_step else cause)
        self.kind = kind
        self.cause = cause
        self.next_step = next_step
        self.field = field
