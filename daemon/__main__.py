"""agentcgroupd: arguments, configuration, exit status."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from agentcgroup import __version__
from agentcgroup.daemon import config as configuration

_OK: Final = 0
_FAILED: Final = 1
_USAGE: Final = 2
_RUNNING: Final = 3
_UNFIT: Final = 4

_EPILOG: Final = f"""\
examples:
  agentcgroupd                           run with {configuration.DEFAULT_PATH}, or the defaults without it
  agentcgroupd --check-host              what this host can do, what it cannot, and what that costs
  agentcgroupd --check-config -c my.toml read a configuration and say what is wrong with it
  agentcgroupd --dry-run                 answer and log everything, change nothing

exit status:
  {_OK}  stopped as told     {_FAILED}  failed          {_USAGE}  wrong arguments or configuration
  {_RUNNING}  another one runs    {_UNFIT}  this host cannot (yet): the message says what is missing

Agents and operators talk to the daemon with `agentcg`; see `agentcg --help`.
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="agentcgroupd",
        description="Give every tool call of every coding agent on this host its own cgroup, with limits and a report.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "-c",
        "--config",
        type=Path,
        metavar="FILE",
        help=f"configuration, default {configuration.DEFAULT_PATH}",
    )
    parser.add_argument(
        "--check-config", action="store_true", help="read the configuration, say what is wrong, and end"
    )
    parser.add_argument(
        "--check-host", action="store_true", help="probe what this host can do, print it, and end"
    )
    parser.add_argument(
        "--json", action="store_true", help="with --check-host or --check-config: print JSON"
    )
    parser.add_argument(
        "--no-bpf", action="store_true", help="load no BPF programs, whatever bpf.enabled says"
    )
    parser.add_argument("--dry-run", action="store_true", help="say every action, do none")
    parser.add_argument(
        "--log-level", choices=["debug", "info", "warning", "error"], help="overrides daemon.log_level"
    )
    parser.add_argument("--version", action="version", version=f"agentcgroupd {__version__}")
    return parser


def _load(arguments: argparse.Namespace) -> configuration.Config:
    config = configuration.load(arguments.config)
    daemon = config.daemon
    if arguments.dry_run:
        daemon = msgspec.structs.replace(daemon, dry_run=True)
    if arguments.log_level:
        daemon = msgspec.structs.replace(daemon, log_level=arguments.log_level)
    bpf = msgspec.structs.replace(config.bpf, enabled="off") if arguments.no_bpf else config.bpf
    return msgspec.structs.replace(config, daemon=daemon, bpf=bpf)


def _leave_out_tls() -> None:
    """Lets asyncio be as on a Python without OpenSSL: 5 MB that a daemon with local sockets only would never use.

    Whoever needs ssl later, as the Docker SDK, imports it as ever. (A name that is None in sys.modules cannot be imported:
    the language reference, 5.3.1.)
    """
    if "ssl" in sys.modules:
        return
    sys.modules["ssl"] = None  # type: ignore[assignment]
    try:
        import asyncio  # noqa: F401
    finally:
        del sys.modules["ssl"]


def _serve(config: configuration.Config, load: Callable[[], configuration.Config]) -> int:
    # Imported here so that --help and --check-config do not load gRPC.
    _leave_out_tls()
    import asyncio

    from agentcgroup.daemon import app, logs

    logs.configure(config.daemon.log_level, config.daemon.log_format)
    try:
        asyncio.run(app.run(config, load))
    except app.AlreadyRunning as error:
        print(f"agentcgroupd: {error}", file=sys.stderr)
        return _RUNNING
    except app.HostUnfit as error:
        print(f"agentcgroupd: {error}", file=sys.stderr)
        return _UNFIT
    except PermissionError as error:
        print(f"agentcgroupd: {error}. The daemon needs to be root", file=sys.stderr)
        return _UNFIT
    return _OK


def main() -> int:
    arguments = _parser().parse_args()
    try:
        config = _load(arguments)
        if arguments.check_config:
            if arguments.json:
                sys.stdout.write(msgspec.json.encode(config).decode() + "\n")
            else:
                path = arguments.config or configuration.DEFAULT_PATH
                print(
                    f"{path}: good" if path.exists() else f"{path} is not there: the defaults are in force"
                )
            return _OK
        if arguments.check_host:
            from agentcgroup.daemon.host import capabilities

            return capabilities.report(config, as_json=arguments.json)
        return _serve(config, lambda: _load(arguments))
    except configuration.ConfigError as error:
        print(f"agentcgroupd: {error}", file=sys.stderr)
        return _USAGE


if __name__ == "__main__":
    sys.exit(main())
