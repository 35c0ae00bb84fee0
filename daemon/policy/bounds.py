"""What the values of a request may be: ranges that kernel and history can carry, names, labels.

One place for every edge: the gRPC services, the launcher's door and the containers' labels. Each check
returns nothing or raises RequestError(INVALID) whose `field` is the name in agentcgroup.daemon.model and
whose cause begins with it.
"""

import re
import unicodedata
from typing import Final

from agentcgroup.daemon.errors import Kind, RequestError
from agentcgroup.daemon.model import BudgetRequest, Labels
from agentcgroup.daemon.model.ranges import (
    LEAST_CPU_MILLI,
    LEAST_DECLARED_BYTES,
    LEAST_WEIGHT,
    MOST_BYTES,
    MOST_CALLS,
    MOST_CPU_MILLI,
    MOST_PIDS,
    MOST_WEIGHT,
)
from agentcgroup.proto.quantity import format_cpu, format_duration, format_size

MOST_LABELS: Final = 16
MOST_LABEL_BYTES: Final = 256
MOST_REASON_CHARACTERS: Final = 500

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}", re.ASCII)
_LABEL_KEY: Final = re.compile(r"[a-z][a-z0-9_.-]{0,62}", re.ASCII)
# A session's name is a directory among the kernel's own files, and the daemon lives in one of that place.
_TAKEN_PREFIXES: Final = (
    "cgroup.", "cpu.", "cpuset.", "dmem.", "hugetlb.", "io.", "irq.", "memory.", "misc.", "perf_event.",
    "pids.", "rdma.",
)  # fmt: skip
_TAKEN_NAMES: Final = frozenset({"daemon"})


def _shown(text: str, most: int = 80) -> str:
    return repr(text if len(text) <= most else text[: most - 3] + "...")


def _worded(field: str, value: int) -> str:
    """`value` as written, and in words with its unit."""
    if field.endswith("_bytes"):
        return f"{value} ({format_size(value)})"
    if field.endswith("_ms"):
        return f"{value} ({format_duration(value)})"
    if field.endswith("_milli"):
        return f"{value} ({format_cpu(value)})"
    return str(value)


def check_range(field: str, value: int | None, least: int, most: int) -> None:
    """`value` must lie in `least` to `most`, both included; None passes."""
    if value is None or least <= value <= most:
        return
    raise RequestError(
        Kind.INVALID,
        f"{field} is {_worded(field, value)}",
        f"{field} takes {_worded(field, least)} to {_worded(field, most)}; leave it out for the default",
        field,
    )


def check_name(name: str, field: str = "name") -> None:
    """A session's name: 1 to 63 of [a-z0-9._-], beginning with a letter or digit; a cgroup can have it."""
    rule = "a name has 1 to 63 characters of a-z, 0-9, '.', '_' and '-', and begins with a letter or digit"
    if not _NAME.fullmatch(name):
        raise RequestError(Kind.INVALID, f"{field} {_shown(name)} is no session name", rule, field)
    if name in _TAKEN_NAMES or name.startswith(_TAKEN_PREFIXES):
        raise RequestError(
            Kind.INVALID,
            f"{field} {_shown(name)} is taken by the kernel or by this daemon, beside the sessions' cgroups",
            "choose another, for example with a word before it",
            field,
        )


def check_labels(labels: Labels, field: str = "labels") -> None:
    """At most 16; keys match [a-z][a-z0-9_.-]{0,62}; values are printable, at most 256 bytes of UTF-8."""
    if len(labels) > MOST_LABELS:
        raise RequestError(
            Kind.INVALID, f"{field} has {len(labels)} entries", f"{field} takes at most {MOST_LABELS}", field
        )
    for key, value in labels:
        if not _LABEL_KEY.fullmatch(key):
            raise RequestError(
                Kind.INVALID,
                f"{field} has the key {_shown(key)}",
                "a key has 1 to 63 characters of a-z, 0-9, '_', '.' and '-', and begins with a letter",
                field,
            )
        size = len(value.encode(errors="surrogatepass"))
        if size > MOST_LABEL_BYTES:
            raise RequestError(
                Kind.INVALID,
                f"{field} {key} has a value of {size} bytes",
                f"a value has at most {MOST_LABEL_BYTES} bytes",
                field,
            )
        # Values are shown on operators' terminals and in logs, where control characters are commands.
        if any(unicodedata.category(character) in ("Cc", "Cs") for character in value):
            raise RequestError(
                Kind.INVALID,
                f"{field} {key} has a value with control characters or bytes outside UTF-8: {_shown(value)}",
                "a value is printable text",
                field,
            )


_BUDGET_RANGES: Final = (
    ("memory_max_bytes", LEAST_DECLARED_BYTES, MOST_BYTES),
    ("agent_memory_bytes", 0, MOST_BYTES),
    ("swap_max_bytes", 0, MOST_BYTES),
    ("cpu_milli", LEAST_CPU_MILLI, MOST_CPU_MILLI),
    ("cpu_weight", LEAST_WEIGHT, MOST_WEIGHT),
    ("pids_max", 1, MOST_PIDS),
    ("calls_max", 1, MOST_CALLS),
)


def check_budget(request: BudgetRequest) -> None:
    """The values of a budget by themselves; whether the host has room for it is the controller's to say."""
    for field, least, most in _BUDGET_RANGES:
        check_range(field, getattr(request, field), least, most)
    whole, part = request.memory_max_bytes, request.agent_memory_bytes
    if whole is not None and part is not None and part >= whole:
        raise RequestError(
            Kind.INVALID,
            f"agent_memory_bytes, {_worded('agent_memory_bytes', part)}, leaves nothing for calls of the "
            f"{_worded('memory_max_bytes', whole)} of memory_max_bytes",
            "agent_memory_bytes is a part of memory_max_bytes: make it smaller",
            "agent_memory_bytes",
        )


def one_line(text: str, most: int = MOST_REASON_CHARACTERS) -> str:
    """`text` fit for a log and a terminal: control characters become spaces, cut at `most` characters."""
    clean = "".join(" " if unicodedata.category(each) in ("Cc", "Cs") else each for each in text[: most + 1])
    return clean if len(clean) <= most else clean[: most - 3] + "..."
