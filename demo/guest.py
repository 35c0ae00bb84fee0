"""Running the job in the guest: `vm/run` boots it, shows it this package and the input, and brings back what it wrote."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from demo.records import Event, decode_event

REPOSITORY: Final = Path(__file__).resolve().parents[1]
# Where vm/run puts things.
SHARES: Final = "/mnt/share"
OUT: Final = "/mnt/out"
PYTHON: Final = "/opt/agentcgroup/bin/python"
# Boot and power-off, on top of what the agents may take.
OVERHEAD_S: Final = 90
# vm/run takes no run without an end.
SERVE_MOST_S: Final = 6 * 86_400


@dataclass(frozen=True, slots=True)
class Guest:
    """A guest to run the job in."""

    kernel: str
    input: Path
    out: Path
    seconds: int
    serves: bool = False

    def command(self, why: str, words: Sequence[str]) -> list[str]:
        """The command line: the job itself, natively inside the guest."""
        job = [
            "env", f"PYTHONPATH={SHARES}", "PYTHONPYCACHEPREFIX=/var/tmp/pycache", PYTHON, "-m", "demo", "--native",
            "--events", "--why", why, "--input", f"{SHARES}/{self.input.name}", "--out", OUT, "--seconds", str(self.seconds),
            *words,
        ]  # fmt: skip
        seconds = SERVE_MOST_S if self.serves else self.seconds + OVERHEAD_S
        return [
            str(REPOSITORY / "vm/run"), "--kernel", self.kernel, "--share", str(REPOSITORY / "demo"),
            "--share", str(self.input), "--out", str(self.out), "--timeout", str(seconds), "--", *job,
        ]  # fmt: skip

    def run(self, why: str, words: Sequence[str], show: Callable[[Event | str], None]) -> int:
        """Runs the job and shows every event and every other line as it comes; returns the guest's exit status.

        A Ctrl-C reaches `vm/run` by the terminal; it stops the guest, and this waits for that.
        """
        command = [sys.executable, *self.command(why, words)]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, errors="replace"
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                show(decode_event(line.rstrip("\n")) or line.rstrip("\n"))
            return process.wait()
