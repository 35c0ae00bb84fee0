"""Entry of `agentcg` for everything but `run`: reads the command line, carries out the command, words its failure."""

import argparse
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from agentcgroup import __version__
from agentcgroup.client.cli import (
    call,
    check,
    explain,
    history,
    host,
    limits,
    output,
    replay,
    session,
    watch,
)
from agentcgroup.client.cli.statuses import ExitStatus, as_help, status_of
from agentcgroup.client.errors import ClientError, InvalidRequest


class _WrongCommandLine(Exception):
    """`usage`: of the command that was meant, as far as that is known."""

    def __init__(self, cause: str, parser: argparse.ArgumentParser) -> None:
        super().__init__(cause)
        self.error = InvalidRequest(cause, f"See `{parser.prog} --help`")
        self.usage = parser.format_usage()


class _Parser(argparse.ArgumentParser):
    """One that raises what is wrong, so that it is told as every error is. Its subcommands' parsers are of its class."""

    def error(self, message: str) -> NoReturn:
        raise _WrongCommandLine(message, self)


def build_parser() -> argparse.ArgumentParser:
    """The parser of everything that is not native."""
    parser = _Parser(
        prog="agentcg",
        description="Runs and watches the tool calls of coding agents, each in a kernel resource domain of its own.",
        epilog=as_help(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"agentcg {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True, dest="command")
    # Here for its name; the launcher carries it out without coming this way.
    subparsers.add_parser(
        "run", help="run a command as a tool call (native: agentcg run --help)", add_help=False
    )
    for module in (limits, watch, session, call, explain, history, replay, host, check):
        module.add_parser(subparsers)
    return parser


def _parse(words: Sequence[str]) -> argparse.Namespace:
    # argparse would give what stands behind -- to the first positional that takes more than one word.
    head, behind = list(words), None
    if "--" in head:
        at = head.index("--")
        head, behind = head[:at], head[at + 1 :]
    parser = build_parser()
    arguments, unknown = parser.parse_known_args(head)
    if arguments.command == "run":
        parser.error("run stands first: agentcg run OPTIONS -- COMMAND")
    # Told by the command that was meant, not by agentcg itself.
    if unknown:
        arguments.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if behind is not None and not hasattr(arguments, "takes_behind"):
        arguments.parser.error(f"nothing can stand behind -- here: {' '.join(behind)}")
    arguments.behind = behind
    return arguments


def carry_out(words: Sequence[str]) -> int:
    """Carries out the command in `words` and returns its exit status; --help and --version are SystemExit."""
    if words[:1] == ["run"]:
        print("agentcg: run is native: call the agentcg command, not its Python part", file=sys.stderr)
        return ExitStatus.INVALID
    try:
        arguments = _parse(words)
    except _WrongCommandLine as wrong:
        json_wanted = "--json" in words[: words.index("--") if "--" in words else len(words)]
        if not json_wanted:
            print(wrong.usage, end="", file=sys.stderr)
        output.complain(wrong.error, json_wanted=json_wanted, exit_status=ExitStatus.INVALID)
        return ExitStatus.INVALID
    try:
        status: int = arguments.run(arguments)
        return status
    except ClientError as error:
        status = status_of(error)
        output.complain(
            error, json_wanted=arguments.json, exit_status=status, option_names=arguments.option_names
        )
        return status
    except KeyboardInterrupt:
        return ExitStatus.INTERRUPTED


def main() -> int:
    """The entry point: carries out the process's command line."""
    # A reader that has seen enough (agentcg history | head) ends this program as it ends any other.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    return carry_out(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
