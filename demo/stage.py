"""The stage: starts the daemon and the agents, waits for them, and writes down what they and the daemon say of it."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

from agentcgroup.client import HistoryEntry, Host, OperatorClient
from agentcgroup.client.places import OPERATOR_SOCKET_VARIABLE, launcher
from demo import remains, transcript
from demo.records import AgentRun, Cost, PastCall, Place, Run, Said
from demo.service import CGROUP_ROOT, RUN_DIR, Service, Settings, free_port
from demo.story import AGENTS, Agent
from demo.watch import Clock, Sink, Watch

# Of users without an account, one an agent, so that none can touch another's files or processes.
FIRST_UID: Final = 61_501
STOP_PATIENCE_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Setting:
    """Where and how the story is played."""

    input: Path
    out: Path
    seconds: int
    keeps_files: bool
    where: str
    why: str
    runs_unenforced: bool = False
    # Costs the daemon three requests a second; for a view that draws them.
    samples: bool = False


@dataclass(slots=True)
class Actor:
    """An agent's process."""

    agent: Agent
    process: subprocess.Popen[bytes]
    workspace: Path
    log: Path


def owner_of(index: int, environment: Mapping[str, str], programs: Sequence[Path]) -> tuple[int, int] | None:
    """Whom an agent runs as, as (uid, gid): whoever called sudo, else an unprivileged user of its own, None for root.

    Programs that only root can reach (a virtual environment in /root) leave no choice.
    """
    if environment.get("SUDO_UID"):
        return int(environment["SUDO_UID"]), int(environment["SUDO_GID"])
    if all(map(is_open_to_all, programs)):
        return FIRST_UID + index, FIRST_UID + index
    return None


def is_open_to_all(path: Path) -> bool:
    """Whether any user can get to `path`: every directory above it lets everybody pass."""
    return all(parent.stat().st_mode & 0o001 for parent in path.absolute().parents)


class Stage:
    """One performance. `play` gives the Run, not yet judged; the daemon goes on until the stage is closed."""

    def __init__(self, setting: Setting, sink: Sink) -> None:
        self._setting = setting
        self._sink = sink
        self._clock = Clock()
        self._stack = contextlib.ExitStack()
        self._started_at = datetime.now(UTC)
        self._root = remains.cgroup_root(CGROUP_ROOT) or Path("/nonexistent")

    def close(self) -> None:
        """Stops the daemon and removes what the stage made."""
        self._stack.close()

    def say(self, text: str) -> None:
        """One line about what goes on."""
        self._sink(Said(self._clock.now_s(), text))

    # ---- the performance

    def play(self) -> Run:
        """Everything from the daemon's start to the last look at what remains."""
        work = self._workspace()
        self._service = self._stack.enter_context(self._running_service())
        operator = self._stack.enter_context(OperatorClient(self._service.operator_socket))
        host = operator.host()
        self.say(f"agentcgroupd answers: kernel {host.kernel}, tier {host.tier}")
        watch = Watch(
            OperatorClient(self._service.operator_socket),
            self._clock,
            self._sink,
            samples=self._setting.samples,
        )
        began_s, cpu_before_us = time.monotonic(), host.daemon_usage.cpu_usage_us
        try:
            actors = [self._start(agent, index, work) for index, agent in enumerate(AGENTS)]
            endings = self._wait(actors)
            remains.settle(self._root, self._mark)
            after = operator.host()
            left = remains.look(self._root, self._mark, [session.name for session in operator.sessions()])
        finally:
            watch.close()
        history = tuple(map(past_call, operator.history(limit=1000)))
        wall_ms = round((time.monotonic() - began_s) * 1000)
        return Run(
            started_at=self._started_at.isoformat(timespec="seconds"),
            duration_ms=round(self._clock.now_s() * 1000),
            place=self._place(host),
            agents=tuple(
                AgentRun(
                    actor.agent.name, actor.agent.priority, actor.agent.task, actor.agent.memory_bytes, ending,
                    transcript.read(actor.workspace / "transcript.jsonl"), tail(actor.log),
                )
                for actor, ending in zip(actors, endings, strict=True)
            ),
            history=history,
            cost=cost(after, cpu_before_us, wall_ms, len(history)),
            remains=left,
            metrics=read_metrics(self.metrics_url),
            metrics_url=self.metrics_url,
            operator_socket=str(self._service.operator_socket),
        )  # fmt: skip

    @property
    def metrics_url(self) -> str:
        return f"http://127.0.0.1:{self._service.settings.port}/metrics"

    @property
    def _mark(self) -> bytes:
        # `agentcg session run` sets it for the agent, which hands it on to everything it starts.
        return f"AGENTCGROUP_SESSION_DIR={RUN_DIR}/".encode()

    def _place(self, host: Host) -> Place:
        return Place(
            where=self._setting.where, why=self._setting.why, kernel=host.kernel, tier=host.tier,
            memory_capacity_bytes=host.memory_capacity_bytes, cpu_capacity_milli=host.cpu_capacity_milli,
            missing=tuple(f"{each.name}: {each.detail}" for each in host.capabilities if not each.available),
        )  # fmt: skip

    # ---- preparing

    def _workspace(self) -> Path:
        # Not /tmp: where that is a tmpfs, files count as memory of whoever wrote them.
        work = Path(tempfile.mkdtemp(prefix="agentcgroup-run-", dir="/var/tmp"))
        work.chmod(0o755)
        if self._setting.keeps_files:
            self.say(f"the agents' files stay in {work}")
        else:
            self._stack.callback(shutil.rmtree, work, ignore_errors=True)
        meeting = work / "meeting"
        meeting.mkdir()
        meeting.chmod(0o1777)
        return work

    @contextlib.contextmanager
    def _running_service(self) -> Iterator[Service]:
        state = self._setting.out / "daemon"
        shutil.rmtree(state, ignore_errors=True)
        with Service(
            Settings(state, free_port(), self._setting.runs_unenforced, self._setting.where == "guest")
        ) as service:
            yield service
        with contextlib.suppress(OSError):
            self._root.rmdir()

    def _start(self, agent: Agent, index: int, work: Path) -> Actor:
        workspace = work / agent.name
        workspace.mkdir()
        programs = (
            Path(sys.executable),
            Path(sys.executable).resolve(),
            Path(__file__),
            self._setting.input,
        )
        owner = owner_of(index, os.environ, programs)
        if owner is not None:
            os.chown(workspace, *owner)
        command = [
            launcher(), "session", "run", agent.name, f"--memory={agent.memory_bytes}",
            f"--agent-memory={agent.agent_memory_bytes}", f"--priority={agent.priority}",
            *([f"--user={owner[0]}:{owner[1]}"] if owner else []), "--", sys.executable, "-m", "demo.agents", agent.name,
            f"--input={self._setting.input}", f"--workspace={workspace}", f"--meeting={work / 'meeting'}",
            f"--python={os.path.realpath(sys.executable)}",
        ]  # fmt: skip
        environment = os.environ | {
            OPERATOR_SOCKET_VARIABLE: str(self._service.operator_socket),
            "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
        }
        log = self._setting.out / f"{agent.name}.log"
        with log.open("wb") as sink:
            process = subprocess.Popen(
                command, cwd=workspace, env=environment, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink,
                start_new_session=True,
            )  # fmt: skip
        self._stack.callback(stop, process)
        self.say(f"{agent.name} ({agent.priority} priority) {agent.task}")
        return Actor(agent, process, workspace, log)

    # ---- waiting

    def _wait(self, actors: list[Actor]) -> list[int | None]:
        deadline = time.monotonic() + self._setting.seconds
        while any(actor.process.poll() is None for actor in actors):
            if self._service.has_ended():
                self.say(f"the daemon has gone:\n{self._service.last_words()}")
                break
            if time.monotonic() > deadline:
                late = [actor.agent.name for actor in actors if actor.process.poll() is None]
                self.say(f"not at their end after {self._setting.seconds} s, stopped: {', '.join(late)}")
                break
            time.sleep(0.1)
        endings = [actor.process.poll() for actor in actors]
        for actor in actors:
            stop(actor.process)
        return endings


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ends an agent that has not ended."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def past_call(entry: HistoryEntry) -> PastCall:
    """A row of the daemon's history."""
    report = entry.report
    return PastCall(
        call_id=report.call_id, session=report.session, parent_call_id=entry.parent_call_id, verdict=str(report.verdict),
        decision=str(entry.decision or ""), command=tuple(entry.intent.command), duration_ms=report.duration_ms,
        memory_peak_bytes=report.usage.memory_peak_bytes, cpu_us=report.usage.cpu_usage_us,
        leftover_processes=report.leftover_processes, message=report.message, step=entry.intent.labels.get("step", ""),
    )  # fmt: skip


def cost(after: Host, cpu_before_us: int | None, wall_ms: int, calls: int) -> Cost:
    """What the daemon used between two looks at it."""
    now_us = after.daemon_usage.cpu_usage_us
    return Cost(
        rss_bytes=after.daemon_rss_bytes, memory_peak_bytes=after.daemon_usage.memory_peak_bytes,
        cpu_us=now_us - cpu_before_us if now_us is not None and cpu_before_us is not None else None,
        wall_ms=wall_ms, calls=calls,
    )  # fmt: skip


def read_metrics(url: str) -> dict[str, float]:
    """Every sample the daemon exports, by name and labels as Prometheus writes them."""
    with urllib.request.urlopen(url, timeout=30) as response:
        text = response.read().decode()
    samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
            samples[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return samples


def tail(log: Path, lines: int = 20) -> str:
    """The end of a file."""
    return "\n".join(log.read_text("utf-8", "replace").splitlines()[-lines:])
