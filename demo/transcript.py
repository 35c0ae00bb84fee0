"""An agent's transcript: JSON lines, appended as things happen, so that a killed agent leaves what it knew."""

from pathlib import Path

import msgspec

from demo.records import AgentEnd, Step, Transcript


class _Line(msgspec.Struct, frozen=True, omit_defaults=True):
    step: Step | None = None
    end: AgentEnd | None = None


class Writer:
    """Appends to the transcript at `path`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def step(self, step: Step) -> None:
        """One tool call has ended, or was refused."""
        self._append(_Line(step=step))

    def end(self, end: AgentEnd) -> None:
        """The agent has come to its end."""
        self._append(_Line(end=end))

    def _append(self, line: _Line) -> None:
        with self._path.open("ab") as file:
            file.write(msgspec.json.encode(line) + b"\n")


def read(path: Path) -> Transcript:
    """The transcript at `path`; empty when there is none. A last line that was cut off is left out."""
    if not path.exists():
        return Transcript()
    steps: list[Step] = []
    end: AgentEnd | None = None
    for text in path.read_bytes().splitlines():
        try:
            line = msgspec.json.decode(text, type=_Line)
        except msgspec.DecodeError:
            break
        if line.step is not None:
            steps.append(line.step)
        end = line.end or end
    return Transcript(tuple(steps), end)
