"""The report at the end: every call in a table, the daemon's own cost, the expectations; the same as JSON."""

from pathlib import Path
from typing import Final

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from agentcgroup.proto.quantity import format_duration, format_size
from demo.expect import steps_of
from demo.records import Cost, PastCall, Run, Step

NOTHING: Final = "-"
WIDTH_ELSEWHERE: Final = 180
# Columns of running text share what the others leave.
RATIOS: Final = {"call": 3, "declared": 3, "message": 7}


def size(size_bytes: int | None) -> str:
    """A size for people; a dash when it is unknown."""
    return NOTHING if size_bytes is None else format_size(size_bytes)


def cpu_time(cpu_us: int | None) -> str:
    """CPU time for people."""
    return NOTHING if cpu_us is None else format_duration(cpu_us / 1000)


def declared(limits: dict[str, str]) -> str:
    """What a step declared, as it would be typed."""
    return " ".join(f"{name} {value}" for name, value in limits.items()) or NOTHING


def row_of_step(step: Step) -> tuple[str, ...]:
    """A step's row."""
    words = step.message or f"{step.answer} {step.suggestion}"
    advice = f" -> {step.advice}" if step.advice else ""
    return (
        step.agent, step.title, declared(step.declared), step.decision, size(step.memory_peak_bytes), cpu_time(step.cpu_us),
        step.verdict or "not run", words + advice,
    )  # fmt: skip


def row_of_nested(call: PastCall) -> tuple[str, ...]:
    """The row of a call that a tool of the agent made."""
    return (
        call.session, f"  nested: {' '.join(call.command)}", NOTHING, call.decision, size(call.memory_peak_bytes),
        cpu_time(call.cpu_us), call.verdict, call.message,
    )  # fmt: skip


def table_of(run: Run) -> Table:
    """Every call: agent, call, declared, answer, peak, CPU, verdict, message."""
    table = Table(title="Every call", title_justify="left", expand=True, show_lines=False)
    for heading in ("agent", "call", "declared", "answer", "peak", "CPU", "verdict", "message"):
        ratio = RATIOS.get(heading)
        table.add_column(heading, ratio=ratio, overflow="fold", no_wrap=ratio is None)
    for step in steps_of(run):
        style = "" if step.verdict == "ok" else "yellow"
        table.add_row(*map(Text, row_of_step(step)), style=style)
        for call in run.history:
            if step.call_id and call.parent_call_id == step.call_id:
                table.add_row(*map(Text, row_of_nested(call)), style="dim")
    return table


def words_of_cost(cost: Cost) -> str:
    """The daemon's own cost in a sentence."""
    parts = [f"{format_size(cost.rss_bytes)} resident"]
    if cost.cpu_us is not None:
        share = cost.cpu_us / 10 / cost.wall_ms if cost.wall_ms else 0.0
        parts.append(
            f"{cpu_time(cost.cpu_us)} CPU in {format_duration(cost.wall_ms)} ({share:.1f} % of one core)"
        )
        if cost.calls:
            parts.append(f"{cpu_time(cost.cpu_us // cost.calls)} CPU a call, watching and metrics included")
    return f"The daemon's own cost: {', '.join(parts)}."


def print_report(run: Run, console: Console) -> None:
    """All of it, for people; the expectations last."""
    if not console.is_terminal:
        console = Console(file=console.file, width=WIDTH_ELSEWHERE)
    console.print(table_of(run))
    place = run.place
    console.print(
        f"Where: {place.where}, kernel {place.kernel}, tier {place.tier} ({place.why}).", highlight=False
    )
    console.print(words_of_cost(run.cost), highlight=False)
    for missing in place.missing:
        console.print(f"Not on this host: {missing}", highlight=False, markup=False)
    for agent in run.agents:
        if agent.exit_status != 0:
            console.print(Text(f"{agent.name} said at its end:\n{agent.output_tail}", "red"))
    for verdict in run.expectations:
        mark, style = ("ok  ", "green") if verdict.holds else ("FAIL", "bold red")
        console.print(
            Text.assemble(
                (f"{mark} ", style),
                verdict.sentence,
                ("  " + verdict.seen, "" if not verdict.holds else "dim"),
            )
        )
    failed = sum(not verdict.holds for verdict in run.expectations)
    total = len(run.expectations)
    words = (
        f"All {total} expectations hold" if not failed else f"{failed} of {total} expectations do not hold"
    )
    console.print(
        Text(f"{words}, after {format_duration(run.duration_ms)}.", "bold red" if failed else "bold green")
    )


def write_report(run: Run, path: Path) -> None:
    """The run as JSON, indented; appears complete or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_bytes(msgspec.json.format(msgspec.json.encode(run), indent=2))
    partial.replace(path)
