"""`agentcg session`: what an operator does with sessions."""

import argparse

from agentcgroup.client.cli import options, session_run
from agentcgroup.client.cli.output import (
    NOTHING,
    age,
    count,
    cpu,
    print_facts,
    print_json,
    print_table,
    size,
)
from agentcgroup.client.cli.statuses import ExitStatus
from agentcgroup.client.errors import InvalidRequest
from agentcgroup.client.values import Session, TransparentScope


def add_parser(subparsers: options.Subparsers) -> None:
    group = options.add_group(
        subparsers,
        "session",
        summary="sessions: one sandboxed agent with everything it starts",
        description="A session is one agent and its tool calls, with a budget of its own. For operators.",
    )
    create = options.add_command(
        group,
        "create",
        _create,
        summary="make a session",
        examples=(
            "agentcg session create reviewer --memory 4G --agent-memory 512M --cpu 2 --priority high",
        ),
    )
    create.add_argument("name", help="1 to 63 characters of a-z, 0-9, '.', '_', '-'")
    create.add_argument(
        "--owner-uid", type=options.whole, metavar="UID", help="who may use its sockets; default root"
    )
    create.add_argument("--owner-gid", type=options.whole, metavar="GID")
    create.add_argument(
        "--ends-with-agent", action="store_true", help="remove it when its last agent process ends"
    )
    options.add_budget(create)
    options.add_transparent(create)
    options.add_labels(create)

    options.add_operator_socket(create)
    listing = options.add_command(group, "list", _list, summary="live sessions")
    options.add_operator_socket(listing)
    show = options.add_command(group, "show", _show, summary="one session")
    change = options.add_command(
        group,
        "set",
        _set,
        summary="change budget or priority of a live session",
        examples=("agentcg session set reviewer --memory 6G --priority low",),
    )
    options.add_budget(change)
    options.add_transparent(change)
    freeze = options.add_command(group, "freeze", _freeze, summary="stop a session's calls where they are")
    freeze.add_argument("--agent", action="store_true", help="freeze the agent too, not only its calls")
    thaw = options.add_command(group, "thaw", _thaw, summary="let a frozen session go on")
    kill = options.add_command(group, "kill", _kill, summary="kill a session's calls; the session stays")
    kill.add_argument("--agent", action="store_true", help="kill the agent too, not only its calls")
    remove = options.add_command(
        group, "remove", _remove, summary="kill everything in a session and remove it; its history stays"
    )
    place = options.add_command(
        group,
        "place",
        _place,
        summary="move a running process into a session's agent leaf",
        examples=("agentcg session place reviewer 4711",),
    )
    for parser in (show, change, freeze, thaw, kill, remove, place):
        parser.add_argument("name")
        options.add_operator_socket(parser)
    for parser in (freeze, kill, remove):
        options.add_reason(parser)
    place.add_argument("pid", type=options.whole)
    session_run.add_parser(group)


def _tell(arguments: argparse.Namespace, session: Session) -> int:
    if arguments.json:
        print_json(session)
        return ExitStatus.OK
    budget, usage = session.budget, session.usage
    print_facts(
        [
            ("session", f"{session.name}, {session.state}, priority {session.priority or NOTHING}"),
            ("memory", f"{size(usage.memory_current_bytes)} now, {size(usage.memory_peak_bytes)} peak"),
            (
                "  budget",
                f"{size(budget.memory_max_bytes)}, of it {size(budget.agent_memory_bytes)} for the agent",
            ),
            ("  reserved", f"{size(session.memory_reserved_bytes)} by live calls"),
            (
                "  swap",
                f"{size(budget.swap_max_bytes)} at most" if budget.swap_max_bytes is not None else "",
            ),
            ("CPU", f"cap {cpu(budget.cpu_milli)}, weight {count(budget.cpu_weight)}"),
            ("processes", f"{count(usage.pids_current)} now, {count(budget.pids_max)} at most"),
            (
                "calls",
                f"{session.calls_live} live, {count(budget.calls_max)} at most, {session.calls_ended} ended",
            ),
            ("age", age(session.created_at)),
            ("sockets", session.socket_dir),
            ("cgroup", session.cgroup),
            ("owner", f"uid {session.owner_uid}, gid {session.owner_gid}"),
            ("labels", ", ".join(f"{key}={value}" for key, value in session.labels.items())),
            ("container", session.container_id),
            ("transparent", _transparent(session)),
            ("ends", "with its agent" if session.ends_with_agent else "when it is removed"),
        ]
    )
    return ExitStatus.OK


def _transparent(session: Session) -> str:
    if session.transparent.scope is TransparentScope.OFF:
        return "off"
    return (
        f"{session.transparent}, {session.transparent_placed} placed, {session.transparent_missed} too short,"
        f" {session.transparent_left} left without a call"
    )


def _create(arguments: argparse.Namespace) -> int:
    with options.operator_client(arguments) as client:
        session = client.create_session(
            arguments.name,
            priority=arguments.priority,
            owner_uid=arguments.owner_uid,
            owner_gid=arguments.owner_gid,
            labels=options.labels_of(arguments),
            ends_with_agent=arguments.ends_with_agent,
            transparent=arguments.transparent,
            **options.budget_of(arguments),
        )
    return _tell(arguments, session)


def _list(arguments: argparse.Namespace) -> int:
    with options.operator_client(arguments) as client:
        sessions = client.sessions()
    if arguments.json:
        print_json(sessions)
        return ExitStatus.OK
    print_table(
        ("NAME", "STATE", "PRIORITY", "MEMORY", "BUDGET", "RESERVED", "CPU", "CALLS", "ENDED", "AGE"),
        [
            (
                each.name, each.state, each.priority or NOTHING, size(each.usage.memory_current_bytes),
                size(each.budget.memory_max_bytes), size(each.memory_reserved_bytes), cpu(each.budget.cpu_milli),
                str(each.calls_live), str(each.calls_ended), age(each.created_at),
            )
            for each in sessions
        ],
        empty="No sessions. Make one: agentcg session run NAME -- AGENT",
    )  # fmt: skip
    return ExitStatus.OK


def _show(arguments: argparse.Namespace) -> int:
    with options.operator_client(arguments) as client:
        return _tell(arguments, client.session(arguments.name))


def _set(arguments: argparse.Namespace) -> int:
    wanted = (arguments.priority, arguments.transparent, *options.budget_of(arguments).values())
    if all(each is None for each in wanted):
        raise InvalidRequest("nothing to change", "Give at least one limit, for example --memory 8G")
    with options.operator_client(arguments) as client:
        session = client.update_session(
            arguments.name,
            priority=arguments.priority,
            transparent=arguments.transparent,
            **options.budget_of(arguments),
        )
    return _tell(arguments, session)


def _freeze(arguments: argparse.Namespace) -> int:
    with options.operator_client(arguments) as client:
        session = client.freeze_session(
            arguments.name, reason=arguments.reason, include_agent=arguments.agent
        )
    return _tell(arguments, session)


def _thaw(arguments: argparse.Namespace) -> int:
    with options.operator_client(arguments) as client:
        return _tell(arguments, client.thaw_session(arguments.name))


def _kill(arguments: argparse.Namespace) -> int:
    with options.operator_client(arguments) as client:
        killed = client.kill_session(arguments.name, reason=arguments.reason, include_agent=arguments.agent)
    if arguments.json:
        print_json({"session": arguments.name, "calls_killed": killed})
    else:
        print(f"{killed} call{'' if killed == 1 else 's'} killed")
    return ExitStatus.OK


def _remove(arguments: argparse.Namespace) -> int:
    with options.operator_client(arguments) as client:
        client.remove_session(arguments.name, reason=arguments.reason)
    if arguments.json:
        print_json({"session": arguments.name, "removed": True})
    else:
        print(f"session {arguments.name} removed")
    return ExitStatus.OK


def _place(arguments: argparse.Namespace) -> int:
    with options.operator_client(arguments) as client:
        return _tell(arguments, client.place_agent(arguments.name, arguments.pid))
