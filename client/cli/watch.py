"""`agentcg watch`: what happens to calls, as it happens."""

import argparse
from collections.abc import Iterator

from agentcgroup.client.cli import options
from agentcgroup.client.cli.output import NOTHING, clock, print_json_line, shown
from agentcgroup.client.cli.statuses import ExitStatus
from agentcgroup.client.values import Feedback


def add_parser(subparsers: options.Subparsers) -> None:
    parser = options.add_command(
        subparsers,
        "watch",
        _watch,
        summary="what happens to calls, as it happens",
        description="Prints every message of the session around this process, or as operator of one session or of all,\n"
        "until it is interrupted. With --json one JSON document a line. Outside any session it asks as operator for all.",
        examples=("agentcg watch", "sudo agentcg watch --all --json | jq -r .message"),
    )
    options.add_either(parser, which=True)
    parser.add_argument("--call", metavar="ID", default="", help="only this call and what runs inside it")


def _messages(arguments: argparse.Namespace) -> Iterator[Feedback]:
    if options.is_operator(arguments):
        with options.operator_client(arguments) as operator:
            for message in operator.watch(arguments.session):
                # The stream of an operator is by session; a hello belongs to no call.
                if arguments.call in ("", message.call_id):
                    yield message
    else:
        with options.agent_client(arguments) as agent:
            yield from agent.watch(arguments.call)


def _watch(arguments: argparse.Namespace) -> int:
    lost = 0
    for message in _messages(arguments):
        if arguments.json:
            print_json_line(message)
            continue
        if message.lost > lost:
            print(f"{message.lost - lost} messages were lost: this reader was too slow", flush=True)
            lost = message.lost
        print(
            f"{clock(message.at)}  {shown(message.session) or NOTHING}  {shown(message.call_id) or NOTHING}  "
            f"{message.kind or NOTHING}  {shown(message.message)}",
            flush=True,
        )
        if message.advice:
            print(f"          {shown(message.advice)}", flush=True)
    return ExitStatus.OK
