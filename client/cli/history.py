"""`agentcg history`: ended calls, and the decisions of the daemon."""

import argparse
import sys
from pathlib import Path

from agentcgroup.client import exporting, recordings
from agentcgroup.client.cli import options
from agentcgroup.client.cli.explain import grounds_of
from agentcgroup.client.cli.output import (
    NOTHING,
    clock,
    command_line,
    cpu,
    cpu_time,
    duration,
    print_facts,
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
        "--verdict",
        choices=[each.value for each in Verdict],
        metavar="VERDICT",
        help=f"one of {', '.join(Verdict)}",
    )
    options.add_operator_socket(parser)
    commands = parser.add_subparsers(metavar="COMMAND", dest="history_command")
    events = options.add_command(
        commands,
        "events",
        _events,
        summary="what was decided, newest first: about calls, sessions and the host",
        description="Every decision of the daemon and of operators, newest first. The story of one call: agentcg explain.\n"
        "A refused intent never became a call, so it is here and nowhere else: what it asked for and what there was,\n"
        "with --numbers or --json.",
        examples=("agentcg history events --session reviewer --numbers",),
    )
    _add_session_and_limit(events)
    events.add_argument("--call", metavar="ID", default="", help="only about this call")
    events.add_argument(
        "--numbers",
        action="store_true",
        help="also what each decision was made from, as agentcg explain tells it",
    )
    options.add_operator_socket(events)

    suggestion = options.add_command(
        commands,
        "suggest",
        _suggest,
        summary="what runs of a command needed so far, and so what to declare",
        description="The figure that runs of this kind of command give, and where it comes from. A kind is a project and a\n"
        "program with its verb. Runs that were killed count as at least what they reached. Inside a session it is about\n"
        "the session's project, for operators about --project.",
        examples=(
            "agentcg history suggest -- pytest -q",
            "agentcg run --memory $(agentcg history suggest --json -- make test | jq .memory_bytes) -- make test",
        ),
    )
    suggestion.add_argument("--project", metavar="NAME", default="", help="the label project of the calls")
    # What stands behind -- is set aside before argparse sees it; this catches a command without --.
    suggestion.add_argument("command_line", nargs="*", metavar="-- COMMAND", help="the command line")
    suggestion.set_defaults(takes_behind=True)
    options.add_either(suggestion, which=False)

    export = options.add_command(
        commands,
        "export",
        _export,
        summary="write a recording that `agentcg replay` plays",
        description="Ended calls as a recording: when each began, how long it ran, what it declared and took; no command\n"
        "line and no label. The history knows peaks, not curves, and nothing of agents' own memory; docs/recordings.md\n"
        "says what that means for a replay.",
        examples=("agentcg history export --session reviewer -o reviewer.jsonl",),
    )
    _add_session_and_limit(export)
    export.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: standard output")
    options.add_operator_socket(export)


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
    headers = ["AT", "SESSION", "CALL", "ACTION", "BY", "WHY"]
    rows = [
        [
            clock(each.at),
            each.session or NOTHING,
            each.call_id or NOTHING,
            each.action,
            each.actor,
            each.reason,
        ]
        for each in events
    ]
    if arguments.numbers:
        headers.append("FROM")
        for row, event in zip(rows, events, strict=True):
            row.append("; ".join(grounds_of(event)))
    print_table(headers, rows, empty="No decisions match.")
    return ExitStatus.OK


def _suggest(arguments: argparse.Namespace) -> int:
    command = [*arguments.command_line, *(arguments.behind or ())]
    if not command:
        raise InvalidRequest("there is no command", "Write it behind --, for example -- pytest -q")
    if options.is_operator(arguments):
        with options.operator_client(arguments) as operator:
            found = operator.suggestion(command, project=arguments.project)
    else:
        with options.agent_client(arguments) as agent:
            found = agent.suggestion(command, project=arguments.project)
    if arguments.json:
        print_json(found)
        return ExitStatus.OK
    seen = f"{size(found.memory_seen_bytes)}{' and more' if found.memory_is_at_least else ''}"
    print_facts(
        [
            (
                "kind",
                f"{found.command_class or NOTHING}, {f'project {found.project}' if found.project else 'no project'}",
            ),
            (
                "declare",
                f"--memory {found.memory_bytes >> 20}M"
                if found.memory_bytes is not None
                else "nothing learned yet",
            ),
            (
                "needed",
                f"{seen}, median {size(found.memory_median_bytes)}"
                if found.memory_seen_bytes is not None
                else "",
            ),
            (
                "takes",
                duration(found.expected_duration_ms) if found.expected_duration_ms is not None else "",
            ),
            ("CPU", cpu(found.cpu_milli) if found.cpu_milli is not None else ""),
            ("runs", f"{found.runs} completed, {found.killed_runs} killed or ended early"),
            ("why", found.reason),
        ]
    )
    return ExitStatus.OK


def _export(arguments: argparse.Namespace) -> int:
    _check_limit(arguments)
    with options.operator_client(arguments) as client:
        entries = list(client.history(arguments.session, limit=arguments.limit))
        known = exporting.priorities(client, sorted({each.report.session for each in entries}))
    recording = exporting.recording_of(entries, known, note="agentcg history export")
    if not recording.calls:
        raise InvalidRequest("no ended call matches: there is nothing to export", "See `agentcg history`")
    if arguments.output is None:
        recordings.write(recording, sys.stdout)
        return ExitStatus.OK
    try:
        with arguments.output.open("w", encoding="utf-8") as file:
            recordings.write(recording, file)
    except OSError as error:
        raise InvalidRequest(f"{arguments.output} cannot be written: {error}", field="output") from error
    told = {
        "file": str(arguments.output),
        "sessions": len(recording.sessions),
        "calls": len(recording.calls),
        "calls_of_unknown_memory": sum(
            each.memory_peak_bytes is None and not each.memory.offset_ms for each in recording.calls
        ),
        "limit_reached": len(entries) == arguments.limit,
    }
    if arguments.json:
        print_json(told)
        return ExitStatus.OK
    calls, sessions = _counted(len(recording.calls), "call"), _counted(len(recording.sessions), "session")
    print(f"{calls} of {sessions} written to {told['file']}.")
    if told["limit_reached"]:
        print(f"These are the newest {arguments.limit}; with --limit there may be more.")
    if told["calls_of_unknown_memory"]:
        print(
            f"Of {_counted(told['calls_of_unknown_memory'], 'call')} no memory is known, as without a memory controller:"
            " a replay takes none for them."
        )
    return ExitStatus.OK


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
