"""`agentcg host`: empty the host, fill it again, reload its configuration."""

import argparse
import time
from typing import Final

from agentcgroup.client.cli import options
from agentcgroup.client.cli.naming import DRAIN_OPTIONS
from agentcgroup.client.cli.output import print_json, shown
from agentcgroup.client.cli.statuses import ExitStatus

# How often --wait asks how many calls are left.
_ASK_S: Final = 1.0


def add_parser(subparsers: options.Subparsers) -> None:
    group = options.add_group(
        subparsers,
        "host",
        summary="empty the host for maintenance, reload the configuration",
        description="For operators. What the host can enforce: agentcg check.",
    )
    drain = options.add_command(
        group,
        "drain",
        _drain,
        summary="let nothing new begin; what runs may finish",
        description="From now on no session and no call begins; agents are told why. Calls that run may finish, calls\n"
        "inside them may begin. With --deadline what still runs then is killed. `agentcg host resume` takes it back.",
        examples=(
            "agentcg host drain --reason 'kernel update' --wait",
            "agentcg host drain --deadline 10m --wait --json",
        ),
    )
    drain.set_defaults(option_names=DRAIN_OPTIONS)
    options.add_reason(drain)
    drain.add_argument("--deadline", metavar="TIME", help="kill what still runs after this: 10m")
    drain.add_argument("--wait", action="store_true", help="return when no call runs any more")
    options.add_operator_socket(drain)
    resume = options.add_command(
        group,
        "resume",
        _resume,
        summary="end a drain: calls and sessions may begin again",
    )
    options.add_operator_socket(resume)
    reload = options.add_command(
        group,
        "reload",
        _reload,
        summary="read the configuration file again; nothing that runs ends",
        description="Reads the daemon's configuration file again and says what changed. Defaults of sessions and calls\n"
        "and the bounds on their number are in force at once; what needs a start of the daemon is said. A wrong file\n"
        "changes nothing. The same as systemctl reload agentcgroup, or SIGHUP, which only logs.",
    )
    options.add_operator_socket(reload)


def _drain(arguments: argparse.Namespace) -> int:
    with options.operator_client(arguments) as client:
        live = client.drain_host(reason=arguments.reason, deadline=arguments.deadline)
        shown_live = live
        if not arguments.json:
            print(f"draining: {live} calls run", flush=True)
        while arguments.wait and live:
            time.sleep(_ASK_S)
            live = client.host().calls_live
            if live != shown_live and not arguments.json:
                print(f"draining: {live} calls run", flush=True)
                shown_live = live
    if arguments.json:
        print_json({"calls_live": live})
    return ExitStatus.OK


def _resume(arguments: argparse.Namespace) -> int:
    with options.operator_client(arguments) as client:
        was_draining = client.resume_host()
    if arguments.json:
        print_json({"was_draining": was_draining})
    else:
        print("calls may begin again" if was_draining else "the host was not being drained")
    return ExitStatus.OK


def _reload(arguments: argparse.Namespace) -> int:
    with options.operator_client(arguments) as client:
        changes = client.reload_configuration()
    if arguments.json:
        print_json(changes)
        return ExitStatus.OK
    for each in changes:
        when = "" if each.is_live else "  (takes effect at the next start of agentcgroupd)"
        print(f"{each.key}: {shown(each.old_value)} -> {shown(each.new_value)}{when}")
    if not changes:
        print("nothing has changed")
    return ExitStatus.OK
