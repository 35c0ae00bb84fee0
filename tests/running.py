"""A real daemon for a test: its own process, sockets, history and cgroup root; gone without a trace afterwards."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from agentcgroup.cgroups.cgroup import Cgroup
from agentcgroup.cgroups.errors import CgroupGone
from agentcgroup.cgroups.membership import cgroup2_mount
from agentcgroup.client import OperatorClient
from bench.shell import LAUNCHER as LAUNCHER

START_DEADLINE_S = 60.0


class RunningDaemon:
    """One agentcgroupd. `run_dir` is short because Unix socket paths are."""

    def __init__(
        self,
        directory: Path,
        configuration: str = "",
        *,
        unenforced: str = "run",
        memory: str = "0",
        on_stop: str = "end",
    ) -> None:
        """`memory`: what all sessions may use, as in host.memory. `on_stop`: as in daemon.on_stop."""
        self.directory = directory
        self.name = f"agentcgroup-test-{os.getpid()}-{directory.name[-8:]}"
        self.run_dir = Path("/run") / self.name[-30:]
        self.root = cgroup2_mount() / self.name
        self.config = directory / "agentcgroup.toml"
        self.log = directory / "daemon.log"
        self.config.write_text(
            f"""
[daemon]
run_dir = "{self.run_dir}"
state_dir = "{directory}/state"
on_stop = "{on_stop}"
log_level = "debug"
[host]
cgroup_root = "{self.name}"
unenforced = "{unenforced}"
memory = "{memory}"
# A setting of the whole host, which is not a test's to change.
favordynmods = false
[metrics]
port = 0
[docker]
enabled = false
{configuration}
""",
            encoding="utf-8",
        )
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def operator_socket(self) -> Path:
        return self.run_dir / "operator.sock"

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self) -> None:
        with self.log.open("ab") as log:
            before = log.tell()
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "agentcgroup.daemon", "-c", str(self.config)],
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + START_DEADLINE_S
        # Of this start, which may not be the first.
        while "ready: tier" not in (said := self._log_from(before)):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"the daemon did not start:\n{said[-4000:]}")
            time.sleep(0.02)

    def _log_from(self, offset: int) -> str:
        return self.log.read_bytes()[offset:].decode(errors="replace")

    def crash(self) -> None:
        """SIGKILL, and gone."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(30)

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def operator(self) -> OperatorClient:
        return OperatorClient(str(self.operator_socket))

    @property
    def metrics_url(self) -> str:
        """Of the last start: the port is any that was free, and the log says which."""
        urls: list[str] = re.findall(r"http://127\.0\.0\.1:\d+/metrics", self.log.read_text())
        return urls[-1]

    def metrics(self) -> str:
        with urllib.request.urlopen(self.metrics_url, timeout=60) as answer:
            page: bytes = answer.read()
        return page.decode()

    def session_dir(self, name: str) -> Path:
        return self.run_dir / "sessions" / name

    def launch_command(
        self, session: str, *command: str, options: tuple[str, ...] = (), from_agent: bool = False
    ) -> list[str]:
        """`agentcg run OPTIONS -- COMMAND` in `session`, from outside or from its agent leaf, as an agent does it."""
        launcher = [str(LAUNCHER), "run", "--session-dir", str(self.session_dir(session))]
        if from_agent:
            leaf = self.root / session / "agent" / "cgroup.procs"
            launcher = ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(leaf), *launcher]
        return [*launcher, *options, "--", *command]

    def launch(
        self, session: str, *command: str, options: tuple[str, ...] = (), from_agent: bool = False
    ) -> "subprocess.Popen[str]":
        """Starts a tool call with its output in pipes."""
        return subprocess.Popen(
            self.launch_command(session, *command, options=options, from_agent=from_agent),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def cgroups(self) -> list[str]:
        """Paths of every cgroup below the root, relative to it."""
        with Cgroup.open(self.root) as root:
            # Closing one on the way would skip what is below it.
            below = list(root.walk())
            for cgroup in below:
                cgroup.close()
            return [os.path.relpath(cgroup.path, root.path) for cgroup in below]

    def call_cgroups(self) -> list[str]:
        return [path for path in self.cgroups() if "/calls/" in path]

    def clean(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(30)
        with contextlib.suppress(CgroupGone), Cgroup.open(self.root) as root:
            root.remove_tree(10)
        subprocess.run(["rm", "-rf", str(self.run_dir)], check=True)


@contextlib.contextmanager
def running_daemon(
    directory: Path,
    configuration: str = "",
    *,
    unenforced: str = "run",
    memory: str = "0",
    on_stop: str = "end",
) -> Iterator[RunningDaemon]:
    daemon = RunningDaemon(directory, configuration, unenforced=unenforced, memory=memory, on_stop=on_stop)
    try:
        daemon.start()
        yield daemon
    finally:
        daemon.clean()


def wait_until(condition: object, deadline_s: float = 60.0, what: str = "the condition") -> None:
    """Waits for `condition()` with growing pauses; fails by name when the deadline passes."""
    assert callable(condition)
    end = time.monotonic() + deadline_s
    pause_s = 0.002
    while not condition():
        assert time.monotonic() < end, f"{what} did not come true within {deadline_s:g} s"
        time.sleep(pause_s)
        pause_s = min(0.1, pause_s * 1.5)
