"""`agentcg check`: what this host can enforce, what it cannot, what that costs and what to do about it."""

import argparse
import os
from typing import Any

from agentcgroup import __version__
from agentcgroup.client.cli import options
from agentcgroup.client.cli.output import age, as_json, clock, cpu, print_facts, print_json, shown, size
from agentcgroup.client.cli.statuses import ExitStatus, status_of
from agentcgroup.client.errors import ClientError, Denied, Unreachable
from agentcgroup.client.values import Host

# What GetHost says of a host on which not even the first tier works.
_NO_TIER = "none"


def add_parser(subparsers: options.Subparsers) -> None:
    parser = options.add_command(
        subparsers,
        "check",
        _check,
        summary="what this host can enforce, what it cannot, and what that costs",
        description="Asks the daemon what this host can do, and prints for everything missing what that costs and how\n"
        "to get it. Without a daemon: agentcgroupd --check-host tries the same without starting one.",
    )
    options.add_operator_socket(parser)


def _check(arguments: argparse.Namespace) -> int:
    client = options.operator_client(arguments)
    try:
        with client:
            host = client.host()
    except (Unreachable, Denied) as error:
        return _without_daemon(arguments, client.socket, error)
    if arguments.json:
        print_json({"reachable": True, **as_json(host)})
    else:
        _tell(host)
    return ExitStatus.NOTHING_ENFORCED if host.tier == _NO_TIER else ExitStatus.OK


def _tell(host: Host) -> None:
    usage = host.daemon_usage
    reserved = f"{size(host.memory_reserved_bytes)} of {size(host.memory_capacity_bytes)} reserved"
    print_facts(
        [
            (
                "daemon",
                f"agentcgroupd {host.version}, up {age(host.started_at)}, {size(host.daemon_rss_bytes)} RSS",
            ),
            ("", ""),
            ("", "dry run: it says every action and does none" if host.dry_run else ""),
            ("kernel", host.kernel),
            ("tier", host.tier),
            ("cgroups", host.cgroup_root),
            ("memory", reserved),
            ("CPU", cpu(host.cpu_capacity_milli)),
            ("CPU scheduler", _scheduler(host)),
            ("draining", _draining(host)),
            ("now", f"{host.sessions} sessions, {host.calls_live} calls"),
            ("daemon's peak", size(usage.memory_peak_bytes) if usage.memory_peak_bytes is not None else ""),
        ]
    )
    print()
    width = max((len(each.name) for each in host.capabilities), default=0)
    for each in sorted(host.capabilities, key=lambda capability: not capability.available):
        print(
            f"{'yes' if each.available else 'NO ':3}  {each.name.ljust(width)}  {each.tier:6}  {shown(each.detail)}"
        )
        for word, text in (("costs", each.cost), ("remedy", each.remedy)):
            if text:
                print(f"     {' ' * width}          {word}: {shown(text)}")


def _scheduler(host: Host) -> str:
    """Without a word from an older daemon, nothing."""
    ours = host.scheduler
    if ours.state in ("", "off"):
        return "the kernel's own" if ours.state else ""
    said = f"ours, {ours.mode}" if ours.state == "attached" else f"the kernel's own; ours is {ours.state}"
    often = "once" if ours.ejections == 1 else f"{ours.ejections} times"
    thrown = f"; thrown off {often}" if ours.ejections else ""
    return said + thrown + (f": {shown(ours.reason)}" if ours.reason else "")


def _draining(host: Host) -> str:
    if host.drain is None:
        return ""
    until = f", killed at {clock(host.drain.deadline)}" if host.drain.deadline else ""
    return f"yes, nothing new begins{until}: {shown(host.drain.reason) or 'no reason given'}"


def _without_daemon(arguments: argparse.Namespace, socket: str, error: ClientError) -> int:
    """Prints what can be known without a daemon, which is little; the error itself goes the way of every error."""
    known: dict[str, Any] = {
        "reachable": False,
        "socket": socket,
        "client_version": __version__,
        "kernel": os.uname().release,
        "cause": error.cause,
        "next_step": error.next_step,
    }
    if arguments.json:
        print_json(known)
        return status_of(error)
    print_facts(
        [
            ("daemon", f"no answer: {error.cause}"),
            ("", error.next_step),
            ("kernel", known["kernel"]),
            ("agentcg", __version__),
        ]
    )
    print("\nWhat this host can do is for the daemon to say. Without starting it: agentcgroupd --check-host")
    return status_of(error)
