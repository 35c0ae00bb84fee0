"""`agentcg limits`: the true limits of the session this process is in."""

import argparse

from agentcgroup.client.cli import options
from agentcgroup.client.cli.output import NOTHING, count, cpu, print_facts, print_json, size
from agentcgroup.client.cli.statuses import ExitStatus


def add_parser(subparsers: options.Subparsers) -> None:
    parser = options.add_command(
        subparsers,
        "limits",
        _limits,
        summary="this session's true limits, what is used and what is free now",
        description="What the session around this process may use in all and what one more call could be granted now.\n"
        "Size thread pools and batch sizes by it, not by what the host has.",
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
    budget, usage = limits.budget, limits.usage
    print_facts(
        [
            ("session", f"{limits.session}, priority {limits.priority or NOTHING}"),
            ("room", str(limits.level or "")),
            (
                "memory",
                f"{size(budget.memory_max_bytes)}, of it {size(budget.agent_memory_bytes)} for the agent",
            ),
            ("  used", size(usage.memory_current_bytes)),
            ("  one more call", f"up to {size(limits.memory_available_bytes)}"),
            ("CPU", cpu(limits.cpu_available_milli)),
            ("processes", f"{count(usage.pids_current)} now, {limits.pids_available} more"),
            ("calls", f"{count(budget.calls_max)} at once"),
            *((("not enforced", each)) for each in limits.not_enforced),
        ]
    )
    return ExitStatus.OK
