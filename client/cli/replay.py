"""`agentcg replay`: a recording played with real memory, in the daemon's sessions or in bare cgroups."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from agentcgroup.client import recordings, replaying
from agentcgroup.client.cli import options
from agentcgroup.client.cli.output import NOTHING, as_json, cpu_time, print_json, print_table, size
from agentcgroup.client.cli.statuses import ExitStatus
from agentcgroup.client.errors import InvalidRequest
from agentcgroup.client.replaying import Pace, PlayedSession, percentile
from agentcgroup.proto.quantity import BadQuantity, parse_size

_SHARES: Final = (0.5, 0.95, 0.99)


def add_parser(subparsers: options.Subparsers) -> None:
    parser = options.add_command(
        subparsers,
        "replay",
        _replay,
        summary="play a recording with real memory, through the daemon or bare",
        description="Plays the sessions of a recording all at once: for each an agent that takes the recorded memory, and\n"
        "for each recorded call a real tool call that does. By default as sessions of the daemon, made for it and removed\n"
        "after; with --bare in cgroups of your own, where nobody rules. Tells per session whether it lived, how long it\n"
        "took, and how long single steps of allocation took. `agentcg history export` makes recordings;\n"
        "docs/recordings.md describes them.",
        examples=(
            "agentcg history export --session reviewer -o reviewer.jsonl && agentcg replay reviewer.jsonl --speed 10",
            "agentcg replay bench/main-job.jsonl --bare /sys/fs/cgroup/trial --json-file result.json",
        ),
    )
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument(
        "--speed", type=float, default=1.0, metavar="FACTOR", help="so many times as fast, default 1"
    )
    parser.add_argument(
        "--scale", type=float, default=1.0, metavar="FACTOR", help="so many times the memory, default 1"
    )
    parser.add_argument(
        "--step", default="1M", metavar="SIZE", help="allocated and timed at a time, default %(default)s"
    )
    parser.add_argument(
        "--session", action="append", default=[], metavar="NAME", help="only this one; may be repeated"
    )
    parser.add_argument(
        "--memory",
        metavar="SIZE",
        help="what each session may use, default all that the daemon has for sessions",
    )
    parser.add_argument(
        "--bare", type=Path, metavar="CGROUP", help="play in CGROUP/NAME instead, without the daemon"
    )
    parser.add_argument(
        "--json-file", type=Path, metavar="FILE", help="write every step and call as JSON, too"
    )
    options.add_operator_socket(parser)


def _pace(arguments: argparse.Namespace) -> Pace:
    if not 0 < arguments.speed <= 10_000 or not 0 < arguments.scale <= 1000:
        raise InvalidRequest("--speed takes 0 to 10000, --scale 0 to 1000", "1 is as it was recorded")
    step_bytes = _size(arguments.step, "--step")
    if step_bytes is None or step_bytes < 4096:
        raise InvalidRequest("--step is at least 4K", field="step")
    return Pace(arguments.speed, arguments.scale, step_bytes)


def _size(text: str | None, option: str) -> int | None:
    try:
        return None if text is None else parse_size(text)
    except BadQuantity as error:
        raise InvalidRequest(f"{option}: {error}", field=option) from error


def _replay(arguments: argparse.Namespace) -> int:
    pace, memory_bytes = _pace(arguments), _size(arguments.memory, "--memory")
    recording = recordings.read(arguments.file)
    if arguments.session:
        recording = recording.only(arguments.session)
    if arguments.bare is not None:
        played = replaying.play(recording, replaying.BareStage(arguments.bare), pace)
    else:
        with (
            options.operator_client(arguments) as client,
            replaying.daemon_stage(client, recording, pace, memory_bytes) as stage,
        ):
            played = replaying.play(recording, stage, pace)
    if arguments.json_file is not None:
        arguments.json_file.write_text(json.dumps(as_json(played)) + "\n", encoding="utf-8")
    if arguments.json:
        print_json([summary(each) for each in played])
    else:
        _show(played)
    return ExitStatus.OK if all(each.survived for each in played) else ExitStatus.REFUSED


def summary(played: PlayedSession) -> dict[str, Any]:
    """One session's figures, without its single steps."""
    peak = max((held for _, held in played.held()), default=0)
    return {
        "session": played.session,
        "priority": played.priority,
        "survived": played.survived,
        "completed_us": played.completed_us,
        "agent_status": played.agent_status,
        "calls_recorded": played.calls_recorded,
        "calls_ended_well": sum(call.status == 0 for call in played.calls),
        "tries": sum(call.tries for call in played.calls),
        "peak_bytes": peak,
        "steps": len(played.step_us),
        **{f"step_p{round(share * 100)}_us": percentile(played.step_us, share) for share in _SHARES},
    }


def _show(played: Sequence[PlayedSession]) -> None:
    rows = []
    for each in played:
        told = summary(each)
        rows.append(
            (
                each.session, each.priority, "yes" if each.survived else "no",
                cpu_time(each.completed_us) if each.completed_us is not None else NOTHING,
                f"{told['calls_ended_well']}/{each.calls_recorded}", size(told["peak_bytes"]),
                *(_milliseconds(told[f"step_p{round(share * 100)}_us"]) for share in _SHARES),
            )
        )  # fmt: skip
    print_table(
        ("SESSION", "PRIORITY", "SURVIVED", "TOOK", "CALLS", "PEAK", "STEP P50", "P95", "P99"),
        rows,
        empty="Nothing was played.",
    )


def _milliseconds(took_us: float | None) -> str:
    return NOTHING if took_us is None else f"{took_us / 1000:.2f} ms"
