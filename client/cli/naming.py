"""What is wrong with a request, in words of the options that were typed: SDK and daemon name arguments and fields."""

import re
from collections.abc import Mapping
from typing import Final

# By field of the API.
BUDGET_OPTIONS: Final[Mapping[str, str]] = {
    "memory_max_bytes": "--memory",
    "agent_memory_bytes": "--agent-memory",
    "swap_max_bytes": "--swap",
    "cpu_milli": "--cpu",
    "cpu_weight": "--weight",
    "pids_max": "--pids",
    "calls_max": "--calls",
    "labels": "--label",
    "owner_uid": "--owner-uid",
    "owner_gid": "--owner-gid",
    "transparent.scope": "--transparent",
}
LIMITS_OPTIONS: Final[Mapping[str, str]] = {
    "memory_bytes": "--memory",
    "memory_max_bytes": "--memory-max",
    "cpu_milli": "--cpu",
    "cpu_weight": "--weight",
    "pids_max": "--pids",
    "deadline_ms": "--timeout",
}
DRAIN_OPTIONS: Final[Mapping[str, str]] = {"deadline_ms": "--deadline"}
# How the daemon writes a value of a field: 1500 (1.5 CPUs). An option has another unit than the field.
_VALUE: Final = re.compile(r"\b\d+ \(([^()]+)\)")


def in_options(text: str, names: Mapping[str, str]) -> str:
    """`text` with the options that `names` has by field, and their values as people write them."""
    argument, colon, rest = text.partition(": ")
    # The SDK begins with its argument, which has the option's name.
    if colon and (option := f"--{argument.replace('_', '-')}") in names.values():
        return f"{option}: {rest}"
    # What stands in quotes is a name that somebody gave.
    field = re.compile(rf"(?<![\w.'-])({'|'.join(map(re.escape, names))})\b") if names else None
    if field is None or not field.search(text):
        return text
    return _VALUE.sub(r"\1", field.sub(lambda match: names[match[1]], text))
