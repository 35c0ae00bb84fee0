"""Recordings: what agents and their calls took over time, as JSON lines. docs/recordings.md describes the format.

`agentcg history export` writes them, `agentcg replay` plays them. Reading checks everything that a replay relies on, so
that a wrong file is told by line and field.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import IO, Any, Final

from agentcgroup.client.errors import InvalidRequest

FORMAT: Final = "agentcgroup-recording/1"


class Source(StrEnum):
    """Where a memory curve comes from."""

    SAMPLED = "sampled"  # measured at these moments
    PEAK = "peak"  # only the peak and the duration are known; the points are a ramp made of these
    ASSUMED = "assumed"  # set by hand or by a converter
    UNKNOWN = "unknown"  # nothing is known; no points


@dataclass(frozen=True, slots=True)
class Curve:
    """Memory over time: from `offset_ms[i]` on it is `bytes[i]`. Offsets rise and are counted from the beginning."""

    source: Source = Source.UNKNOWN
    offset_ms: tuple[float, ...] = ()
    bytes: tuple[int, ...] = ()

    @property
    def peak_bytes(self) -> int:
        return max(self.bytes, default=0)

    @property
    def points(self) -> Iterator[tuple[float, int]]:
        return zip(self.offset_ms, self.bytes, strict=True)


@dataclass(frozen=True, slots=True)
class Call:
    """One tool call. `start_ms` counts from the beginning of the recording."""

    call: str
    session: str
    start_ms: float
    duration_ms: float
    command_class: str = ""
    verdict: str = ""
    memory: Curve = Curve()
    memory_peak_bytes: int | None = None
    cpu_usage_us: int | None = None
    # What the agent declared, with the field names of Intent in types.proto.
    intent: Mapping[str, int | str] = field(default_factory=dict)

    @property
    def end_ms(self) -> float:
        return self.start_ms + self.duration_ms


@dataclass(frozen=True, slots=True)
class Session:
    """One agent. `memory` is what its runtime takes, without its calls."""

    session: str
    priority: str = "normal"
    project: str = ""
    memory: Curve = Curve()


@dataclass(frozen=True, slots=True)
class Recording:
    sessions: tuple[Session, ...]
    calls: tuple[Call, ...]
    note: str = ""

    def calls_of(self, session: str) -> list[Call]:
        return sorted(
            (each for each in self.calls if each.session == session), key=lambda call: call.start_ms
        )

    def only(self, sessions: Iterable[str]) -> "Recording":
        """The part with `sessions`. Raises InvalidRequest for one that is not there."""
        wanted = list(sessions)
        known = {each.session for each in self.sessions}
        for name in wanted:
            if name not in known:
                raise InvalidRequest(
                    f"the recording has no session {name!r}",
                    f"It has: {', '.join(sorted(known))}",
                    field="session",
                )
        return Recording(
            tuple(each for each in self.sessions if each.session in wanted),
            tuple(each for each in self.calls if each.session in wanted),
            self.note,
        )


def peak_curve(peak_bytes: int, duration_ms: float) -> Curve:
    """A guess for a call of which no more is known: it rises in five steps and holds its peak from half-time on."""
    steps = 5
    return Curve(
        Source.PEAK,
        tuple(duration_ms / 2 * step / steps for step in range(steps)),
        tuple(peak_bytes * (step + 1) // steps for step in range(steps)),
    )


# ---- writing


def write(recording: Recording, file: IO[str]) -> None:
    """Writes `recording`: the format first, then sessions, then calls by their beginning."""

    def line(record: Mapping[str, Any]) -> None:
        file.write(json.dumps(record, separators=(",", ":")) + "\n")

    line({"format": FORMAT, "note": recording.note})
    for session in recording.sessions:
        line({"type": "session", **asdict(session)})
    for call in sorted(recording.calls, key=lambda each: each.start_ms):
        line({"type": "call", **asdict(call)})


# ---- reading


def read(path: Path) -> Recording:
    """The recording at `path`. Raises InvalidRequest, naming line and field."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(
            f"{path} cannot be read: {getattr(error, 'strerror', None) or error}",
            "Name a file that `agentcg history export` wrote",
        ) from error
    return parse(text, str(path))


def parse(text: str, source: str = "recording") -> Recording:
    """The recording in `text`. Raises InvalidRequest, naming line and field."""
    sessions: dict[str, Session] = {}
    calls: list[Call] = []
    note = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{source}, line {number}"
        record = _Record(_object(line, where), where)
        if number == 1:
            if record.text("format") != FORMAT:
                raise InvalidRequest(
                    f"{where}: this is no recording of format {FORMAT}",
                    "Write it with `agentcg history export`, or see docs/recordings.md",
                )
            note = record.text("note", "")
            continue
        match record.text("type"):
            case "session":
                session = _session(record)
                if session.session in sessions:
                    raise record.wrong("session", "is there twice")
                sessions[session.session] = session
            case "call":
                call = _call(record)
                if call.session not in sessions:
                    raise record.wrong("session", "is no session of the lines before")
                calls.append(call)
            case _:
                # Written by a later version; what this one needs is there all the same.
                continue
    if not sessions:
        raise InvalidRequest(f"{source} has no session", "Write it with `agentcg history export`")
    return Recording(tuple(sessions.values()), tuple(calls), note)


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise InvalidRequest(f"{where}: not JSON: {error}", "Each line is one JSON object") from error
    if not isinstance(value, dict):
        raise InvalidRequest(f"{where}: not a JSON object", "Each line is one JSON object")
    return value


class _Record:
    """The fields of one line, checked as they are taken."""

    def __init__(self, fields: dict[str, Any], where: str) -> None:
        self._fields = fields
        self._where = where

    def wrong(self, name: str, what: str) -> InvalidRequest:
        shown = repr(self._fields.get(name))[:60]
        return InvalidRequest(
            f"{self._where}: {name} {shown} {what}", "docs/recordings.md describes the format", field=name
        )

    def text(self, name: str, default: str | None = None) -> str:
        value = self._fields.get(name, default)
        if not isinstance(value, str):
            raise self.wrong(name, "is no text")
        return value

    def number(self, name: str) -> float:
        value = self._fields.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e12:
            raise self.wrong(name, "is no number from 0 on")
        return float(value)

    def count(self, name: str) -> int | None:
        return None if self._fields.get(name) is None else int(self.number(name))

    def mapping(self, name: str) -> Mapping[str, int | str]:
        value = self._fields.get(name) or {}
        if not isinstance(value, dict) or not all(isinstance(each, int | str) for each in value.values()):
            raise self.wrong(name, "is no object of numbers and texts")
        return value

    def curve(self, name: str) -> Curve:
        value = self._fields.get(name)
        if value is None:
            return Curve()
        if not isinstance(value, dict):
            raise self.wrong(name, "is no object")
        inner = _Record(value, f"{self._where}: {name}")
        try:
            source = Source(inner.text("source"))
        except ValueError:
            raise inner.wrong("source", f"is none of {', '.join(Source)}") from None
        offsets, sizes = inner.numbers("offset_ms"), inner.numbers("bytes")
        if len(offsets) != len(sizes):
            raise inner.wrong("bytes", f"has {len(sizes)} entries for {len(offsets)} offsets")
        if any(later < earlier for earlier, later in zip(offsets, offsets[1:], strict=False)):
            raise inner.wrong("offset_ms", "does not rise")
        return Curve(source, tuple(offsets), tuple(int(size) for size in sizes))

    def numbers(self, name: str) -> list[float]:
        value = self._fields.get(name)
        if not isinstance(value, list) or not all(
            isinstance(each, int | float) and not isinstance(each, bool) and 0 <= each < 1e15
            for each in value
        ):
            raise self.wrong(name, "is no list of numbers from 0 on")
        return value


def _session(record: _Record) -> Session:
    return Session(
        session=record.text("session"),
        priority=record.text("priority", "normal"),
        project=record.text("project", ""),
        memory=record.curve("memory"),
    )


def _call(record: _Record) -> Call:
    return Call(
        call=record.text("call"),
        session=record.text("session"),
        start_ms=record.number("start_ms"),
        duration_ms=record.number("duration_ms"),
        command_class=record.text("command_class", ""),
        verdict=record.text("verdict", ""),
        memory=record.curve("memory"),
        memory_peak_bytes=record.count("memory_peak_bytes"),
        cpu_usage_us=record.count("cpu_usage_us"),
        intent=record.mapping("intent"),
    )
