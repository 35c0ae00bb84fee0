"""`agentcg history`: ended calls, and the decisions of the daemon."""

import argparse

from agentcgroup.client.cli import options
from agentcgroup.client.cli.output import (
    clock,
    command_line,
    cpu_time,
    duration,
    print_json,
    print_table,
    size,
)
from agentcgroup.client.cli.statuses import ExitStatus
from agentcgroup.client.errors import InvalidRequest
from agentcgroup.client.operator_client import DEFAULT_HISTORY_LIMIT
from agentcgroup.client.values import Verdict


def add_parser(subparsers: options.Subparsers) -> None:
    parser = options.add_command(
        subparsers,
        "history",
        _history,
        summary="ended calls: what they asked for, what they used, how they ended",
        description="Ended calls, newest first. For operators. With COMMAND: what else the history can tell.",
        examples=(
            "agentcg history --session reviewer --verdict memory_limit_call",
            "agentcg history --limit 1000 --json",
            "agentcg history events --session reviewer",
        ),
    )
    _add_session_and_limit(parser)
    parser.add_argument(
        "--verdict", choices=[*Verdict], metavar="VERDICT", help=f"one of {', '.join(Verdict)}"
    )
    options.add_operator_socket(parser)
    commands = parser.add_subparsers(metavar="COMMAND", dest="history_command")
    events = options.add_command(
        commands,
        "events",
        _events,
        summary="what was decided, newest first: about calls, sessions and the host",
        description="Every decision of the daemon and of operators, newest first. The story of one call: agentcg explain.",
    )
    _add_session_and_limit(events)
    events.add_argument("--call", metavar="ID", default="", help="only about this call")
    options.add_operator_socket(events)


def _add_session_and_limit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--session", metavar="NAME", default="", help="only of this session, also when it is gone"
    )
    parser.add_argument(
        "--limit", type=int, default=DEFAULT_HISTORY_LIMIT, metavar="N", help="default %(default)s"
    )


def _check_limit(arguments: argparse.Namespace) -> None:
    if arguments.limit < 1:
        raise InvalidRequest(f"--limit {arguments.limit} is less than 1", field="limit")


def _history(arguments: argparse.Namespace) -> int:
    _check_limit(arguments)
    verdict = Verdict(arguments.verdict) if arguments.verdict else None
    with options.operator_client(arguments) as client:
        entries = list(client.history(arguments.session, verdict=verdict, limit=arguments.limit))
    if arguments.json:
        print_json(entries)
        return ExitStatus.OK
    print_table(
        ("ENDED", "CALL", "SESSION", "VERDICT", "DECLARED", "PEAK", "CPU", "RAN", "COMMAND"),
        [
            (
                clock(each.report.ended_at), each.report.call_id, each.report.session, each.report.verdict,
                size(each.intent.memory_bytes), size(each.report.usage.memory_peak_bytes),
                cpu_time(each.report.usage.cpu_usage_us), duration(each.report.duration_ms),
                command_line(each.intent.command),
            )
            for each in entries
        ],
        empty="No ended calls match.",
    )  # fmt: skip
    return ExitStatus.OK


def _events(arguments: argparse.Namespace) -> int:
    _check_limit(arguments)
    with options.operator_client(arguments) as client:
        events = list(client.events(arguments.session, call_id=arguments.call, limit=arguments.limit))
    if arguments.json:
        print_json(events)
        return ExitStatus.OK
    print_table(
        ("AT", "SESSION", "CALL", "ACTION", "BY", "WHY"),
        [
            (clock(each.at), each.session or "-", each.call_id or "-", each.action, each.actor, each.reason)
            for each in events
        ],
        empty="No decisions match.",
    )
    return ExitStatus.OK
