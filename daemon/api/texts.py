"""An intent written as text, `memory=2G timeout=10m`, as the launcher sends it and people type it.

The one place that reads quantities for the command line, so that there is one syntax, and messages name the
option that was typed instead of the field that it becomes.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from agentcgroup.daemon.errors import Kind, RequestError
from agentcgroup.daemon.model import CpuClass, Intent, OnExceed
from agentcgroup.daemon.policy import intent as intent_rules
from agentcgroup.proto.quantity import (
    BadQuantity,
    format_cpu,
    format_duration,
    format_size,
    parse_cpu,
    parse_duration,
    parse_size,
)

_COUNT: Final = re.compile(r"[0-9]{1,18}", re.ASCII)


def _parse_count(text: str) -> int:
    if not _COUNT.fullmatch(text):
        raise BadQuantity(f"{text[:40]!r} is no number: write a whole number, for example 200")
    return int(text)


# Key of the launcher's message, which is the option's name: field of Intent and how it is read.
_NUMBERS: Final[dict[str, tuple[str, Callable[[str], int]]]] = {
    "memory": ("memory_bytes", parse_size),
    "memory-max": ("memory_max_bytes", parse_size),
    "cpu": ("cpu_milli", parse_cpu),
    "weight": ("cpu_weight", _parse_count),
    "pids": ("pids_max", _parse_count),
    "timeout": ("deadline_ms", parse_duration),
    "expect": ("expected_duration_ms", parse_duration),
    "throttle-limit": ("throttle_limit_ms", parse_duration),
}
_OPTIONS: Final = {field: f"--{option}" for option, (field, _) in _NUMBERS.items()} | {
    "cpu_class": "--class",
    "on_exceed": "--on-exceed",
    "labels": "--label",
}
# By the last word of a field's name.
_SHOWN: Final[dict[str, Callable[[int], str]]] = {
    "bytes": format_size,
    "milli": format_cpu,
    "ms": format_duration,
}
_FIELD: Final = re.compile(rf"\b({'|'.join(_OPTIONS)})\b")


def _with_options(text: str) -> str:
    """`text` with options in place of the names of fields."""
    return _FIELD.sub(lambda match: _OPTIONS[match[1]], text)


def _choice(option: str, text: str, choices: type[CpuClass] | type[OnExceed]) -> str:
    if text not in set(choices):
        raise RequestError(
            Kind.INVALID,
            f"--{option} is {text[:40]!r}",
            f"--{option} takes {', '.join(choices)}",
            f"--{option}",
        )
    return text


_RANGES: Final = {field: (least, most) for field, least, most in intent_rules.RANGES}


def _read_number(option: str, text: str) -> int:
    field, parse = _NUMBERS[option]
    try:
        number = parse(text)
    except BadQuantity as error:
        raise RequestError(Kind.INVALID, f"--{option}: {error}", "", f"--{option}") from error
    least, most = _RANGES[field]
    if not least <= number <= most:
        # In the option's own unit, which is seldom the field's: --cpu counts cores, --timeout seconds.
        show = _SHOWN.get(field.rpartition("_")[2], str)
        forgotten = (
            "; a number without a unit is bytes" if parse is parse_size and text.strip().isdigit() else ""
        )
        raise RequestError(
            Kind.INVALID,
            f"--{option} is {text.strip()[:40]}",
            f"--{option} takes {show(least)} to {show(most)}{forgotten}; leave it out for the default",
            f"--{option}",
        )
    return number


def read_wait(text: str) -> int:
    """Milliseconds to wait for room at most. Raises RequestError(INVALID)."""
    try:
        return parse_duration(text)
    except BadQuantity as error:
        raise RequestError(Kind.INVALID, f"--wait: {error}", "", "--wait") from error


def read_texts(texts: Mapping[str, str], labels: Mapping[str, str], arguments: Sequence[str]) -> Intent:
    """The intent that `texts` (by option name), `labels` and the command line declare, checked.

    Raises RequestError(INVALID) in words of the options; its `field` is the option.
    """
    numbers: dict[str, int] = {}
    cpu_class: CpuClass | None = None
    on_exceed: OnExceed | None = None
    for option, text in texts.items():
        if option == "class":
            cpu_class = CpuClass(_choice(option, text, CpuClass))
        elif option == "on-exceed":
            on_exceed = OnExceed(_choice(option, text, OnExceed))
        else:
            numbers[_NUMBERS[option][0]] = _read_number(option, text)
    intent = Intent(
        memory_bytes=numbers.get("memory_bytes"),
        memory_max_bytes=numbers.get("memory_max_bytes"),
        cpu_milli=numbers.get("cpu_milli"),
        cpu_weight=numbers.get("cpu_weight"),
        cpu_class=cpu_class,
        pids_max=numbers.get("pids_max"),
        expected_duration_ms=numbers.get("expected_duration_ms"),
        deadline_ms=numbers.get("deadline_ms"),
        on_exceed=on_exceed,
        throttle_limit_ms=numbers.get("throttle_limit_ms"),
        command=intent_rules.bounded_command(arguments),
        labels=tuple(sorted(labels.items())),
    )
    try:
        intent_rules.check(intent)
    except RequestError as error:
        field = _OPTIONS.get(error.field, error.field)
        raise RequestError(
            error.kind, _with_options(error.cause), _with_options(error.next_step), field
        ) from error
    return intent
