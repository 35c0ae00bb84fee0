"""Whether an intent makes sense by itself, whatever session and host have room for.

Every edge calls `check` on what it read, so that a limit of 0 or a maximum below the need gets the same
answer at the gRPC socket and at the launcher's door.
"""

import re
from collections.abc import Iterable
from typing import Final

from agentcgroup.daemon.errors import Kind, RequestError
from agentcgroup.daemon.model import Intent, OnExceed
from agentcgroup.daemon.model.ranges import (
    LEAST_CPU_MILLI,
    LEAST_DECLARED_BYTES,
    LEAST_WEIGHT,
    MOST_BYTES,
    MOST_CPU_MILLI,
    MOST_DURATION_MS,
    MOST_PIDS,
    MOST_WEIGHT,
)
from agentcgroup.daemon.policy.bounds import check_labels, check_range
from agentcgroup.proto.quantity import format_size

MOST_ARGUMENTS: Final = 64
MOST_COMMAND_BYTES: Final = 4096
_SURROGATE: Final = re.compile("[\ud800-\udfff]")

# By field: what it takes at least and at most.
RANGES: Final = (
    ("memory_bytes", LEAST_DECLARED_BYTES, MOST_BYTES),
    ("memory_max_bytes", LEAST_DECLARED_BYTES, MOST_BYTES),
    ("cpu_milli", LEAST_CPU_MILLI, MOST_CPU_MILLI),
    ("cpu_weight", LEAST_WEIGHT, MOST_WEIGHT),
    ("pids_max", 1, MOST_PIDS),
    ("expected_duration_ms", 1, MOST_DURATION_MS),
    ("deadline_ms", 1, MOST_DURATION_MS),
    ("throttle_limit_ms", 1, MOST_DURATION_MS),
)


def check(intent: Intent) -> None:
    """Raises RequestError(INVALID), naming the field, when a value is out of range or two contradict."""
    for field, least, most in RANGES:
        check_range(field, getattr(intent, field), least, most)
    need, most_bytes = intent.memory_bytes, intent.memory_max_bytes
    if need is not None and most_bytes is not None and most_bytes < need:
        raise RequestError(
            Kind.INVALID,
            f"memory_max_bytes is {format_size(most_bytes)}, less than memory_bytes, {format_size(need)}",
            "memory_max_bytes is where the call is stopped: make it at least memory_bytes",
            "memory_max_bytes",
        )
    if intent.throttle_limit_ms is not None and intent.on_exceed is OnExceed.STOP:
        raise RequestError(
            Kind.INVALID,
            f"throttle_limit_ms is set, but on_exceed is {intent.on_exceed}, which never throttles",
            "set on_exceed to throttle or extend, or leave throttle_limit_ms out",
            "throttle_limit_ms",
        )
    if intent.labels:
        check_labels(intent.labels)


def bounded_command(arguments: Iterable[str]) -> tuple[str, ...]:
    """The command as it is kept: valid UTF-8, at most 64 arguments and 4 KiB in all, cut without complaint.

    A command line is shown to people and kept in the history; it decides nothing, so a long one is no error.
    """
    kept: list[str] = []
    room = MOST_COMMAND_BYTES
    for argument in arguments:
        if len(kept) == MOST_ARGUMENTS or room <= 0:
            break
        # An argument may be any bytes (argv); those that are not UTF-8 arrive as surrogates.
        text = argument if argument.isascii() else _SURROGATE.sub("\ufffd", argument)
        encoded = text.encode()
        kept.append(text if len(encoded) <= room else encoded[:room].decode(errors="ignore"))
        room -= len(encoded)
    return tuple(kept)
