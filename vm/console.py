"""The guest's serial console: keeps its last lines and recognises a kernel panic."""

import re
from collections import deque

LAST_LINES = 40
# A panic is told with what led to it and its whole trace.
PANIC_LINES = 120
LINES_BEFORE_PANIC = 15
PANIC = re.compile(rb"Kernel panic - not syncing")
# ECMA-48: control sequences, operating system commands (ended by BEL or ST), and two-byte escapes.
ESCAPES = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\|$)|[ -/]*[0-~])|\r")
# A line this long is not text; it is cut so that memory stays bounded.
LINE_MOST_BYTES = 4096


class Console:
    """Takes the console's bytes as they come."""

    def __init__(self) -> None:
        self._lines: deque[bytes] = deque(maxlen=PANIC_LINES)
        self._partial = b""
        self.has_panicked = False

    def feed(self, data: bytes) -> None:
        """Take bytes."""
        *complete, self._partial = (self._partial + data).split(b"\n")
        for line in complete:
            self._take(line)
        if len(self._partial) > LINE_MOST_BYTES:
            self._take(self._partial[:LINE_MOST_BYTES])
            self._partial = b""
        elif PANIC.search(self._partial):
            self.has_panicked = True

    def _take(self, line: bytes) -> None:
        if PANIC.search(line):
            self.has_panicked = True
        text = ESCAPES.sub(b"", line).rstrip()
        if text:
            self._lines.append(text)

    def last_lines(self) -> list[str]:
        """Return the last lines, or those around a panic, without terminal escapes and empty lines."""
        rest = ESCAPES.sub(b"", self._partial).rstrip()
        lines = [*self._lines, *([rest] if rest else [])]
        at = next((number for number, line in enumerate(lines) if PANIC.search(line)), None)
        chosen = lines[-LAST_LINES:] if at is None else lines[max(0, at - LINES_BEFORE_PANIC) :]
        return [line.decode(errors="replace") for line in chosen]
