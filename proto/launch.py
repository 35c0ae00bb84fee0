"""The launcher's message: what `agentcg run` says to the daemon and hears back, version 1.

Transport: a SOCK_SEQPACKET Unix socket, `launch.sock` in the session's directory. One packet is one message,
at most MOST_BYTES long; it is a list of NUL-terminated records, the first of which is the protocol's name
and version, every other `key=value`. Values are bytes without NUL and mean what the option of the same name
means to `agentcg run`; the daemon, not the launcher, reads quantities, so that there is one syntax and one
error message.

Request (launcher -> daemon), at most once on a connection:

    op=begin            place the sender (SO_PEERCRED, SO_PEERPIDFD), or the process of a pidfd sent by SCM_RIGHTS
    memory=2G  memory-max=3G  cpu=1.5  weight=100  class=batch  pids=200  timeout=10m  expect=2m
    on-exceed=throttle  throttle-limit=30s            each optional, each at most once
    wait=5m             how long it may be queued for room; 0: refuse it at once; absent: as the daemon is configured
    label=KEY=VALUE                                   any number
    ticket=TICKET                                     a call begun over gRPC; then no other intent field
    arg=ARGUMENT                                      the command, in order, as far as it fits

Reply (daemon -> launcher): any number of `status=queued`, then exactly one of the others:

    status=granted|trimmed|queued|refused|invalid     invalid: the request is wrong; message= says where
    call=ID   message=TEXT   suggestion=TEXT   notice=TEXT (any number)
    reason=WORD                                       why it is not as asked (session_memory, queue_full, ...)
    env=NAME=VALUE                                    to be set for the tool, any number
    default=NAME=VALUE                                the same, unless the caller has set it; older launchers skip it

After `granted` or `trimmed` the process is in its cgroup; the launcher executes the tool and thereby closes
the socket (close-on-exec). A daemon that goes away mid-way is a closed socket: the launcher then does as its
--if-unreachable says.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

MAGIC: Final = b"agentcgroup-launch/1"
MOST_BYTES: Final = 16 * 1024
SOCKET_NAME: Final = "launch.sock"

# Texts of a reply that are sent, and how much of each: with call and environment they stay below MOST_BYTES.
_MOST_TEXTS: Final = 6
_MOST_TEXT_BYTES: Final = 2000

# Intent fields of a request; each may stand once.
INTENT_KEYS: Final = frozenset(
    {
        "memory", "memory-max", "cpu", "weight", "class", "pids", "timeout", "expect", "on-exceed", "throttle-limit",
    }
)  # fmt: skip


class BadMessage(ValueError):
    """Bytes that are no message of this protocol; the text says what is wrong."""


class Status(StrEnum):
    GRANTED = "granted"
    TRIMMED = "trimmed"
    QUEUED = "queued"
    REFUSED = "refused"
    INVALID = "invalid"


@dataclass(frozen=True, slots=True)
class Request:
    intent: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()
    ticket: str | None = None
    wait: str | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    status: Status
    call_id: str = ""
    message: str = ""
    suggestion: str = ""
    notices: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    defaults: tuple[tuple[str, str], ...] = ()
    reason: str = ""


def _records(packet: bytes) -> list[tuple[str, str]]:
    if len(packet) > MOST_BYTES:
        raise BadMessage(f"message of more than {MOST_BYTES} bytes")
    if not packet.endswith(b"\0"):
        raise BadMessage("message is cut off: the last record does not end in NUL")
    first, *rest = packet[:-1].split(b"\0")
    if first != MAGIC:
        raise BadMessage(
            f"protocol {first[:40].decode(errors='replace')!r} is not {MAGIC.decode()}: "
            "launcher and daemon are of different releases"
        )
    pairs = []
    for record in rest:
        key, equals, value = record.partition(b"=")
        if not equals:
            raise BadMessage(f"record {record[:40].decode(errors='replace')!r} has no '='")
        pairs.append((key.decode(errors="replace"), value.decode(errors="surrogateescape")))
    return pairs


def _pack(pairs: Iterable[tuple[str, str]]) -> bytes:
    records = [MAGIC, *(f"{key}={value}".encode(errors="surrogateescape") for key, value in pairs)]
    if any(b"\0" in record for record in records):
        raise BadMessage("a value holds a NUL byte")
    return b"".join(record + b"\0" for record in records)


def decode_request(packet: bytes) -> Request:
    """The request in `packet`. Raises BadMessage on anything that is not exactly one."""
    intent: dict[str, str] = {}
    labels: dict[str, str] = {}
    arguments: list[str] = []
    ticket: str | None = None
    wait: str | None = None
    op: str | None = None
    for key, value in _records(packet):
        if key == "arg":
            arguments.append(value)
        elif key == "label":
            name, equals, text = value.partition("=")
            if not equals:
                raise BadMessage(f"label {value[:40]!r} is not KEY=VALUE")
            labels[name] = text
        elif key in INTENT_KEYS:
            if key in intent:
                raise BadMessage(f"{key} stands twice")
            intent[key] = value
        elif key == "ticket" and ticket is None:
            ticket = value
        elif key == "wait" and wait is None:
            wait = value
        elif key == "op" and op is None:
            op = value
        else:
            raise BadMessage(f"{key[:40]!r} is not a field of this protocol, or stands twice")
    if op != "begin":
        raise BadMessage(f"op={op} is not known; this daemon knows op=begin")
    if ticket is not None and (intent or labels or wait is not None):
        raise BadMessage("a ticket stands for a call that is declared already: leave out limits and labels")
    return Request(intent=intent, labels=labels, arguments=tuple(arguments), ticket=ticket, wait=wait)


def split_request(packet: bytes) -> tuple[bytes, tuple[str, ...]] | None:
    """A well-formed request as what it asks for and its arguments; None when arguments do not come last.

    Whoever sends the first part again, followed by any arguments, means the same intent.
    """
    records = packet.split(b"\0")[:-1]
    first = next((at for at, record in enumerate(records) if record.startswith(b"arg=")), len(records))
    arguments = records[first:]
    if not all(record.startswith(b"arg=") for record in arguments):
        return None
    head = b"".join(record + b"\0" for record in records[:first])
    return head, tuple(record[4:].decode(errors="surrogateescape") for record in arguments)


def encode_request(request: Request) -> bytes:
    """`request` as one packet; arguments that do not fit are left out."""
    head: list[tuple[str, str]] = [("op", "begin")]
    if request.ticket is not None:
        head.append(("ticket", request.ticket))
    if request.wait is not None:
        head.append(("wait", request.wait))
    head += request.intent.items()
    head += (("label", f"{key}={value}") for key, value in request.labels.items())
    packet = _pack(head)
    for argument in request.arguments:
        record = b"arg=" + argument.encode(errors="surrogateescape") + b"\0"
        if len(packet) + len(record) > MOST_BYTES:
            break
        packet += record
    return packet


def encode_reply(reply: Reply) -> bytes:
    """`reply` as one packet; texts are cut so that it fits."""
    pairs: list[tuple[str, str]] = [("status", reply.status)]
    pairs += ((key, value) for key, value in (("call", reply.call_id), ("reason", reply.reason)) if value)
    pairs += (("env", f"{name}={value}") for name, value in reply.environment)
    pairs += (("default", f"{name}={value}") for name, value in reply.defaults)
    texts: Sequence[tuple[str, str]] = (
        ("message", reply.message),
        ("suggestion", reply.suggestion),
        *(("notice", notice) for notice in reply.notices),
    )
    pairs += ((key, _cut(value)) for key, value in texts[:_MOST_TEXTS] if value)
    return _pack(pairs)


def _cut(text: str) -> str:
    """`text` without NUL, in at most _MOST_TEXT_BYTES."""
    clean = text.replace("\0", " ")
    encoded = clean.encode(errors="surrogateescape")
    return clean if len(encoded) <= _MOST_TEXT_BYTES else encoded[:_MOST_TEXT_BYTES].decode(errors="ignore")


def decode_reply(packet: bytes) -> Reply:
    """The reply in `packet`. Raises BadMessage."""
    single: dict[str, str] = {}
    notices: list[str] = []
    variables: dict[str, list[tuple[str, str]]] = {"env": [], "default": []}
    for key, value in _records(packet):
        if key == "notice":
            notices.append(value)
        elif key in variables:
            name, _, text = value.partition("=")
            variables[key].append((name, text))
        else:
            single[key] = value
    if single.get("status") not in set(Status):
        raise BadMessage(f"status {single.get('status')!r} is not known")
    return Reply(
        status=Status(single["status"]),
        call_id=single.get("call", ""),
        message=single.get("message", ""),
        suggestion=single.get("suggestion", ""),
        notices=tuple(notices),
        environment=tuple(variables["env"]),
        defaults=tuple(variables["default"]),
        reason=single.get("reason", ""),
    )
