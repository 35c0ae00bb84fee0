"""RequestError as a gRPC status with details, in one table; a bug as INTERNAL with an incident id.

A caller gets: the status code; a message of one line with cause and next step; google.rpc.ErrorInfo (the
kind as `reason`, domain "agentcgroup", `field` and `next_step` as metadata); google.rpc.BadRequest when a
field is to blame; google.rpc.LocalizedMessage with the next step. A refused or trimmed intent is no error,
it is an Answer.
"""

import logging
from typing import Final

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from agentcgroup.daemon.errors import Kind, RequestError
from agentcgroup.daemon.ids import random_hex
from agentcgroup.daemon.policy.bounds import one_line

log = logging.getLogger("agentcgroup.api")

DOMAIN: Final = "agentcgroup"

CODES: Final[dict[Kind, grpc.StatusCode]] = {
    Kind.INVALID: grpc.StatusCode.INVALID_ARGUMENT,
    Kind.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Kind.EXISTS: grpc.StatusCode.ALREADY_EXISTS,
    Kind.STATE: grpc.StatusCode.FAILED_PRECONDITION,
    Kind.DENIED: grpc.StatusCode.PERMISSION_DENIED,
    Kind.EXHAUSTED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    # Not UNAVAILABLE: clients repeat that by themselves, and a kernel that would not once will not the next
    # moment.
    Kind.HOST: grpc.StatusCode.FAILED_PRECONDITION,
}

# gRPC carries status and details in HTTP/2 trailers, which clients bound to 8 KiB. The texts stand there up
# to three times: percent-encoded (three bytes for one), in base64 (four for three), and again in base64.
_MOST_CAUSE_BYTES: Final = 600
_MOST_NEXT_STEP_BYTES: Final = 400
_MOST_FIELD_BYTES: Final = 80


def _cut(text: str, most_bytes: int) -> str:
    line = one_line(text, most_bytes)
    encoded = line.encode()
    if len(encoded) <= most_bytes:
        return line
    return encoded[: most_bytes - 3].decode(errors="ignore") + "..."


def _packed(message: Message) -> any_pb2.Any:
    detail = any_pb2.Any()
    detail.Pack(message)
    return detail


def _code_number(code: grpc.StatusCode) -> int:
    number: int = code.value[0]
    return number


def status_of(error: RequestError) -> status_pb2.Status:
    """The google.rpc.Status that tells a caller of `error`."""
    cause = _cut(error.cause, _MOST_CAUSE_BYTES)
    next_step = _cut(error.next_step, _MOST_NEXT_STEP_BYTES)
    field = _cut(error.field, _MOST_FIELD_BYTES)
    metadata = {key: value for key, value in (("field", field), ("next_step", next_step)) if value}
    details = [
        _packed(error_details_pb2.ErrorInfo(reason=error.kind.name, domain=DOMAIN, metadata=metadata))
    ]
    if field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=field, description=cause)
        details.append(_packed(error_details_pb2.BadRequest(field_violations=[violation])))
    if next_step:
        details.append(_packed(error_details_pb2.LocalizedMessage(locale="en", message=next_step)))
    return status_pb2.Status(
        code=_code_number(CODES[error.kind]),
        message=f"{cause}. {next_step}" if next_step else cause,
        details=details,
    )


def new_incident() -> str:
    """An id by which a caller's complaint is found in the log."""
    return random_hex(4)


def status_of_bug(incident: str) -> status_pb2.Status:
    """The status for an exception that nobody expected; the log has it under `incident`."""
    info = error_details_pb2.ErrorInfo(reason="INTERNAL", domain=DOMAIN, metadata={"incident": incident})
    return status_pb2.Status(
        code=code_pb2.INTERNAL,
        message=f"agentcgroupd failed on this request (incident {incident}). Its log says why; it goes on",
        details=[_packed(info)],
    )
