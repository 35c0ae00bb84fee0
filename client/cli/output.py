"""What the commands print: JSON with the field names of proto/v1, tables and facts for people.

On a terminal tables are drawn by rich, imported only then; elsewhere they are plain aligned columns.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Any, Final

from agentcgroup.client.cli.naming import in_options
from agentcgroup.client.errors import ClientError
from agentcgroup.proto.quantity import format_cpu, format_duration, format_size

NOTHING: Final = "-"
NO_NAMES: Final[Mapping[str, str]] = {}


def as_json(value: Any) -> Any:
    """`value` as what json.dumps takes: dataclasses by field name, times as ISO 8601 in UTC, None as null."""
    match value:
        case Enum():
            return value.value
        case datetime():
            return value.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        case Mapping():
            return {str(key): as_json(each) for key, each in value.items()}
        case list() | tuple():
            return [as_json(each) for each in value]
        case _ if is_dataclass(value):
            return {each.name: as_json(getattr(value, each.name)) for each in fields(value)}
        case _:
            return value


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    print(json.dumps(as_json(value), indent=2))


def print_json_line(value: Any) -> None:
    """One JSON document as one line, at once: a reader of a stream waits for it."""
    print(json.dumps(as_json(value)), flush=True)


def shown(text: str) -> str:
    """`text`, which an agent may have written, without what a terminal would obey."""
    return "".join(
        char if char.isprintable() else "?" for char in text.replace("\n", " ").replace("\t", " ")
    )


def size(size_bytes: int | None) -> str:
    return NOTHING if size_bytes is None else format_size(size_bytes)


def cpu(cpu_milli: int | None) -> str:
    return NOTHING if cpu_milli is None else format_cpu(cpu_milli)


def duration(duration_ms: float | None) -> str:
    return NOTHING if duration_ms is None else format_duration(duration_ms)


def cpu_time(cpu_usage_us: int | None) -> str:
    return NOTHING if cpu_usage_us is None else format_duration(cpu_usage_us / 1000)


def count(number: int | None) -> str:
    return NOTHING if number is None else str(number)


def clock(at: datetime | None) -> str:
    """The local time of `at`, with the date when it was not today."""
    if at is None:
        return NOTHING
    local = at.astimezone()
    return local.strftime("%H:%M:%S" if local.date() == datetime.now().date() else "%Y-%m-%d %H:%M:%S")


def age(since: datetime | None) -> str:
    """How long ago `since` was, in whole seconds."""
    if since is None:
        return NOTHING
    seconds = int((datetime.now(UTC) - since).total_seconds())
    return format_duration(seconds * 1000) if seconds > 0 else "0 s"


def command_line(command: Sequence[str], most: int = 60) -> str:
    """A command line cut to `most` characters."""
    line = shown(" ".join(command))
    return NOTHING if not line else line if len(line) <= most else line[: most - 3] + "..."


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, empty: str) -> None:
    """A table on standard output, or the sentence `empty` when there are no rows."""
    if not rows:
        print(empty)
        return
    safe = [[shown(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _print_rich(headers, safe)
        return
    widths = [max(len(row[column]) for row in [headers, *safe]) for column in range(len(headers))]
    for row in [headers, *safe]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _print_rich(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for header in headers:
        table.add_column(header, overflow="fold")
    for row in rows:
        # Text: a cell is not markup, whatever brackets an agent puts into it.
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)


def print_facts(facts: Sequence[tuple[str, str]]) -> None:
    """Names and values below each other; facts with an empty value are left out."""
    told = [(name, value) for name, value in facts if value]
    width = max((len(name) for name, _ in told), default=0)
    for name, value in told:
        print(f"{name.ljust(width)}  {shown(value)}")


def complain(
    error: ClientError, *, json_wanted: bool, exit_status: int, option_names: Mapping[str, str] = NO_NAMES
) -> None:
    """What went wrong and what to do about it, on standard error; `option_names`: see naming.in_options."""
    cause, next_step = (in_options(text, option_names) for text in (error.cause, error.next_step))
    if json_wanted:
        told = {
            "error": type(error).__name__,
            "cause": cause,
            "next_step": next_step,
            "field": error.field,
            "exit_status": exit_status,
        }
        print(json.dumps(told), file=sys.stderr)
        return
    for line in (cause, next_step):
        if line:
            print(f"agentcg: {shown(line)}", file=sys.stderr)
