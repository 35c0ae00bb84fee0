"""The configuration: TOML to frozen structs; every default stands here.

Quantities are written as people write them (`memory = "6G"`, `grant_lifetime = "30s"`) and read by
`agentcgroup.proto.quantity`. An unknown key is an error with a suggestion: a misspelt limit must not be silently absent.
"""

import difflib
import os
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final, get_origin, get_type_hints

import msgspec

from agentcgroup.daemon.model import CpuClass, OnExceed, Priority
from agentcgroup.daemon.model.ranges import (
    LEAST_CPU_MILLI,
    LEAST_DECLARED_BYTES,
    MOST_BYTES,
    MOST_CALLS,
    MOST_CPU_MILLI,
    MOST_DURATION_MS,
    MOST_PIDS,
)
from agentcgroup.proto.quantity import (
    BadQuantity,
    format_cpu,
    format_size,
    parse_cpu,
    parse_duration,
    parse_size,
)
from agentcgroup.proto.transparent import BadRule, parse_rule

DEFAULT_PATH: Final = Path("/etc/agentcgroup/agentcgroup.toml")
# scheduler_knobs.hold_max_ns: the scheduler lets everybody go after that.
MOST_HOLD_MS: Final = 500


class ConfigError(Exception):
    """The configuration is wrong; the message names file, key, cause and next step."""


# Fields of these types are written as text or as a number; the annotation is what reads them.
SizeBytes = Annotated[int, parse_size]  # "512M", or bytes
CpuMilli = Annotated[int, parse_cpu]  # "1.5" or "1500m"; a number is cores
DurationMs = Annotated[int, parse_duration]  # "30s"; a number is seconds


class DaemonConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    run_dir: str = "/run/agentcgroup"
    state_dir: str = "/var/lib/agentcgroup"
    # Group that may use the operator socket besides root; "" is root alone.
    operator_group: str = ""
    log_level: str = "info"
    # "text" or "json"; text carries the priority where it goes to the journal.
    log_format: str = "text"
    # What a stop (SIGTERM) does to sessions: "keep" leaves them to the next start, "end" ends them. SIGINT ends them always.
    on_stop: str = "keep"
    # Say every action, do none.
    dry_run: bool = False


class HostConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    # Cgroup all sessions live in, under the cgroup2 mount; "" is /agentcgroup.slice, which no unit owns.
    cgroup_root: str = ""
    # What all sessions together may use; 0 is all of the host's memory less `memory_reserve`.
    memory: SizeBytes = 0
    memory_reserve: SizeBytes = 512 << 20
    # What running calls declared and demonstrably do not use is lent to others, until this many times the memory of session
    # or host is declared in all. 1 lends nothing.
    oversubscription: float = 1.5
    # 0 is every CPU of the host.
    cpu: CpuMilli = 0
    pids_max: int = 32768
    sessions_max: int = 256
    calls_max: int = 4096
    # Mount cgroup2 so that placing a running process is cheap; see daemon/host/mount_options.py.
    favordynmods: bool = True
    # Run calls without limits where controllers are missing ("run", and say so), or refuse to start ("refuse").
    unenforced: str = "refuse"


class BpfConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    # Programs in the kernel that see fork, exec, exit, out-of-memory and throttling: "auto" where they work, "on" or refuse
    # to start, "off".
    enabled: str = "auto"
    # What waits for the daemon at most; what comes on top is lost and counted.
    ring: SizeBytes = 1 << 20
    # Slow calls that grow into what a session of higher priority was promised, inside the kernel: "auto" where our
    # scheduler is attached, in either mode, "off".
    memory_guard: str = "auto"
    # Longest hold for one batch of memory, and all holds of a call together, added up over its threads.
    hold_max: DurationMs = 200
    hold_total: DurationMs = 60_000


class SchedulerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    # Our CPU scheduler: "off", "partial" (tool calls only) or "full" (every ordinary task of the host).
    mode: str = "off"
    # In mode "full": how long a command at a session's transparent door is held at most until it is placed; 0: not.
    door_hold: DurationMs = 50


class SessionConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Defaults of a session's budget."""

    memory: SizeBytes = 4 << 30
    agent_memory: SizeBytes = 512 << 20
    swap: SizeBytes = 0
    # 0: no cap.
    cpu: CpuMilli = 0
    pids_max: int = 4096
    calls_max: int = 256
    priority: Priority = Priority.NORMAL
    # Which execs become calls without having asked: "off", "agent", "outside" or "all", with patterns as in
    # docs/transparent.md.
    transparent: str = "off"


class CallConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Defaults of a call that declares nothing."""

    memory: SizeBytes = 256 << 20
    # 0: up to what the session's calls may use together.
    memory_max: SizeBytes = 0
    cpu_class: CpuClass = CpuClass.NORMAL
    pids_max: int = 1024
    # 0: no deadline.
    deadline: DurationMs = 0
    on_exceed: OnExceed = OnExceed.STOP
    throttle_limit: DurationMs = 30_000
    # Longest time a call that is to be extended stands still for want of room before it is stopped.
    freeze_limit: DurationMs = 60_000
    # Say on a tool's standard error, in one line at its end, that its call was limited or stopped, and why.
    last_word: bool = True
    # Tell tools in their environment how many CPUs and how much memory they have ("truth"), or do not ("plain").
    environment: str = "truth"
    # How long a grant is held before the call begins.
    grant_lifetime: DurationMs = 30_000
    # How long a prepared call waits for a launch like the one before it; 0: none is prepared.
    standing_lifetime: DurationMs = 30_000
    # How much more likely than others a tool is chosen by the OOM killer of session or host.
    oom_score_adj: int = 500


class QueueConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    # Calls for which there is no room wait for it, or are refused at once.
    enabled: bool = True
    # How long a call waits that does not say; below the time that most harnesses give a tool.
    wait: DurationMs = 90_000
    # The longest wait that a call may ask for.
    wait_max: DurationMs = 3_600_000
    # Most calls of one session that wait, and of all together.
    session_length: int = 64
    length: int = 256


class ProtectionConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Memory between sessions; see docs/protection.md."""

    # Hold back calls of low priority when memory runs short: "auto" where the kernel can, "off".
    sessions: str = "auto"
    # How often to look while somebody is held back; else every horizon while memory is taken, at rest not at all.
    tick: DurationMs = 50
    # Memory is short when growth would use it up within this time.
    horizon: DurationMs = 200
    # Longest time on each rung before the next.
    slow_limit: DurationMs = 2_000
    freeze_limit: DurationMs = 30_000
    # Give back cold memory of agent runtimes that wait for their model: "auto" or "off".
    idle_reclaim: str = "auto"
    # How long a runtime without calls must have used no CPU.
    idle_after: DurationMs = 10_000


class MetricsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    enabled: bool = True
    address: str = "127.0.0.1"
    port: int = 9464


class HistoryConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    enabled: bool = True
    # Relative to state_dir.
    path: str = "history.sqlite3"
    keep: DurationMs = 30 * 86_400_000
    max_size: SizeBytes = 256 << 20
    # Keep the memory of running calls over time, once a second, for recordings.
    samples: bool = False


class SuggestConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    # Offer what earlier calls of the same kind needed, and reserve it for calls that declare nothing.
    enabled: bool = True
    # Share of the runs that the figure would have been enough for.
    quantile: float = 0.95
    # What is added: 1.2 is a fifth more.
    headroom: float = 1.2
    floor: SizeBytes = 64 << 20
    # Runs of a kind before there is a figure.
    least_runs: int = 3
    # A run so much older than the newest counts half.
    half_life: DurationMs = 14 * 86_400_000


class DockerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    # Follow containers that carry the label agentcgroup.session.
    enabled: bool = True
    socket: str = "/var/run/docker.sock"


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    daemon: DaemonConfig = DaemonConfig()
    host: HostConfig = HostConfig()
    bpf: BpfConfig = BpfConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    session: SessionConfig = SessionConfig()
    call: CallConfig = CallConfig()
    queue: QueueConfig = QueueConfig()
    protection: ProtectionConfig = ProtectionConfig()
    metrics: MetricsConfig = MetricsConfig()
    history: HistoryConfig = HistoryConfig()
    suggest: SuggestConfig = SuggestConfig()
    docker: DockerConfig = DockerConfig()


def _plain(table: dict[str, Any], struct: type[msgspec.Struct], where: str, source: str) -> dict[str, Any]:
    """`table` with every quantity read; raises ConfigError for keys that `struct` does not have."""
    types = get_type_hints(struct, include_extras=True)
    plain: dict[str, Any] = {}
    for key, value in table.items():
        if key not in types:
            close = difflib.get_close_matches(key, types, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(types)}"
            raise ConfigError(f"{source}: unknown key {where}{key}: {hint}")
        kind = types[key]
        if get_origin(kind) is Annotated:
            plain[key] = _quantity(value, kind.__metadata__[0], f"{source}: {where}{key}")
        elif isinstance(value, dict) and issubclass(kind, msgspec.Struct):
            plain[key] = _plain(value, kind, f"{where}{key}.", source)
        else:
            plain[key] = value
    return plain


def _quantity(value: Any, parse: Callable[[str], int], where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ConfigError(f"{where}: {value!r} is no quantity")
    try:
        amount = parse(str(value))
    except BadQuantity as error:
        raise ConfigError(f"{where}: {error}") from error
    most, worded = _MOST[parse]
    if amount > most:
        raise ConfigError(f"{where}: {value!r} is too much: {worded} at most")
    return amount


_MOST: Final[dict[Callable[[str], int], tuple[int, str]]] = {
    parse_size: (MOST_BYTES, format_size(MOST_BYTES)),
    parse_cpu: (MOST_CPU_MILLI, format_cpu(MOST_CPU_MILLI)),
    parse_duration: (MOST_DURATION_MS, "ten years"),
}


def _check_values(config: Config, source: str) -> None:
    session, host = config.session, config.host
    checks = (
        (config.daemon.log_format in ("text", "json"), "daemon.log_format is 'text' or 'json'"),
        (
            config.daemon.log_level in ("debug", "info", "warning", "error"),
            "daemon.log_level is debug, info, warning or error",
        ),
        (config.daemon.on_stop in ("keep", "end"), "daemon.on_stop is 'keep' or 'end'"),
        (host.unenforced in ("run", "refuse"), "host.unenforced is 'run' or 'refuse'"),
        (config.bpf.enabled in ("auto", "on", "off"), "bpf.enabled is 'auto', 'on' or 'off'"),
        (config.bpf.memory_guard in ("auto", "off"), "bpf.memory_guard is 'auto' or 'off'"),
        # The scheduler holds nobody for longer; see holds.bpf.h.
        (1 <= config.bpf.hold_max <= 500, "bpf.hold_max is 1ms to 500ms"),
        (config.bpf.hold_total >= config.bpf.hold_max, "bpf.hold_total is at least bpf.hold_max"),
        (
            config.scheduler.mode in ("off", "partial", "full"),
            "scheduler.mode is 'off', 'partial' or 'full'",
        ),
        (
            4096 <= config.bpf.ring <= 1 << 30 and config.bpf.ring & (config.bpf.ring - 1) == 0,
            "bpf.ring is a power of two from 4K to 1G, like 1M",
        ),
        (
            session.agent_memory < session.memory,
            "session.agent_memory must be less than session.memory, which it is part of",
        ),
        (
            0 <= config.scheduler.door_hold <= MOST_HOLD_MS,
            f"scheduler.door_hold is at most {MOST_HOLD_MS}ms; 0 holds nothing",
        ),
        (0 <= config.metrics.port < 65536, "metrics.port is 0 to 65535"),
        (-1000 <= config.call.oom_score_adj <= 1000, "call.oom_score_adj is -1000 to 1000"),
        (1 <= host.oversubscription <= 10, "host.oversubscription is 1 to 10"),
        (
            0 < config.queue.length <= MOST_CALLS,
            f"queue.length is 1 to {MOST_CALLS}; queue.enabled = false is no queue",
        ),
        (
            0 < config.queue.session_length <= config.queue.length,
            "queue.session_length is 1 to queue.length",
        ),
        (
            config.queue.wait <= config.queue.wait_max,
            "queue.wait is at most queue.wait_max",
        ),
        (
            host.memory == 0 or host.memory >= LEAST_DECLARED_BYTES,
            "host.memory is at least 1M; a number without a unit is bytes, 0 is all but host.memory_reserve",
        ),
        (0 < host.pids_max <= MOST_PIDS, f"host.pids_max is 1 to {MOST_PIDS}"),
        (0 < host.sessions_max <= MOST_CALLS, f"host.sessions_max is 1 to {MOST_CALLS}"),
        (0 < host.calls_max <= MOST_CALLS, f"host.calls_max is 1 to {MOST_CALLS}"),
        (0 < session.pids_max <= MOST_PIDS, f"session.pids_max is 1 to {MOST_PIDS}"),
        (0 < session.calls_max <= MOST_CALLS, f"session.calls_max is 1 to {MOST_CALLS}"),
        (0 < config.call.pids_max <= MOST_PIDS, f"call.pids_max is 1 to {MOST_PIDS}"),
        (config.call.throttle_limit >= 100, "call.throttle_limit is at least 100ms"),
        (config.call.freeze_limit >= 100, "call.freeze_limit is at least 100ms"),
        (
            session.memory >= LEAST_DECLARED_BYTES and config.call.memory >= LEAST_DECLARED_BYTES,
            "session.memory and call.memory are at least 1M; a number without a unit is bytes",
        ),
        (
            config.call.memory_max == 0 or config.call.memory_max >= config.call.memory,
            "call.memory_max, where a call is stopped, is at least call.memory, which it is expected to need; 0: no limit",
        ),
        (
            all(each == 0 or each >= LEAST_CPU_MILLI for each in (host.cpu, session.cpu)),
            "host.cpu and session.cpu are at least 0.01 CPUs; 0: no cap",
        ),
        (config.call.environment in ("truth", "plain"), "call.environment is 'truth' or 'plain'"),
        (config.protection.sessions in ("auto", "off"), "protection.sessions is 'auto' or 'off'"),
        (config.protection.idle_reclaim in ("auto", "off"), "protection.idle_reclaim is 'auto' or 'off'"),
        (config.protection.tick >= 10, "protection.tick is at least 10ms"),
        (
            config.protection.horizon >= config.protection.tick,
            "protection.horizon is at least protection.tick",
        ),
        (config.protection.slow_limit > 0, "protection.slow_limit is more than 0"),
        (config.protection.freeze_limit >= 1000, "protection.freeze_limit is at least 1s"),
        (config.protection.idle_after >= 1000, "protection.idle_after is at least 1s"),
        (config.call.grant_lifetime >= 1000, "call.grant_lifetime is at least 1s"),
        (config.call.standing_lifetime >= 0, "call.standing_lifetime is a time, or 0"),
        (0 < config.suggest.quantile <= 1, "suggest.quantile is more than 0 and at most 1"),
        (1 <= config.suggest.headroom <= 10, "suggest.headroom is 1 to 10; 1.2 is a fifth more"),
        (
            0 < config.suggest.least_runs <= 64,
            "suggest.least_runs is 1 to 64, the runs of a kind that are kept",
        ),
        (config.suggest.half_life >= 1000, "suggest.half_life is at least 1s"),
        (os.path.isabs(config.daemon.run_dir), "daemon.run_dir is an absolute path"),
        (os.path.isabs(config.daemon.state_dir), "daemon.state_dir is an absolute path"),
        (
            len(config.daemon.run_dir) <= 40,
            "daemon.run_dir is at most 40 characters: Unix socket paths end at 107",
        ),
    )
    try:
        parse_rule(session.transparent)
    except BadRule as error:
        raise ConfigError(f"{source}: session.transparent: {error}") from error
    for holds, rule in checks:
        if not holds:
            raise ConfigError(f"{source}: {rule}")


def parse(text: str, source: str = "configuration") -> Config:
    """The configuration in `text` (TOML). Raises ConfigError."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source}: not TOML: {error}") from error
    try:
        config = msgspec.convert(_plain(table, Config, "", source), Config)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{source}: {error}") from error
    _check_values(config, source)
    return config


def load(path: Path | None) -> Config:
    """The configuration at `path`, or at DEFAULT_PATH when that exists, or the defaults. Raises ConfigError."""
    if path is None:
        if not DEFAULT_PATH.exists():
            return Config()
        path = DEFAULT_PATH
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read: {error.strerror}. Name a file that this user may read, or leave --config out for"
            f" {DEFAULT_PATH}"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not TOML, which is UTF-8: {error}") from error
    return parse(text, str(path))
