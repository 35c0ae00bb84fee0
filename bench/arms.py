"""The ways of sharing one host's memory between sessions that `bench.isolation` compares.

Each arm is a place to play a recording in: a cgroup of `memory_bytes` without swap, under which every session has one of
its own, and what the arm does to these. The product's arms are a daemon with a host of that size; their sessions get no
limits that the others lack: each may reach all of it.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from agentcgroup.cgroups.cgroup import Cgroup
from agentcgroup.cgroups.membership import find_mount
from agentcgroup.client.errors import ClientError
from agentcgroup.client.operator_client import OperatorClient
from agentcgroup.client.recordings import Recording, Session
from agentcgroup.client.replaying import BareStage, Pace, Stage, curve_of, daemon_stage, safe_name
from bench.spawning import BenchError

START_WITHIN_S: Final = 120.0
HIGH: Final = "high"


class Arm(StrEnum):
    """In the order in which a host's owner would think of them; the first sets the mark."""

    ALONE = "alone"
    NO_CONTROL = "no control"
    STATIC = "static split"
    MEMORY_HIGH = "memory.high"
    MEMORY_LOW = "memory.low"
    PSI = "PSI 100 ms"
    PRODUCT_CGROUP = "agentcgroup --no-bpf"
    PRODUCT = "agentcgroup"


MEANING: Final[Mapping[Arm, str]] = {
    Arm.ALONE: "only the sessions of high priority, with all of the memory: what the others are measured by",
    Arm.NO_CONTROL: "all sessions, one limit around them all",
    Arm.STATIC: "each session has memory.max of its equal share",
    Arm.MEMORY_HIGH: "sessions of lower priority have memory.high a little below what they need at most",
    Arm.MEMORY_LOW: "sessions of high priority have memory.low of what they need at most",
    Arm.PSI: "a user-space loop: under pressure, for a second, memory.low for high and memory.high for the others",
    Arm.PRODUCT_CGROUP: "this project without its kernel half",
    Arm.PRODUCT: "this project",
}
# The paper gave 400 MiB to sessions that need 405.5.
_HIGH_OF_NEED: Final = 0.986


@dataclass(frozen=True, slots=True)
class Scene:
    """What is played, how fast, and in how much memory."""

    recording: Recording
    pace: Pace
    memory_bytes: int
    # What each session takes at most, from a run of its own in all the memory it wants.
    needs_bytes: Mapping[str, int]


def needs_of(recording: Recording, pace: Pace) -> dict[str, int]:
    """What each session holds at most when nothing holds it up, by the recording: agent and calls added up over time."""
    return {each.session: joint_need(recording.only([each.session]), pace) for each in recording.sessions}


def joint_need(recording: Recording, pace: Pace) -> int:
    """The same of all sessions together: what a host needs that nothing has to wait on."""
    changes: list[tuple[float, str, int]] = []
    for session in recording.sessions:
        changes += [(at_ms, session.session, size) for at_ms, size in session.memory.points]
        # The agent ends with its curve, or with its last call.
        ends_ms = [
            *session.memory.offset_ms[-1:],
            *(call.end_ms for call in recording.calls_of(session.session)),
        ]
        if ends_ms:
            changes.append((max(ends_ms), session.session, 0))
    for number, call in enumerate(recording.calls):
        changes += [(call.start_ms + at_ms, f"call {number}", size) for at_ms, size in curve_of(call).points]
        changes.append((call.end_ms, f"call {number}", 0))
    held: dict[str, int] = {}
    most = 0
    for _, who, size in sorted(changes, key=lambda change: change[0]):
        held[who] = size
        most = max(most, sum(held.values()))
    return pace.bytes(most)


# ---- bare arms


@contextlib.contextmanager
def bare_arm(arm: Arm, scene: Scene) -> Iterator[Stage]:
    """A cgroup for one repetition of an arm without the product."""
    path = find_mount().path / f"agentcgroup-isolation-{os.getpid()}"
    with Cgroup.open(path.parent) as top, top.create_child(path.name) as root:
        try:
            root.enable_controllers(frozenset({"memory"}))
            _write(path, "memory.max", scene.memory_bytes)
            _write(path, "memory.swap.max", 0)
            for session in scene.recording.sessions:
                group = path / safe_name(session)
                group.mkdir()
                _limit(group, session, arm, scene)
            with _controller(path, scene) if arm is Arm.PSI else contextlib.nullcontext():
                yield BareStage(path)
        finally:
            _write(path, "cgroup.kill", 1)
            root.remove_tree(10)


def _limit(group: Path, session: Session, arm: Arm, scene: Scene) -> None:
    need_bytes = scene.needs_bytes[session.session]
    match arm:
        case Arm.STATIC:
            _write(group, "memory.max", scene.memory_bytes // len(scene.recording.sessions))
        case Arm.MEMORY_HIGH if session.priority != HIGH:
            _write(group, "memory.high", round(need_bytes * _HIGH_OF_NEED))
        case Arm.MEMORY_LOW if session.priority == HIGH:
            _write(group, "memory.low", need_bytes)


def _write(group: Path, name: str, value: int | str) -> None:
    (group / name).write_text(f"{value}\n")


# ---- the user-space controller: what one can do without help from the kernel

_TICK_S: Final = 0.1
_WINDOW_S: Final = 1.0
# Time in which some task waited for memory, of a tick; and how full the host may be before it counts as pressed.
_STALL_US: Final = 10_000
_FULL: Final = 0.85


@contextlib.contextmanager
def _controller(root: Path, scene: Scene) -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=_control, args=(root, scene, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _control(root: Path, scene: Scene, stop: threading.Event) -> None:
    others = [safe_name(each) for each in scene.recording.sessions if each.priority != HIGH]
    first = [safe_name(each) for each in scene.recording.sessions if each.priority == HIGH]
    share_bytes = scene.memory_bytes // 2 // max(1, len(others))
    stalled_us, protected_until = _stalled_us(root), 0.0
    while not stop.wait(_TICK_S):
        before_us, stalled_us = stalled_us, _stalled_us(root)
        current = int((root / "memory.current").read_text())
        now = time.monotonic()
        if stalled_us - before_us > _STALL_US or current > scene.memory_bytes * _FULL:
            if now >= protected_until:
                _protect(root, first, others, str(round(scene.memory_bytes * 0.8)), str(share_bytes))
            protected_until = now + _WINDOW_S
        elif protected_until and now >= protected_until:
            _protect(root, first, others, "0", "max")
            protected_until = 0.0


def _protect(root: Path, first: list[str], others: list[str], low: str, high: str) -> None:
    for name in first:
        _write(root / name, "memory.low", low)
    for name in others:
        _write(root / name, "memory.high", high)


def _stalled_us(root: Path) -> int:
    for line in (root / "memory.pressure").read_text().splitlines():
        if line.startswith("some "):
            return int(line.rpartition("total=")[2])
    raise BenchError(f"{root}/memory.pressure has no line 'some'")


# ---- the product

_CONFIGURATION: Final = """\
[daemon]
run_dir = "{run_dir}"
state_dir = "{state_dir}"
on_stop = "end"
log_level = "warning"
[host]
cgroup_root = "{root}"
memory = "{memory_bytes}"
favordynmods = false
[bpf]
enabled = "{bpf}"
[metrics]
enabled = false
[docker]
enabled = false
[session]
memory = "{memory_bytes}"
agent_memory = "0"
"""


class Daemon:
    """The product with a host of a given size, for all repetitions: what it learns it keeps."""

    def __init__(self, directory: Path, name: str, memory_bytes: int, bpf: bool) -> None:
        self._directory = directory
        self.root = find_mount().path / name
        self._log = directory / "daemon.log"
        configuration = directory / "config.toml"
        configuration.write_text(
            _CONFIGURATION.format(
                run_dir=directory / "run", state_dir=directory / "state", root=f"/{name}", memory_bytes=memory_bytes,
                bpf="auto" if bpf else "off",
            ),
            encoding="utf-8",
        )  # fmt: skip
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "agentcgroup.daemon", "-c", str(configuration)],
                stdout=log,
                stderr=log,
            )
        self.client = OperatorClient(directory / "run" / "operator.sock", timeout_s=60)

    def await_start(self) -> None:
        """Raises BenchError when it does not answer in time."""
        end = time.monotonic() + START_WITHIN_S
        while True:
            try:
                self.client.host()
                return
            except ClientError as error:
                if self._process.poll() is not None or time.monotonic() > end:
                    log = self._log.read_text(errors="replace")[-4000:]
                    raise BenchError(f"the daemon does not answer ({error}); its log:\n{log}") from error
                time.sleep(0.1)

    def stop(self) -> None:
        """Ends it with everything it made."""
        self.client.close()
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(30)
        self._process.kill()
        self._process.wait()
        if self.root.exists():
            with Cgroup.open(self.root) as root:
                root.remove_tree(10)


@contextlib.contextmanager
def daemons(arms: list[Arm], memory_bytes: int) -> Iterator[dict[Arm, Daemon]]:
    """A daemon for each of the product's arms among `arms`."""
    with tempfile.TemporaryDirectory(prefix="agi-", dir="/tmp") as place, contextlib.ExitStack() as stack:
        running: dict[Arm, Daemon] = {}
        for number, arm in enumerate(each for each in arms if each in (Arm.PRODUCT, Arm.PRODUCT_CGROUP)):
            directory = Path(place, str(number))
            directory.mkdir()
            name = f"agentcgroup-isolation-{os.getpid()}-{number}"
            running[arm] = Daemon(directory, name, memory_bytes, arm is Arm.PRODUCT)
            stack.callback(running[arm].stop)
        for daemon in running.values():
            daemon.await_start()
        yield running


@contextlib.contextmanager
def stage_of(arm: Arm, scene: Scene, running: Mapping[Arm, Daemon]) -> Iterator[Stage]:
    """Where one repetition of `arm` is played."""
    if arm in running:
        with daemon_stage(running[arm].client, scene.recording, scene.pace, scene.memory_bytes) as stage:
            yield stage
    else:
        with bare_arm(arm, scene) as stage:
            yield stage
