"""The configuration: TOML to frozen structs; every default stands here.

Quantities are written as people write them (`memory = "6G"`, `grant_lifetime = "30s"`) and read by
`agentcgroup.proto.quantity`. An unknown key is an error with a suggestion: a misspelt limit must not be silently absent.
"""

import difflib
import os
import tomllib
from pathlib import Path
from typing import Any, Final

import msgspec

from agentcgroup.daemon.model import CpuClass, OnExceed, Priority
from agentcgroup.proto.quantity import BadQuantity, parse_cpu, parse_duration, parse_size

DEFAULT_PATH: Final = Path("/etc/agentcgroup/agentcgroup.toml")


class ConfigError(Exception):
    """The configuration is wrong; the message names file, key, cause and next step."""


class SizeBytes(int):
    """A size in bytes, written "512M" or as a number of bytes."""


class CpuMilli(int):
    """CPU in thousandths of a core, written "1.5" or "1500m"."""


class DurationMs(int):
    """A duration in milliseconds, written "30s"; a bare number is seconds."""


class DaemonConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    run_dir: str = "/run/agentcgroup"
    state_dir: str = "/var/lib/agentcgroup"
    # Group that may use the operator socket besides root; "" is root alone.
    operator_group: str = ""
    log_level: str = "info"
    # "text" or "json"; text carries journald priorities.
    log_format: str = "text"
    # Say every action, do none.
    dry_run: bool = False


class HostConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    # Cgroup all sessions live in, under the cgroup2 mount. "" is the daemon's own delegated cgroup under systemd, else
    # /agentcgroup.slice.
    cgroup_root: str = ""
    # What all sessions together may use; 0 is all of the host's memory less `memory_reserve`.
    memory: SizeBytes = SizeBytes(0)
    memory_reserve: SizeBytes = SizeBytes(512 << 20)
    # 0 is every CPU of the host.
    cpu: CpuMilli = CpuMilli(0)
    pids_max: int = 32768
    sessions_max: int = 256
    calls_max: int = 4096
    # Run calls without limits where controllers are missing ("run", and say so), or refuse to start ("refuse").
    unenforced: str = "refuse"


class SessionConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Defaults of a session's budget."""

    memory: SizeBytes = SizeBytes(4 << 30)
    agent_memory: SizeBytes = SizeBytes(512 << 20)
    swap: SizeBytes = SizeBytes(0)
    # 0: no cap.
    cpu: CpuMilli = CpuMilli(0)
    pids_max: int = 4096
    calls_max: int = 256
    priority: Priority = Priority.NORMAL


class CallConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Defaults of a call that declares nothing."""

    memory: SizeBytes = SizeBytes(256 << 20)
    # 0: up to what the session's calls may use together.
    memory_max: SizeBytes = SizeBytes(0)
    cpu_class: CpuClass = CpuClass.NORMAL
    pids_max: int = 1024
    # 0: no deadline.
    deadline: DurationMs = DurationMs(0)
    on_exceed: OnExceed = OnExceed.STOP
    throttle_limit: DurationMs = DurationMs(30_000)
    # How long a grant is held before the call begins.
    grant_lifetime: DurationMs = DurationMs(30_000)
    # How much more likely than others a tool is chosen by the OOM killer of session or host.
    oom_score_adj: int = 500


class MetricsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    enabled: bool = True
    address: str = "127.0.0.1"
    port: int = 9464


class HistoryConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    enabled: bool = True
    # Relative to state_dir.
    path: str = "history.sqlite3"
    keep: DurationMs = DurationMs(30 * 86_400_000)
    max_size: SizeBytes = SizeBytes(256 << 20)


class DockerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    # Follow containers that carry the label agentcgroup.session.
    enabled: bool = True
    socket: str = "/var/run/docker.sock"


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    daemon: DaemonConfig = DaemonConfig()
    host: HostConfig = HostConfig()
    session: SessionConfig = SessionConfig()
    call: CallConfig = CallConfig()
    metrics: MetricsConfig = MetricsConfig()
    history: HistoryConfig = HistoryConfig()
    docker: DockerConfig = DockerConfig()


_PARSERS: Final = {SizeBytes: parse_size, CpuMilli: parse_cpu, DurationMs: parse_duration}


def _decode_quantity(kind: type, value: Any) -> Any:
    parser = _PARSERS.get(kind)
    if parser is None:
        raise NotImplementedError(f"no decoder for {kind}")
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{value!r} is no quantity")
    if not isinstance(value, str) and value < 0:
        raise ValueError(f"{value} is negative")
    try:
        return kind(parser(value if isinstance(value, str) else f"{value}"))
    except BadQuantity as error:
        raise ValueError(str(error)) from error


def _check_names(table: dict[str, Any], struct: type[msgspec.Struct], where: str, source: str) -> None:
    known = struct.__struct_fields__
    for key, value in table.items():
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}"
            raise ConfigError(f"{source}: unknown key {where}{key}: {hint}")
        default = getattr(struct(), key)
        if isinstance(default, msgspec.Struct) and isinstance(value, dict):
            _check_names(value, type(default), f"{where}{key}.", source)


def _check_values(config: Config, source: str) -> None:
    session, host = config.session, config.host
    checks = (
        (config.daemon.log_format in ("text", "json"), "daemon.log_format is 'text' or 'json'"),
        (
            config.daemon.log_level in ("debug", "info", "warning", "error"),
            "daemon.log_level is debug, info, warning or error",
        ),
        (host.unenforced in ("run", "refuse"), "host.unenforced is 'run' or 'refuse'"),
        (
            session.agent_memory < session.memory,
            "session.agent_memory must be less than session.memory, which it is part of",
        ),
        (0 <= config.metrics.port < 65536, "metrics.port is 0 to 65535"),
        (-1000 <= config.call.oom_score_adj <= 1000, "call.oom_score_adj is -1000 to 1000"),
        (host.pids_max > 0, "host.pids_max is at least 1"),
        (host.sessions_max > 0, "host.sessions_max is at least 1"),
        (host.calls_max > 0, "host.calls_max is at least 1"),
        (session.pids_max > 0, "session.pids_max is at least 1"),
        (session.calls_max > 0, "session.calls_max is at least 1"),
        (config.call.pids_max > 0, "call.pids_max is at least 1"),
        (config.call.memory > 0, "call.memory is more than 0"),
        (config.call.grant_lifetime >= 1000, "call.grant_lifetime is at least 1s"),
        (os.path.isabs(config.daemon.run_dir), "daemon.run_dir is an absolute path"),
        (os.path.isabs(config.daemon.state_dir), "daemon.state_dir is an absolute path"),
        (
            len(config.daemon.run_dir) <= 40,
            "daemon.run_dir is at most 40 characters: Unix socket paths end at 107",
        ),
    )
    for holds, rule in checks:
        if not holds:
            raise ConfigError(f"{source}: {rule}")


def parse(text: str, source: str = "configuration") -> Config:
    """The configuration in `text` (TOML). Raises ConfigError."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source}: not TOML: {error}") from error
    _check_names(table, Config, "", source)
    try:
        config = msgspec.convert(table, Config, dec_hook=_decode_quantity)
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
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    return parse(text, str(path))
