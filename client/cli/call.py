"""`agentcg call`: looking at tool calls and acting on them."""

import argparse
import sys

from agentcgroup.client.cli import options
from agentcgroup.client.cli.output import (
    age,
    clock,
    command_line,
    count,
    cpu,
    cpu_time,
    duration,
    print_facts,
    print_json,
    print_table,
    shown,
    size,
)
from agentcgroup.client.cli.statuses import ExitStatus
from agentcgroup.client.errors import InvalidRequest
from agentcgroup.client.values import Call, CallState, Decision, Report, Usage


def add_parser(subparsers: options.Subparsers) -> None:
    group = options.add_group(
        subparsers,
        "call",
        summary="tool calls: list, show, change, freeze, kill",
        description="list, show, tree, set and kill work inside a session on its own calls, and for operators on all;\n"
        "freeze and thaw are for operators. A call that its ladder has frozen goes on when another is killed or made\n"
        "smaller, or when it is given more itself (set).",
    )
    listing = options.add_command(
        group, "list", _list, summary="live calls", examples=("agentcg call list --session reviewer",)
    )
    options.add_either(listing, which=True)
    tree = options.add_command(group, "tree", _tree, summary="live calls, each below the call it runs in")
    options.add_either(tree, which=True)
    show = options.add_command(group, "show", _show, summary="one call, also a recently ended one")
    options.add_either(show, which=False)
    change = options.add_command(
        group,
        "set",
        _set,
        summary="give a running call other limits",
        examples=("agentcg call set c42 --memory-max 3G --timeout 20m",),
    )
    options.add_either(change, which=False)
    options.add_limits(change)
    freeze = options.add_command(group, "freeze", _freeze, summary="stop a call where it is")
    thaw = options.add_command(group, "thaw", _thaw, summary="let a frozen call go on")
    kill = options.add_command(
        group,
        "kill",
        _kill,
        summary="kill a call and everything in it; what it had is free for others",
        examples=("agentcg call kill c-4be1b2f9aa",),
    )
    options.add_either(kill, which=False)
    for parser in (show, change, freeze, thaw, kill):
        parser.add_argument("id", help="as `agentcg call list` shows it")
    for parser in (freeze, thaw):
        options.add_operator_socket(parser)
    for parser in (freeze, kill):
        options.add_reason(parser)


def _calls(arguments: argparse.Namespace) -> list[Call]:
    if options.is_operator(arguments):
        with options.operator_client(arguments) as operator:
            return operator.calls(arguments.session)
    with options.agent_client(arguments) as agent:
        return agent.tree()


def _call(arguments: argparse.Namespace) -> Call:
    if options.is_operator(arguments):
        with options.operator_client(arguments) as operator:
            return operator.call(arguments.id)
    with options.agent_client(arguments) as agent:
        return agent.get(arguments.id)


def _state(call: Call) -> str:
    return f"{call.state}, place {call.queue.position}" if call.queue is not None else call.state


def _row(call: Call, name: str) -> tuple[str, ...]:
    return (
        name, call.session, _state(call), size(call.limits.memory_bytes or call.intent.memory_bytes),
        size(call.limits.memory_max_bytes),
        size(call.usage.memory_current_bytes), size(call.usage.memory_peak_bytes), cpu_time(call.usage.cpu_usage_us),
        count(call.usage.pids_current), age(call.started_at or call.declared_at), command_line(call.intent.command),
    )  # fmt: skip


_HEADERS = (
    "CALL",
    "SESSION",
    "STATE",
    "DECLARED",
    "LIMIT",
    "MEMORY",
    "PEAK",
    "CPU",
    "PIDS",
    "AGE",
    "COMMAND",
)
_NONE = "No live calls. Ended ones: agentcg history"


def _list(arguments: argparse.Namespace) -> int:
    calls = _calls(arguments)
    if arguments.json:
        print_json(calls)
    else:
        print_table(_HEADERS, [_row(each, each.id) for each in calls], empty=_NONE)
    return ExitStatus.OK


def _tree(arguments: argparse.Namespace) -> int:
    calls = _calls(arguments)
    if arguments.json:
        print_json(calls)
        return ExitStatus.OK
    below: dict[str, list[Call]] = {}
    ids = {each.id for each in calls}
    for each in calls:
        # A parent that ended between two pages of the answer must not hide its children.
        below.setdefault(each.parent_call_id if each.parent_call_id in ids else "", []).append(each)
    rows: list[tuple[str, ...]] = []
    # Depth first with a list of our own: how deep agents nest is theirs to say.
    waiting = [(each, 0) for each in reversed(below.get("", []))]
    while waiting:
        each, depth = waiting.pop()
        rows.append(_row(each, "  " * depth + each.id))
        waiting += [(child, depth + 1) for child in reversed(below.get(each.id, []))]
    print_table(_HEADERS, rows, empty=_NONE)
    return ExitStatus.OK


def _processes(usage: Usage) -> str:
    if usage.processes is None:
        return ""
    longest = f", the longest for {cpu_time(usage.longest_child_us)}" if usage.longest_child_us else ""
    return f"{usage.processes}, {count(usage.forks)} of them forked in the call{longest}"


def report_facts(report: Report) -> list[tuple[str, str]]:
    """What `call show`, `call kill` and the history tell of a call's end."""
    usage = report.usage
    how = (
        f"signal {report.signal}" if report.signal is not None
        else f"exit status {report.exit_code}" if report.exit_code is not None
        else "exit status unknown"
    )  # fmt: skip
    return [
        ("verdict", f"{report.verdict} ({how})"),
        ("ran", f"{duration(report.duration_ms)}, ended {clock(report.ended_at)}"),
        ("peak memory", size(usage.memory_peak_bytes)),
        ("CPU time", cpu_time(usage.cpu_usage_us)),
        ("held for memory", cpu_time(usage.memory_throttled_us) if usage.memory_throttled_us else ""),
        ("held for others", cpu_time(usage.memory_held_us) if usage.memory_held_us else ""),
        ("processes", _processes(usage)),
        (
            "left behind",
            f"{report.leftover_processes} processes, killed" if report.leftover_processes else "",
        ),
        ("message", report.message),
        ("advice", report.advice),
    ]


def _tell(arguments: argparse.Namespace, call: Call) -> int:
    if arguments.json:
        print_json(call)
        return ExitStatus.OK
    limits, usage = call.limits, call.usage
    print_facts(
        [
            ("call", f"{call.id} of session {call.session}, {_state(call)}"),
            (
                "waits",
                f"until {duration(call.queue.deadline_ms)} are over"
                + (
                    f", likely for {duration(call.queue.estimated_wait_ms)} more"
                    if call.queue.estimated_wait_ms is not None
                    else ""
                )
                if call.queue is not None
                else "",
            ),
            ("inside", call.parent_call_id),
            ("command", command_line(call.intent.command, most=1000) if call.intent.command else ""),
            ("process", str(call.pid) if call.pid else ""),
            ("declared", f"memory {size(call.intent.memory_bytes)}, CPU {cpu(call.intent.cpu_milli)}"),
            (
                "limits",
                f"{size(limits.memory_bytes)} reserved, stopped at {size(limits.memory_max_bytes)}"
                f", CPU {cpu(limits.cpu_milli)}, {count(limits.pids_max)} pids",
            ),
            ("ladder", _rung(call)),
            ("deadline", duration(limits.deadline_ms) if limits.deadline_ms is not None else ""),
            ("not enforced", "; ".join(limits.not_enforced)),
            ("memory", f"{size(usage.memory_current_bytes)} now, {size(usage.memory_peak_bytes)} peak"),
            ("CPU time", cpu_time(usage.cpu_usage_us)),
            ("started", clock(call.started_at)),
            ("transparent", _placement(call)),
            ("cgroup", call.cgroup),
            ("labels", ", ".join(f"{key}={value}" for key, value in call.intent.labels.items())),
            *(report_facts(call.report) if call.report is not None else ()),
        ]
    )
    return ExitStatus.OK


def _rung(call: Call) -> str:
    if call.ladder is None:
        return ""
    until = (
        f" until {clock(call.ladder.deadline_at)}, then stopped or frozen" if call.ladder.deadline_at else ""
    )
    asked = call.ladder.memory_to_ask_bytes
    grantable = f"; {size(asked)} would be granted now" if asked is not None else ""
    return f"{call.ladder.rung or 'unknown'}{until}{grantable}; `agentcg explain {call.id}` says why"


def _placement(call: Call) -> str:
    if call.placement_delay_ms is None:
        return ""
    placed = f"placed {duration(call.placement_delay_ms)} after its exec"
    if call.held_after_us is None:
        return placed
    held = f"held from {call.held_after_us / 1000:.1f} ms on"
    return f"{placed}, {held}{'' if call.was_held else ', but not until then'}"


def _show(arguments: argparse.Namespace) -> int:
    return _tell(arguments, _call(arguments))


def _set(arguments: argparse.Namespace) -> int:
    limits = options.limits_of(arguments)
    if options.is_operator(arguments):
        with options.operator_client(arguments) as operator:
            answer = operator.update_call(arguments.id, **limits)
    else:
        with options.agent_client(arguments) as agent:
            answer = agent.adjust(arguments.id, **limits)
    if arguments.json:
        print_json(answer)
    else:
        for line in (answer.message or answer.decision, answer.suggestion, *answer.notices):
            if line:
                print(shown(line))
    return ExitStatus.REFUSED if answer.decision is Decision.REFUSED else ExitStatus.OK


def _freeze(arguments: argparse.Namespace) -> int:
    with options.operator_client(arguments) as client:
        return _tell(arguments, client.freeze_call(arguments.id, reason=arguments.reason))


def _thaw(arguments: argparse.Namespace) -> int:
    with options.operator_client(arguments) as client:
        call = client.thaw_call(arguments.id)
    if call.state is CallState.FROZEN and not arguments.json:
        told = "it stays frozen, for want of memory and not by an operator"
        print(f"agentcg: {told}: `agentcg explain {call.id}` says why", file=sys.stderr)
    return _tell(arguments, call)


def _kill(arguments: argparse.Namespace) -> int:
    if options.is_operator(arguments):
        with options.operator_client(arguments) as operator:
            report = operator.kill_call(arguments.id, reason=arguments.reason)
    elif arguments.reason:
        raise InvalidRequest(
            "--reason is what an operator tells the agent", "Leave it out for a call of your own"
        )
    else:
        with options.agent_client(arguments) as agent:
            report = agent.finish(arguments.id)
    if arguments.json:
        print_json(report)
    else:
        print_facts(report_facts(report))
    return ExitStatus.OK
