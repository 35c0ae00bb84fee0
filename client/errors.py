"""What can go wrong between a client and the daemon: one class a kind, each with the cause and the next step.

The kinds come from gRPC status codes, the texts from the google.rpc error details that the daemon sends along.
"""

import errno
import os
import socket
import stat
from typing import Final, cast

import grpc
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from agentcgroup.client.values import Answer


class ClientError(Exception):
    """Base of all. `cause` says what happened, `next_step` what to do about it, `field` what in the request is to blame.

    `reason` is the daemon's own word for the kind, stable for programs ("not_found"); empty when the daemon was not reached.
    """

    def __init__(self, cause: str, next_step: str = "", *, field: str = "", reason: str = "") -> None:
        super().__init__(f"{cause.rstrip('.')}. {next_step}" if next_step else cause)
        self.cause = cause
        self.next_step = next_step
        self.field = field
        self.reason = reason


class InvalidRequest(ClientError):
    """The request makes no sense, whatever the state."""


class NotFound(ClientError):
    """No such session or call, or not the caller's."""


class AlreadyExists(ClientError):
    """A session of this name is live already."""


class WrongState(ClientError):
    """The request makes sense, but not now."""


class Denied(ClientError):
    """The caller may not do this."""


class Exhausted(ClientError):
    """A bound of the daemon itself, not of a budget."""


class HostError(ClientError):
    """The kernel would not."""


class DaemonError(ClientError):
    """The daemon failed; its log knows more."""


class IncompatibleDaemon(ClientError):
    """The daemon is of another release and does not know the request, or answers what this client does not know."""


class Unreachable(ClientError):
    """No daemon at the socket, or it went away."""


class TimedOut(Unreachable):
    """The daemon did not answer in time."""


class Refused(ClientError):
    """A call was not granted. `answer` has the reason; `next_step` is what would be granted."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.message, answer.suggestion, reason=answer.reason or "")
        self.answer = answer


_KINDS: Final[dict[int, type[ClientError]]] = {
    code_pb2.INVALID_ARGUMENT: InvalidRequest,
    code_pb2.OUT_OF_RANGE: InvalidRequest,
    code_pb2.NOT_FOUND: NotFound,
    code_pb2.ALREADY_EXISTS: AlreadyExists,
    code_pb2.FAILED_PRECONDITION: WrongState,
    code_pb2.ABORTED: WrongState,
    code_pb2.PERMISSION_DENIED: Denied,
    code_pb2.UNAUTHENTICATED: Denied,
    code_pb2.RESOURCE_EXHAUSTED: Exhausted,
    code_pb2.UNIMPLEMENTED: IncompatibleDaemon,
}


def _unreachable(socket_path: str) -> ClientError:
    # gRPC words a failed connect for itself; asking the kernel once more tells people which of three things it is.
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(1)
            probe.connect(socket_path)
    except FileNotFoundError:
        return Unreachable(
            f"there is no socket {socket_path}",
            "Start agentcgroupd, or name the right socket. An agent needs a session around it:"
            " `agentcg session run NAME -- AGENT`, in a sandbox the session's directory bind-mounted",
        )
    except PermissionError:
        owner = _owner_of(socket_path)
        return Denied(
            f"uid {os.geteuid()} may not use {socket_path}{owner}",
            "Use it as its owner, with sudo, or as a member of the group named in the daemon's configuration",
        )
    except ConnectionRefusedError:
        if not _is_socket(socket_path):
            return Unreachable(
                f"{socket_path} is no socket",
                "Name the socket itself: the daemon's operator.sock, or with --session-dir the directory of a session",
            )
        return Unreachable(
            f"nobody listens at {socket_path}: agentcgroupd is stopped or being restarted",
            "Ask again in a few seconds; what runs goes on under its limits. If it stays so, start agentcgroupd",
        )
    except OSError as error:
        return Unreachable(
            f"{socket_path}: {error.strerror or error}", "See whether agentcgroupd runs and what it logs"
        )
    return Unreachable(
        f"the daemon at {socket_path} went away or says nothing",
        "Ask again: a daemon that was restarted goes on with what ran; if it stays so, see what agentcgroupd logs",
    )


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        # It was there a moment ago, and refused.
        return True


def _owner_of(socket_path: str) -> str:
    try:
        found = os.stat(socket_path)
    except OSError as error:
        return f" ({errno.errorcode.get(error.errno or 0, 'no status')} on the way)"
    return f", which belongs to uid {found.st_uid}"


def _details(status: status_pb2.Status) -> tuple[str, str, str]:
    """Reason, next step and field of a status."""
    reason = next_step = field = ""
    for detail in status.details:
        info, bad, localized = (
            error_details_pb2.ErrorInfo(),
            error_details_pb2.BadRequest(),
            error_details_pb2.LocalizedMessage(),
        )
        if detail.Unpack(info):
            reason = info.reason.lower()
            next_step = info.metadata.get("next_step", next_step)
            field = info.metadata.get("field", field)
        elif detail.Unpack(bad) and bad.field_violations:
            field = field or bad.field_violations[0].field
        elif detail.Unpack(localized):
            next_step = next_step or localized.message
    return reason, next_step, field


def from_rpc_error(error: grpc.RpcError, socket_path: str) -> ClientError:
    """The ClientError for a failed RPC on the Unix socket `socket_path`."""
    if not isinstance(error, grpc.Call | grpc.aio.AioRpcError):
        return DaemonError(str(error))
    code, text = error.code(), error.details() or ""
    if code is grpc.StatusCode.UNAVAILABLE:
        return _unreachable(socket_path)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return TimedOut(
            f"the daemon at {socket_path} did not answer in time",
            "See what agentcgroupd logs, then ask again",
        )
    try:
        status = rpc_status.from_call(cast(grpc.Call, error))
    except ValueError:
        # The details contradict the status line; the line is what gRPC acted on.
        status = None
    reason, next_step, field = _details(status) if status is not None else ("", "", "")
    kind = HostError if reason == "host" else _KINDS.get(code.value[0], DaemonError)
    if kind is IncompatibleDaemon:
        next_step = next_step or "Install the same release of agentcgroup here and for the daemon"
    # The status line has cause and next step in one, for clients that look at nothing else.
    cause = text.removesuffix(f". {next_step}") or code.name.lower()
    return kind(cause, next_step, field=field, reason=reason)
