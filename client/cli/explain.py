"""`agentcg explain`: the story of one call, and the numbers behind every decision in it."""

import argparse
import textwrap
from collections.abc import Sequence
from datetime import datetime
from typing import Final

from agentcgroup.client.cli import options
from agentcgroup.client.cli.output import (
    NOTHING,
    clock,
    command_line,
    cpu,
    cpu_time,
    duration,
    print_json,
    shown,
    size,
)
from agentcgroup.client.cli.statuses import ExitStatus
from agentcgroup.client.values import Call, Event, Story

_WIDTH: Final = 110
_INDENT: Final = " " * 27

# How the last word of a number's name is shown instead.
_UNITS: Final = {"bytes": size, "ms": duration, "us": cpu_time, "milli": cpu}


def add_parser(subparsers: options.Subparsers) -> None:
    parser = options.add_command(
        subparsers,
        "explain",
        _explain,
        summary="the story of one call: every decision about it, who made it, and from which numbers",
        description="Everything that was decided about one call, live or ended, in the order of time, with what befell its\n"
        "session and the host meanwhile. Inside a session it explains the session's own calls, for operators any.",
        examples=(
            "agentcg explain c-4be1b2f9aa",
            "agentcg explain c-4be1b2f9aa --json | jq '.events[].reason'",
        ),
    )
    parser.add_argument("id", help="as `agentcg call list` and `agentcg history` show it")
    options.add_either(parser, which=False)


def _story(arguments: argparse.Namespace) -> Story:
    if options.is_operator(arguments):
        with options.operator_client(arguments) as operator:
            return operator.explain(arguments.id)
    with options.agent_client(arguments) as agent:
        return agent.explain(arguments.id)


def _explain(arguments: argparse.Namespace) -> int:
    story = _story(arguments)
    if arguments.json:
        print_json(story)
        return ExitStatus.OK
    print(_headline(arguments.id, story.call))
    if story.events_left_out:
        print(f"{_INDENT}{story.events_left_out} older decisions are not shown.")
    for line in lines_of(story.events):
        print(line)
    if not story.events:
        print("No decision about it was recorded.")
    if story.call is not None and story.call.report is not None and story.call.report.advice:
        print(f"Next time: {shown(story.call.report.advice)}")
    return ExitStatus.OK


def _headline(call_id: str, call: Call | None) -> str:
    if call is None:
        return f"Call {shown(call_id)}, not in the history itself:"
    command = command_line(call.intent.command, most=200)
    return f"Call {call.id} of session {shown(call.session)}, {call.state}: {command}"


def lines_of(events: Sequence[Event]) -> list[str]:
    """Each decision as a line, its numbers indented below; times are local and since the first."""
    lines = []
    first = next((each.at for each in events if each.at is not None), None)
    for event in events:
        scope = "" if event.call_id else "session " if event.session else "host "
        mark = " (dry run)" if event.dry_run else ""
        head = f"{_moment(event.at)}  {_since(event.at, first):>11}  "
        told = f"{scope}{event.action} by {event.actor}{mark}: {shown(event.reason)}"
        lines += textwrap.wrap(
            told, _WIDTH, initial_indent=head, subsequent_indent=_INDENT, break_on_hyphens=False
        )
        facts = grounds_of(event)
        if event.deadline_at is not None:
            facts.append(f"until {_moment(event.deadline_at)}")
        lines += textwrap.wrap(
            "; ".join(facts),
            _WIDTH,
            initial_indent=_INDENT,
            subsequent_indent=_INDENT,
            break_on_hyphens=False,
        )
    return lines


def grounds_of(event: Event) -> list[str]:
    """`memory_max_bytes` 1073741824 as "memory max 1 GiB", by name."""
    told = {name: _worded(name, number) for name, number in event.numbers.items()}
    told |= {name: f"{name.replace('_', ' ')} {shown(word)}" for name, word in event.words.items()}
    return [told[name] for name in sorted(told)]


def _worded(name: str, number: int) -> str:
    if name.endswith("_bytes_per_s"):
        return f"{name.removesuffix('_bytes_per_s').replace('_', ' ')} {size(number)} a second"
    stem, _, unit = name.rpartition("_")
    show = _UNITS.get(unit)
    return (
        f"{stem.replace('_', ' ')} {show(number)}" if show and stem else f"{name.replace('_', ' ')} {number}"
    )


def _moment(at: datetime | None) -> str:
    if at is None:
        return NOTHING
    return f"{clock(at)}.{at.microsecond // 1000:03}"


def _since(at: datetime | None, first: datetime | None) -> str:
    if at is None or first is None:
        return ""
    return f"+{(at - first).total_seconds():.3f} s"
