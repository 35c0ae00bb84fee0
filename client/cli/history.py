"""`agentcg history`: ended calls."""

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
        description="Ended calls, newest first. For operators.",
        examples=(
            "agentcg history --session reviewer --verdict memory_limit_call",
            "agentcg history --limit 1000 --json",
        ),
    )
    parser.add_argument(
        "--session", metavar="NAME", default="", help="only of this session, also when it is gone"
    )
    parser.add_argument(
        "--verdict", choices=[*Verdict], metavar="VERDICT", help=f"one of {', '.join(Verdict)}"
    )
    parser.add_argument(
        "--limit", type=int, default=DEFAULT_HISTORY_LIMIT, metavar="N", help="default %(default)s"
    )
    options.add_operator_socket(parser)


def _history(arguments: argparse.Namespace) -> int:
    if arguments.limit < 1:
        raise InvalidRequest(f"--limit {arguments.limit} is less than 1", field="limit")
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
