"""What people write for an intent or a budget, as values: sizes, CPU amounts and times as numbers or as texts.

A size is bytes or text (`2G`); a CPU amount is cores (1.5) or text (`1500m`); a time is seconds, text (`10m`), a timedelta.
"""

import difflib
import os
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from enum import StrEnum
from typing import TypedDict, TypeVar

from agentcgroup.client.errors import InvalidRequest
from agentcgroup.client.values import Budget, CpuClass, Intent, OnExceed, Priority, TransparentRule
from agentcgroup.proto.quantity import BadQuantity, parse_cpu, parse_duration, parse_size
from agentcgroup.proto.transparent import BadRule, parse_rule

Size = int | str
Cpu = int | float | str
Time = int | float | str | timedelta

Member = TypeVar("Member", bound=StrEnum)


class IntentArguments(TypedDict, total=False):
    """Keyword arguments of everything that declares or adjusts a call; named as the options of `agentcg run`."""

    memory: Size | None
    memory_max: Size | None
    cpu: Cpu | None
    weight: int | None
    cpu_class: CpuClass | str | None
    pids: int | None
    timeout: Time | None
    expect: Time | None
    on_exceed: OnExceed | str | None
    throttle_limit: Time | None
    command: Iterable[str | os.PathLike[str]]
    labels: Mapping[str, str]


class BudgetArguments(TypedDict, total=False):
    """Keyword arguments of everything that sets a session's budget; named as the options of `agentcg session create`."""

    memory: Size | None
    agent_memory: Size | None
    swap: Size | None
    cpu: Cpu | None
    weight: int | None
    pids: int | None
    calls: int | None


def _parsed(field: str, text: str, parse: Callable[[str], int]) -> int:
    try:
        return parse(text)
    except BadQuantity as error:
        raise InvalidRequest(f"{field}: {error}", field=field) from None


def _whole(field: str, value: object) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InvalidRequest(f"{field}: {value!r} is no whole number from 0 up", field=field)
    return value


def size_bytes(field: str, value: Size | None) -> int | None:
    """Bytes. Raises InvalidRequest naming `field`."""
    return _parsed(field, value, parse_size) if isinstance(value, str) else _whole(field, value)


def cpu_milli(field: str, value: Cpu | None) -> int | None:
    """Thousandths of a core; a number is cores. Raises InvalidRequest naming `field`."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise InvalidRequest(f"{field}: {value!r} is no CPU amount", field=field)
    return _parsed(field, value if isinstance(value, str) else f"{value:f}", parse_cpu)


def duration_ms(field: str, value: Time | None) -> int | None:
    """Milliseconds; a number is seconds. Raises InvalidRequest naming `field`."""
    if value is None:
        return None
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise InvalidRequest(f"{field}: {value!r} is no time", field=field)
    return _parsed(field, value if isinstance(value, str) else f"{value:f}", parse_duration)


def member(field: str, kind: type[Member], value: str | None) -> Member | None:
    """The member of `kind` named `value`. Raises InvalidRequest naming `field`."""
    if value is None:
        return None
    try:
        return kind(value)
    except ValueError:
        known = ", ".join(kind)
        raise InvalidRequest(f"{field}: {value!r} is none of {known}", field=field) from None


def _check_names(given: Iterable[str], known: Iterable[str]) -> None:
    """A misspelt limit must not be silently absent."""
    for name in set(given) - set(known):
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"Did you mean {close[0]!r}?" if close else f"There are {', '.join(known)}"
        raise InvalidRequest(f"there is no argument {name!r}", hint, field=name)


def intent_of(arguments: IntentArguments) -> Intent:
    """The intent that `arguments` declare. Raises InvalidRequest."""
    _check_names(arguments, IntentArguments.__annotations__)
    command = arguments.get("command", ())
    return Intent(
        memory_bytes=size_bytes("memory", arguments.get("memory")),
        memory_max_bytes=size_bytes("memory_max", arguments.get("memory_max")),
        cpu_milli=cpu_milli("cpu", arguments.get("cpu")),
        cpu_weight=_whole("weight", arguments.get("weight")),
        cpu_class=member("cpu_class", CpuClass, arguments.get("cpu_class")),
        pids_max=_whole("pids", arguments.get("pids")),
        expected_duration_ms=duration_ms("expect", arguments.get("expect")),
        deadline_ms=duration_ms("timeout", arguments.get("timeout")),
        on_exceed=member("on_exceed", OnExceed, arguments.get("on_exceed")),
        throttle_limit_ms=duration_ms("throttle_limit", arguments.get("throttle_limit")),
        # What is no UTF-8 is shown as '?': the field is for people.
        command=tuple(os.fspath(each).encode("utf-8", "replace").decode() for each in command),
        labels=dict(arguments.get("labels", {})),
    )


def budget_of(arguments: BudgetArguments) -> Budget:
    """The budget that `arguments` ask for. Raises InvalidRequest."""
    _check_names(arguments, BudgetArguments.__annotations__)
    return Budget(
        memory_max_bytes=size_bytes("memory", arguments.get("memory")),
        agent_memory_bytes=size_bytes("agent_memory", arguments.get("agent_memory")),
        swap_max_bytes=size_bytes("swap", arguments.get("swap")),
        cpu_milli=cpu_milli("cpu", arguments.get("cpu")),
        cpu_weight=_whole("weight", arguments.get("weight")),
        pids_max=_whole("pids", arguments.get("pids")),
        calls_max=_whole("calls", arguments.get("calls")),
    )


def rule_of(value: TransparentRule | str | None) -> TransparentRule | None:
    """The rule of a transparent door that `value` writes. Raises InvalidRequest."""
    if value is None:
        return None
    try:
        return parse_rule(str(value))
    except BadRule as error:
        raise InvalidRequest(f"transparent: {error}", field="transparent") from None


def priority_of(value: Priority | str | None) -> Priority | None:
    """The priority named `value`. Raises InvalidRequest."""
    return member("priority", Priority, value)
