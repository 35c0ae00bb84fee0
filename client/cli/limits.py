"""`agentcg limits`: the true limits of the call or the session this process is in."""

import argparse

from agentcgroup.client.cli import options
from agentcgroup.client.cli.output import NOTHING, count, cpu, print_facts, print_json, size
from agentcgroup.client.cli.statuses import ExitStatus


def add_parser(subparsers: options.Subparsers) -> None:
    parser = options.add_command(
        subparsers,
        "limits",
        _limits,
        summary="the true limits here, what is used and what is free now",
        description="What the call around this process may use or, outside any call, the session in all; and what one more\n"
        "call could be granted now. Size thread pools and batch sizes by it, not by what the host has.",
        examples=(
            "agentcg limits",
            "make -j$(agentcg limits --json | jq '.cpu_available_milli / 1000 | ceil')",
        ),
    )
    options.add_session_dir(parser)


def _limits(arguments: argparse.Namespace) -> int:
    with options.agent_client(arguments) as client:
        limits = client.limits()
    if arguments.json:
        print_json(limits)
        return ExitStatus.OK
    budget, call = limits.budget, limits.call
    usage = limits.usage if call is None else call.usage
    print_facts(
        [
            ("session", f"{limits.session}, priority {limits.priority or NOTHING}"),
            ("call", call.id if call is not None else ""),
            ("room", str(limits.level or "")),
            (
                "memory",
                f"{size(budget.memory_max_bytes)}, of it {size(budget.agent_memory_bytes)} for the agent"
                if call is None
                else f"{size(limits.memory_max_bytes)}, of it {size(call.limits.memory_bytes)} reserved",
            ),
            ("  used", size(usage.memory_current_bytes)),
            (
                "  one more call" if call is None else "  a call inside",
                f"up to {size(limits.memory_available_bytes)}",
            ),
            ("CPU", cpu(limits.cpu_available_milli)),
            ("processes", f"{count(usage.pids_current)} now, {limits.pids_available} more"),
            ("calls", f"{count(budget.calls_max)} at once" if call is None else ""),
            *((("not enforced", each)) for each in limits.not_enforced),
        ]
    )
    return ExitStatus.OK
