"""A controller with every figure known, and one with none: the two ends of what a scrape can meet."""

import dataclasses

from agentcgroup.daemon.config import Config
from agentcgroup.daemon.controller import Controller, World
from agentcgroup.daemon.counters import Counters
from agentcgroup.daemon.feedback import Feed
from agentcgroup.daemon.history import DropCause, HistoryStats
from agentcgroup.daemon.host.capabilities import NAMES
from agentcgroup.daemon.model import Capability, Session, Tier, Usage
from tests.fake_history import FakeHistory
from tests.fakes import FakeClock, FakeHost

FULL_USAGE = Usage(
    **{field.name: number * 1000 for number, field in enumerate(dataclasses.fields(Usage), 1)}
)
WORKING = HistoryStats(
    enabled=True, written=3, dropped={DropCause.QUEUE_FULL: 1}, entries=3, size_bytes=8192
)


class NoDoors:
    """Sessions without sockets."""

    async def open(self, session: Session) -> None:
        """Nothing to open."""

    async def close(self, name: str) -> None:
        """Nothing to close."""

    def hear(self) -> None:
        """Nobody to hear of."""


class FullHost(FakeHost):
    """Knows every figure and every capability."""

    capabilities = tuple(
        Capability(name, number % 2 == 0, Tier.CGROUP, "found") for number, name in enumerate(NAMES)
    )

    def session_usage(self, session: str) -> Usage:
        return FULL_USAGE

    def daemon_usage(self) -> tuple[Usage, int]:
        return Usage(cpu_usage_us=3_000_000, cpu_user_us=2_000_000, cpu_system_us=1_000_000), 40 << 20


class SilentHost(FakeHost):
    """A host whose kernel counts nothing."""

    capabilities = ()

    def session_usage(self, session: str) -> Usage:
        return Usage()

    def memory_current_bytes(self) -> int | None:
        return None


class FixedHistory:
    """A history that stands still."""

    def __init__(self, stats: HistoryStats = WORKING) -> None:
        self._stats = stats

    def stats(self) -> HistoryStats:
        return self._stats


def make_controller(host: FakeHost, config: Config | None = None) -> Controller:
    """A real controller on `host`."""
    controller = Controller(World(config or Config(), host, FakeHistory(), FakeClock(), Counters(), Feed()))
    controller.use_doors(NoDoors())
    return controller
