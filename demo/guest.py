"""Running the job in the guest: `vm/run` boots it, shows it this package and the input, and brings back what it wrote."""

import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from demo.records import Event, decode_event
from demo.service import METRICS_PORT, RUN_DIR

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
class Reach:
    """How a daemon is reached from this host."""

    metrics_url: str
    operator_socket: str


@dataclass(frozen=True, slots=True)
class Guest:
    """A guest to run the job in. With `serve_port` its daemon can be reached from this host, as `reach` says."""

    kernel: str
    input: Path
    out: Path
    seconds: int
    serve_port: int | None = None

    @property
    def reach(self) -> Reach:
        """Where this host finds the guest's metrics and operators' API while it serves."""
        return Reach(f"http://127.0.0.1:{self.serve_port}/metrics", str(self.out / "operator.sock"))

    def command(self, why: str, words: Sequence[str]) -> list[str]:
        """The command line: the job itself, natively inside the guest."""
        job = [
            "env", f"PYTHONPATH={SHARES}", "PYTHONPYCACHEPREFIX=/var/tmp/pycache", PYTHON, "-m", "demo", "--native",
            "--events", "--why", why, "--input", f"{SHARES}/{self.input.name}", "--out", OUT,
            "--seconds", str(self.seconds), *words,
        ]  # fmt: skip
        seconds = self.seconds + OVERHEAD_S if self.serve_port is None else SERVE_MOST_S
        return [
            str(REPOSITORY / "vm/run"), "--kernel", self.kernel, "--no-daemon", "--share", str(REPOSITORY / "demo"),
            "--share", str(self.input), "--out", str(self.out), "--timeout", str(seconds), *self._forwards(), "--", *job,
        ]  # fmt: skip

    def _forwards(self) -> list[str]:
        if self.serve_port is None:
            return []
        return [
            "--forward", f"127.0.0.1:{self.serve_port}=127.0.0.1:{METRICS_PORT}",
            "--forward", f"{self.reach.operator_socket}={RUN_DIR}/operator.sock",
        ]  # fmt: skip

    def run(self, why: str, words: Sequence[str], show: Callable[[Event | str], None]) -> int:
        """Runs the job and shows every event and every other line as it comes; returns the exit status of `vm/run`.

        A first Ctrl-C stops the guest in order, a second one at once.
        """
        command = [sys.executable, *self.command(why, words)]
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace", start_new_session=True,
        ) as process:  # fmt: skip
            try:
                try:
                    _pass_on(process, show)
                except KeyboardInterrupt:
                    process.send_signal(signal.SIGINT)
                    _pass_on(process, show)
            except BaseException:
                process.kill()
                raise
            return process.wait()


def _pass_on(process: subprocess.Popen[str], show: Callable[[Event | str], None]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        show(decode_event(line.rstrip("\n")) or line.rstrip("\n"))
