"""The channel between host and guest: frames on one virtio-serial port, the same code on both ends.

One port carries everything, so that order is kept: when the end arrives, all output has arrived. A frame is one
kind byte, the length of its body in four bytes (big endian), and the body: raw bytes for output, JSON else.
"""

import json
import struct
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import IntEnum

PORT_NAME = "agentcgroup.vm"
HEADER = struct.Struct(">BI")
# Far above what either side sends; more means that the stream is out of step.
BODY_MOST_BYTES = 16 * 1024 * 1024


class Kind(IntEnum):
    """What a frame is. JOB and STOP go to the guest, the next five come from it, the rest is the tunnel's."""

    JOB = 1
    STOP = 2
    STARTED = 3
    STDOUT = 4
    STDERR = 5
    ENDED = 6
    PROBLEM = 7
    OPEN = 8
    DATA = 9
    CREDIT = 10
    SHUT = 11
    RESET = 12


class ChannelError(Exception):
    """The stream is not what this protocol says."""


@dataclass(frozen=True, slots=True)
class Job:
    """What the guest is to run: words of the command, environment, shares as (NVMe namespace number, name), and the
    addresses in the guest that the host's tunnel may open."""

    argv: tuple[str, ...]
    environment: tuple[tuple[str, str], ...]
    shares: tuple[tuple[int, str], ...]
    targets: tuple[str, ...] = ()

    def encode(self) -> bytes:
        """Return the job as a frame."""
        return encode(Kind.JOB, json.dumps(asdict(self)).encode())


@dataclass(frozen=True, slots=True)
class Frame:
    """One message."""

    kind: Kind
    body: bytes


def decode_job(body: bytes) -> Job:
    """Read a job frame's body; raises ChannelError when it is not one."""
    try:
        fields = json.loads(body)
        return Job(
            tuple(str(word) for word in fields["argv"]),
            tuple((str(name), str(value)) for name, value in fields["environment"]),
            tuple((int(number), str(name)) for number, name in fields["shares"]),
            tuple(str(address) for address in fields["targets"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ChannelError(f"not a job: {error}") from error


def encode(kind: Kind, body: bytes = b"") -> bytes:
    """Return one frame."""
    return HEADER.pack(kind, len(body)) + body


class Decoder:
    """Collects bytes as they come and gives out whole frames."""

    def __init__(self) -> None:
        self._pending = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Take bytes and yield every frame that is complete; raises ChannelError when the stream is out of step."""
        self._pending += data
        while len(self._pending) >= HEADER.size:
            number, length = HEADER.unpack_from(self._pending)
            if number not in Kind.__members__.values() or length > BODY_MOST_BYTES:
                raise ChannelError(f"frame of kind {number} with {length} bytes")
            end = HEADER.size + length
            if len(self._pending) < end:
                return
            body = bytes(self._pending[HEADER.size : end])
            del self._pending[:end]
            yield Frame(Kind(number), body)
