"""The daemon of the job: a real agentcgroupd with a configuration, a run directory and a cgroup of its own."""

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from agentcgroup.client import ClientError, OperatorClient
from demo.story import HOST_MEMORY_BYTES

RUN_DIR: Final = Path("/run/agentcgroup-demo")
CGROUP_ROOT: Final = "agentcgroup-demo.slice"
METRICS_PORT: Final = 9464
START_PATIENCE_S: Final = 60.0
STOP_PATIENCE_S: Final = 30.0

CONFIG: Final = """\
# Made by make run.
[daemon]
run_dir = "{run_dir}"
state_dir = "{state_dir}"
on_stop = "end"

[host]
cgroup_root = "{cgroup_root}"
memory = {memory}
unenforced = "{unenforced}"
# A mount option of the whole host: not for a try-out to change, unless the host is a guest of its own.
favordynmods = {favordynmods}

[metrics]
port = {port}

[docker]
enabled = false

# So that what ran can be exported and replayed: bench/main-job.jsonl came about like that.
[history]
samples = true
"""


class DaemonFailed(Exception):
    """The daemon did not start or went away; the message carries its last words."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the daemon is told. `state_dir` also takes its log and configuration."""

    state_dir: Path
    port: int
    # Without the controllers that limits need, the daemon refuses to start, unless told otherwise.
    runs_unenforced: bool = False
    # Whether settings of the whole machine may be changed.
    owns_host: bool = False

    def text(self) -> str:
        """The configuration as TOML."""
        return CONFIG.format(
            run_dir=RUN_DIR,
            state_dir=self.state_dir,
            cgroup_root=CGROUP_ROOT,
            memory=HOST_MEMORY_BYTES,
            unenforced="run" if self.runs_unenforced else "refuse",
            favordynmods="true" if self.owns_host else "false",
            port=self.port,
        )


def free_port(wanted: int = METRICS_PORT) -> int:
    """`wanted` when nobody listens there, else any other."""
    for port in (wanted, 0):
        with socket.socket() as attempt:
            attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                attempt.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(attempt.getsockname()[1])
    raise DaemonFailed("there is no free TCP port on 127.0.0.1")


def refuse_second(run_dir: Path) -> None:
    """Raises DaemonFailed when a daemon runs in `run_dir`: it would answer in place of ours."""
    try:
        with (run_dir / "daemon.lock").open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return
    except BlockingIOError:
        raise DaemonFailed(
            f"a daemon runs in {run_dir} already: another make run is under way on this host. Next step: wait for it"
        ) from None


class Service:
    """Starts the daemon on entry and stops it on exit; in between it answers."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.operator_socket = RUN_DIR / "operator.sock"
        self.log = settings.state_dir / "daemon.log"
        self._process: subprocess.Popen[bytes] | None = None
        # Not before it answered: the run directory may be another daemon's, which is why it did not start.
        self._owns_run_dir = False

    def __enter__(self) -> Self:
        refuse_second(RUN_DIR)
        self.settings.state_dir.mkdir(parents=True, exist_ok=True)
        config = self.settings.state_dir / "agentcgroup.toml"
        config.write_text(self.settings.text(), encoding="utf-8")
        program = Path(sys.executable).with_name("agentcgroupd")
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [program, "--config", config], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                # A Ctrl-C at the terminal is for us; we stop the daemon when everything else is done.
                start_new_session=True,
            )  # fmt: skip
        try:
            self._wait_until_it_answers()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _wait_until_it_answers(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_PATIENCE_S
        while True:
            if self._process.poll() is not None:
                raise DaemonFailed(
                    f"the daemon ended with status {self._process.returncode}:\n{self.last_words()}"
                )
            try:
                with OperatorClient(self.operator_socket, timeout_s=5.0) as operator:
                    operator.host()
                self._owns_run_dir = True
                return
            except ClientError as error:
                if time.monotonic() > deadline:
                    raise DaemonFailed(
                        f"the daemon does not answer: {error}\n{self.last_words()}"
                    ) from error
            time.sleep(0.2)

    def last_words(self) -> str:
        """The end of its log."""
        return "\n".join(f"    {line}" for line in self.log.read_text("utf-8", "replace").splitlines()[-15:])

    def has_ended(self) -> bool:
        """Whether it went away by itself."""
        return self._process is not None and self._process.poll() is not None

    def stop(self) -> None:
        """Stops it cleanly, or at last not so cleanly. Does nothing the second time."""
        if self._process is None:
            return
        process, self._process = self._process, None
        if process.poll() is None:
            os.kill(process.pid, signal.SIGTERM)
            try:
                process.wait(STOP_PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._owns_run_dir:
            shutil.rmtree(RUN_DIR, ignore_errors=True)
