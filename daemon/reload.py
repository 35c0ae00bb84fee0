"""A changed configuration for a running daemon: what can take effect now does, what needs a start is said, nothing ends.

Defaults and bounds are read when they are needed, so they can change under live sessions. Sockets, files and what is loaded
into the kernel were set up at start and stay as they are.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import msgspec

from agentcgroup.daemon import logs
from agentcgroup.daemon.config import Config, ConfigError
from agentcgroup.daemon.errors import Kind, RequestError

log = logging.getLogger("agentcgroup")

# Sections, or single keys of one, that are read anew whenever they are needed.
LIVE: Final = frozenset(
    {
        "session",
        "call",
        "queue",
        "suggest",
        "daemon.log_level",
        "daemon.on_stop",
        "host.sessions_max",
        "host.calls_max",
        "host.oversubscription",
        "history.samples",
    }
)


@dataclass(frozen=True, slots=True)
class Change:
    """One key that differs between the configuration in force and the file."""

    key: str
    old: str
    new: str
    is_live: bool

    def __str__(self) -> str:
        return f"{self.key}: {self.old} -> {self.new}" + (
            "" if self.is_live else " (takes effect at the next start)"
        )


def _differences(old: Config, new: Config) -> Iterator[tuple[str, str, object, object]]:
    for section in old.__struct_fields__:
        before, after = getattr(old, section), getattr(new, section)
        for key in before.__struct_fields__:
            if getattr(before, key) != getattr(after, key):
                yield section, key, getattr(before, key), getattr(after, key)


def changes(old: Config, new: Config) -> tuple[Change, ...]:
    """What `new` says differently, in the order of the file's sections."""
    return tuple(
        Change(f"{section}.{key}", str(before), str(after), bool({section, f"{section}.{key}"} & LIVE))
        for section, key, before, after in _differences(old, new)
    )


def merged(old: Config, new: Config) -> Config:
    """`old` with those values of `new` that can take effect in a running daemon."""
    sections: dict[str, msgspec.Struct] = {}
    for section, key, _, after in _differences(old, new):
        if {section, f"{section}.{key}"} & LIVE:
            held = sections.get(section, getattr(old, section))
            sections[section] = msgspec.structs.replace(held, **{key: after})
    return msgspec.structs.replace(old, **sections)


class Reloader:
    """Reads the configuration again and hands on what can change. `load` raises ConfigError when the file is wrong."""

    def __init__(
        self, config: Config, load: Callable[[], Config], use: Callable[[Config, str], None]
    ) -> None:
        self._config = config
        self._load: Final = load
        self._use: Final = use

    def reload(self) -> tuple[Change, ...]:
        """What changed. Raises RequestError(INVALID) for a wrong file; then the configuration in force stays."""
        try:
            found = self._load()
        except ConfigError as error:
            log.error("the configuration was not reloaded, the old one stays in force: %s", error)
            raise RequestError(
                Kind.INVALID,
                str(error),
                "mend the file and reload again; until then the old configuration stays in force",
            ) from error
        told = changes(self._config, found)
        self._config = merged(self._config, found)
        logs.set_level(self._config.daemon.log_level)
        words = "; ".join(map(str, told)) or "nothing has changed"
        self._use(self._config, words)
        log.info("configuration reloaded: %s", words)
        return told

    def reload_on_signal(self) -> None:
        """The same for SIGHUP, which nobody waits for: what is wrong is in the log."""
        try:
            self.reload()
        except RequestError:
            return
