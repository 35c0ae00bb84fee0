"""The daemon that is measured: its own, with its own directories and cgroup root, beside whatever else runs
here.
"""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from agentcgroup.cgroups.cgroup import Cgroup
from agentcgroup.cgroups.membership import find_mount
from agentcgroup.client.errors import ClientError
from agentcgroup.client.operator_client import OperatorClient
from bench.spawning import BenchError

SESSION = "bench"
START_WITHIN_S = 60.0
# More than any load here needs, and hardly any of it is ever touched; a guest may have less in all.
MEMORY = str(min(8 << 30, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4 * 3))
CALLS_MAX = 2000

CONFIGURATION = """\
[daemon]
run_dir = "{run_dir}"
state_dir = "{state_dir}"
on_stop = "end"
log_level = "{log_level}"
[host]
cgroup_root = "{root}"
memory = "{memory}"
unenforced = "run"
calls_max = {calls_max}
[session]
memory = "{memory}"
calls_max = {calls_max}
pids_max = 30000
[metrics]
enabled = {metrics}
port = {port}
[docker]
enabled = false
{more}
"""


@dataclass(frozen=True, slots=True)
class Rest:
    """What a daemon costs that has nothing to do."""

    rss_mb: float
    cpu_percent: float
    wakeups_per_s: float
    over_s: float


@dataclass(frozen=True, slots=True)
class Subject:
    """A running daemon with one open session."""

    process: subprocess.Popen[bytes]
    directory: Path
    root: Path
    session_dir: str
    port: int

    @property
    def operator_socket(self) -> Path:
        return self.directory / "run" / "operator.sock"

    def rss_bytes(self) -> int:
        """Resident memory of the daemon, proc_pid_statm(5)."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def cpu_s(self) -> float:
        """CPU time of the daemon so far, user and system, proc_pid_stat(5)."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def wakeups(self) -> int:
        """How often a thread of the daemon went to sleep so far: what keeps a host from resting."""
        total = 0
        for status in Path(f"/proc/{self.process.pid}/task").glob("*/status"):
            with contextlib.suppress(FileNotFoundError):
                for line in status.read_text().splitlines():
                    if line.startswith("voluntary_ctxt_switches:"):
                        total += int(line.split()[1])
        return total

    def calls_left(self) -> int:
        """Cgroups of calls in which a process is left; one that is prepared for the next call is empty."""
        left = 0
        for events in (self.root / SESSION / "calls").glob("*/cgroup.events"):
            with contextlib.suppress(OSError):
                left += "populated 1" in events.read_text()
        return left

    def placements(self) -> dict[str, int]:
        """How many processes came into their calls by which door so far."""
        found = re.findall(
            r'^agentcgroup_placement_seconds_count{door="(\w+)"} ([0-9.]+)$', self.metrics(), re.M
        )
        return {door: int(float(count)) for door, count in found}

    def await_no_calls(self, within_s: float) -> float:
        """Wait until every call is over and gone; how long that took. Raises BenchError."""
        begin = time.monotonic()
        while self.calls_left():
            if time.monotonic() - begin > within_s:
                raise BenchError(f"{self.calls_left()} calls are still there after {within_s:.0f} s")
            time.sleep(0.02)
        return time.monotonic() - begin

    def rest(self, over_s: float) -> Rest:
        """Watch the daemon do nothing."""
        cpu_s, wakeups, begin = self.cpu_s(), self.wakeups(), time.monotonic()
        time.sleep(over_s)
        elapsed_s = time.monotonic() - begin
        return Rest(
            rss_mb=round(self.rss_bytes() / 1e6, 1),
            cpu_percent=round((self.cpu_s() - cpu_s) / elapsed_s * 100, 3),
            wakeups_per_s=round((self.wakeups() - wakeups) / elapsed_s, 2),
            over_s=round(elapsed_s, 1),
        )

    def metrics(self) -> str:
        """The page of the metrics endpoint."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=10) as page:
            text: str = page.read().decode()
        return text


def cgroup_path(name: str) -> Path:
    """The path of a cgroup directly below the mount."""
    return find_mount().path / name


@contextlib.contextmanager
def running_daemon(
    port: int = 29464, log_level: str = "info", more: str = "", memory: str = MEMORY
) -> Iterator[Subject]:
    """Start a daemon, open a session, and take everything down again. `more` is configuration.

    `memory`: of all sessions, and of the one. Raises BenchError.
    """
    # Socket paths are short, so a directory in /tmp and not one below the results.
    directory = Path(tempfile.mkdtemp(prefix="agb-", dir="/tmp"))
    name = f"agentcgroup-{directory.name}"
    configuration = directory / "config.toml"
    configuration.write_text(
        CONFIGURATION.format(
            run_dir=directory / "run", state_dir=directory / "state", root=f"/{name}", memory=memory,
            calls_max=CALLS_MAX, metrics="true", port=port, log_level=log_level, more=more,
        )
    )  # fmt: skip
    (directory / "state").mkdir()
    with open(directory / "daemon.log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "agentcgroup.daemon", "-c", str(configuration)], stdout=log, stderr=log
        )
    try:
        with _operator(directory, process) as client:
            session = client.create_session(SESSION, memory=memory, calls=CALLS_MAX, pids=30000)
            yield Subject(process, directory, cgroup_path(name), session.socket_dir, port)
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        process.kill()
        process.wait()
        if cgroup_path(name).exists():
            with Cgroup.open(cgroup_path(name)) as root:
                root.remove_tree(10)
        shutil.rmtree(directory)


@contextlib.contextmanager
def _operator(directory: Path, process: subprocess.Popen[bytes]) -> Iterator[OperatorClient]:
    end = time.monotonic() + START_WITHIN_S
    with OperatorClient(directory / "run" / "operator.sock") as client:
        while True:
            try:
                client.host()
                break
            except ClientError as error:
                if process.poll() is not None or time.monotonic() > end:
                    log = (directory / "daemon.log").read_text(errors="replace")
                    raise BenchError(f"the daemon does not answer ({error}); its log:\n{log}") from error
                time.sleep(0.1)
        yield client
