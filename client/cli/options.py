"""Options and clients that several commands share, so that they read and mean the same everywhere."""

import argparse
from collections.abc import Callable
from typing import Any, Final

from agentcgroup.client import places
from agentcgroup.client.agent_client import Client
from agentcgroup.client.arguments import BudgetArguments, IntentArguments
from agentcgroup.client.cli.naming import BUDGET_OPTIONS, LIMITS_OPTIONS
from agentcgroup.client.cli.statuses import as_help
from agentcgroup.client.errors import InvalidRequest
from agentcgroup.client.operator_client import OperatorClient
from agentcgroup.client.values import Priority

Run = Callable[[argparse.Namespace], int]
# argparse calls what add_subparsers returns a private name.
Subparsers = Any

_MOST_WHOLE: Final = 2**32 - 1
_JSON_HELP: Final = "print JSON with the field names of proto/v1; errors are a JSON line on standard error"


def add_command(
    subparsers: Subparsers,
    name: str,
    run: Run,
    *,
    summary: str,
    description: str = "",
    examples: tuple[str, ...] = (),
) -> argparse.ArgumentParser:
    """A subcommand with --json, examples and its exit statuses in its help."""
    told = "Examples:\n" + "".join(f"  {each}\n" for each in examples) + "\n" if examples else ""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name,
        help=summary,
        description=description or f"{summary[0].upper()}{summary[1:]}.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.epilog = told + as_help(parser.prog.partition(" ")[2])
    parser.add_argument("--json", action="store_true", help=_JSON_HELP)
    parser.set_defaults(run=run, parser=parser, option_names={})
    return parser


def add_group(subparsers: Subparsers, name: str, *, summary: str, description: str) -> Subparsers:
    """A command that has subcommands of its own."""
    parser = subparsers.add_parser(
        name,
        help=summary,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    return parser.add_subparsers(metavar="COMMAND", required=True, dest=f"{name}_command")


def add_operator_socket(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--socket",
        metavar="PATH",
        help=f"the operator socket, default ${places.OPERATOR_SOCKET_VARIABLE}, else {places.DEFAULT_OPERATOR_SOCKET}",
    )


def add_session_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--session-dir",
        metavar="DIR",
        help=f"the session's directory, default ${places.SESSION_DIR_VARIABLE}, else {places.DEFAULT_SESSION_DIR}",
    )


def add_either(parser: argparse.ArgumentParser, *, which: bool) -> None:
    """Options of a command that agents use for their own session and operators for any; `which`: also --session, --all."""
    add_operator_socket(parser)
    add_session_dir(parser)
    if which:
        group = parser.add_mutually_exclusive_group()
        group.add_argument("--session", metavar="NAME", default="", help="as operator: only this session")
        group.add_argument("--all", action="store_true", help="as operator: every session")


def is_operator(arguments: argparse.Namespace) -> bool:
    """Whether a command of `add_either` asks as operator: when told to, or when there is no session around it."""
    asked = bool(arguments.socket or getattr(arguments, "session", "") or getattr(arguments, "all", False))
    if asked and arguments.session_dir:
        raise InvalidRequest(
            "--session-dir asks as an agent, --socket, --session and --all as operator", "Use one of them"
        )
    return asked or not (arguments.session_dir or places.is_inside_session())


def operator_client(arguments: argparse.Namespace) -> OperatorClient:
    return OperatorClient(arguments.socket)


def agent_client(arguments: argparse.Namespace) -> Client:
    return Client(arguments.session_dir)


def add_reason(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--reason", default="", metavar="TEXT", help="told to the agent and kept in the history"
    )


def add_labels(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--label",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a free mark; may be repeated",
        dest="labels",
    )


def labels_of(arguments: argparse.Namespace) -> dict[str, str]:
    """The --label options. Raises InvalidRequest."""
    labels: dict[str, str] = {}
    for text in arguments.labels:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise InvalidRequest(f"--label {text!r} is not KEY=VALUE", field="labels")
        if key in labels:
            raise InvalidRequest(f"--label {key} is given twice", field="labels")
        labels[key] = value
    return labels


def whole(text: str) -> int:
    """A type for argparse: a number as pids, uids and counts are, which the API carries in 32 bits."""
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no whole number from 0 up")
    if len(text) > 10 or int(text) > _MOST_WHOLE:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is more than {_MOST_WHOLE}")
    return int(text)


def add_budget(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(option_names=BUDGET_OPTIONS)
    group = parser.add_argument_group(
        "budget", "What the session may use in all. Left out: the daemon's default, or unchanged."
    )
    group.add_argument("--memory", metavar="SIZE", help="memory of agent and tools together: 4G")
    group.add_argument(
        "--agent-memory", metavar="SIZE", help="part of it kept for the agent; its tools never reach it"
    )
    group.add_argument("--swap", metavar="SIZE", help="most swap, 0 for none")
    group.add_argument("--cpu", metavar="CPUS", help="CPU cap: 2 or 1500m")
    group.add_argument("--weight", metavar="N", type=whole, help="share against other sessions, 1 to 10000")
    group.add_argument("--pids", metavar="N", type=whole, help="most processes and threads")
    group.add_argument("--calls", metavar="N", type=whole, help="most calls at once")
    priorities = [each.value for each in Priority]
    group.add_argument("--priority", choices=priorities, help="who is served first when the host is short")


def add_transparent(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--transparent",
        metavar="RULE",
        help="commands that become calls without agentcg run: off, agent (what the agent starts), outside (docker exec)"
        " or all; with patterns: all,exclude=git,exclude=rg* or agent,include=pytest",
    )


def budget_of(arguments: argparse.Namespace) -> BudgetArguments:
    return BudgetArguments(
        memory=arguments.memory,
        agent_memory=arguments.agent_memory,
        swap=arguments.swap,
        cpu=arguments.cpu,
        weight=arguments.weight,
        pids=arguments.pids,
        calls=arguments.calls,
    )


def add_limits(parser: argparse.ArgumentParser) -> None:
    """The limits that a running call can be given anew."""
    parser.set_defaults(option_names=LIMITS_OPTIONS)
    group = parser.add_argument_group("limits", "Left out: unchanged.")
    group.add_argument("--memory", metavar="SIZE", help="memory it is expected to need: 2G")
    group.add_argument("--memory-max", metavar="SIZE", help="memory at which it is stopped")
    group.add_argument("--cpu", metavar="CPUS", help="CPU cap: 1.5 or 1500m")
    group.add_argument(
        "--weight", metavar="N", type=whole, help="share against its sibling calls, 1 to 10000"
    )
    group.add_argument("--pids", metavar="N", type=whole, help="most processes and threads")
    group.add_argument(
        "--timeout", metavar="TIME", help="killed when it has run this long since its start: 10m"
    )


def limits_of(arguments: argparse.Namespace) -> IntentArguments:
    """The limits given. Raises InvalidRequest when there are none."""
    limits = IntentArguments(
        memory=arguments.memory,
        memory_max=arguments.memory_max,
        cpu=arguments.cpu,
        weight=arguments.weight,
        pids=arguments.pids,
        timeout=arguments.timeout,
    )
    if all(each is None for each in limits.values()):
        raise InvalidRequest("nothing to change", "Give at least one limit, for example --memory-max 3G")
    return limits
