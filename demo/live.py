"""Showing the job while it runs: a picture that is redrawn on a terminal, plain lines elsewhere."""

from collections import deque
from types import TracebackType
from typing import Final, Protocol, Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from agentcgroup.proto.quantity import format_size
from demo.records import Event, Finished, Said, Sampled, SessionSample, Told

LINES_KEPT: Final = 14
BAR_CELLS: Final = 24
# Kinds of feedback that say nothing new to somebody who sees calls come and go.
QUIET_KINDS: Final = frozenset({"hello", "session", "declared"})
STYLES: Final = {"refused": "yellow", "warning": "yellow", "trimmed": "yellow", "started": "dim"}
GOOD_VERDICTS: Final = frozenset({"ok"})


class View(Protocol):
    """What shows events; a context manager."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def show(self, event: Event | str) -> None:
        """Shows an event, or a line that is none."""
        ...

    def settle(self) -> None:
        """Draws nothing anew from now on, so that something else may be printed below."""
        ...


def line_of(event: Said | Told) -> str:
    """An event as one line; empty when it is not worth one."""
    match event:
        case Said(at_s, text):
            return f"{at_s:6.1f} s  {text}"
        case Told():
            if event.kind in QUIET_KINDS:
                return ""
            what = event.verdict or event.kind
            advice = f" -> {event.advice}" if event.advice else ""
            return f"{event.at_s:6.1f} s  {event.session:<8} {what:<18} {event.text}{advice}"


def style_of(event: Said | Told) -> str:
    """A rich style for the line."""
    if isinstance(event, Said):
        return "bold"
    if event.verdict:
        return "green" if event.verdict in GOOD_VERDICTS else "red"
    return STYLES.get(event.kind, "")


def bar(used_bytes: int | None, of_bytes: int | None, cells: int = BAR_CELLS) -> str:
    """How full something is."""
    if used_bytes is None or not of_bytes:
        return "?" * cells
    full = min(cells, round(cells * used_bytes / of_bytes))
    return "█" * full + "░" * (cells - full)


class PlainView:
    """One line an event; samples are not shown."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def settle(self) -> None:
        """Lines stay where they are anyway."""

    def show(self, event: Event | str) -> None:
        """Prints it."""
        if isinstance(event, Sampled | Finished):
            return
        line = event if isinstance(event, str) else line_of(event)
        if line:
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)


class LiveView:
    """Sessions with their memory on top, the last messages below."""

    def __init__(self, console: Console) -> None:
        self._sample: Sampled | None = None
        self._lines: deque[Text] = deque(maxlen=LINES_KEPT)
        self._live = Live(self._picture(), console=console, refresh_per_second=4)
        self._below = PlainView(console)
        self._is_settled = False

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def settle(self) -> None:
        """Leaves the picture as it is; what comes later is printed below it."""
        self._is_settled = True
        self._live.stop()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def show(self, event: Event | str) -> None:
        """Takes it into the picture."""
        if self._is_settled:
            self._below.show(event)
            return
        if isinstance(event, Sampled):
            self._sample = event
        elif isinstance(event, str):
            self._lines.append(Text(event, "dim"))
        elif not isinstance(event, Finished) and (line := line_of(event)):
            self._lines.append(Text(line, style_of(event), overflow="ellipsis", no_wrap=True))
        self._live.update(self._picture())

    def _picture(self) -> Group:
        return Group(self._sessions(), *self._lines)

    def _sessions(self) -> Table:
        table = Table(box=None, pad_edge=False)
        for heading in ("session", "priority", "memory", "", "reserved", "peak", "running"):
            table.add_column(heading, no_wrap=True)
        sample = self._sample
        if sample is None:
            return table
        for session in sample.sessions:
            table.add_row(*row_of(session))
        used, capacity = sample.memory_current_bytes, sample.memory_capacity_bytes
        reserved = sum(session.memory_reserved_bytes for session in sample.sessions)
        table.add_row(
            "all", "", bar(used, capacity), of(used, capacity), format_size(reserved), "", "", style="bold"
        )
        return table


def of(used_bytes: int | None, most_bytes: int | None) -> str:
    """Used of most, in words."""
    used = "unknown" if used_bytes is None else format_size(used_bytes)
    return used if most_bytes is None else f"{used} of {format_size(most_bytes)}"


def row_of(session: SessionSample) -> tuple[str, ...]:
    """A session's row of the picture."""
    peak = session.memory_peak_bytes
    return (
        session.name,
        session.priority,
        bar(session.memory_current_bytes, session.memory_max_bytes),
        of(session.memory_current_bytes, session.memory_max_bytes),
        format_size(session.memory_reserved_bytes),
        "unknown" if peak is None else format_size(peak),
        ", ".join(session.running),
    )


def choose_view(console: Console) -> View:
    """A picture on a terminal, lines elsewhere."""
    return LiveView(console) if console.is_terminal else PlainView(console)
