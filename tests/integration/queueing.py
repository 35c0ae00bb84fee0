"""Sessions in which calls wait, for the tests of the queue."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from agentcgroup.daemon.config import Config, DaemonConfig, QueueConfig
from agentcgroup.daemon.model import Intent
from tests.integration.harness import MIB, Daemon, until

BIG = Intent(memory_bytes=400 * MIB)


@contextlib.asynccontextmanager
async def served(run_dir: Path, queue: QueueConfig) -> AsyncIterator[Daemon]:
    daemon = Daemon(run_dir, Config(daemon=DaemonConfig(run_dir=str(run_dir)), queue=queue))
    await daemon.start()
    try:
        yield daemon
    finally:
        await daemon.stop()


async def crowded(daemon: Daemon, name: str = "web") -> str:
    """A session of 512 MiB for calls of which a declared one, whose id this is, holds 400."""
    await daemon.open(name, 768 * MIB)
    return daemon.controller.declare(name, BIG).call_id


async def until_waiting(daemon: Daemon, calls: int) -> None:
    """Waits until so many calls are in the queue."""
    await until(lambda: daemon.controller.calls_waiting == calls)


async def until_followed(daemon: Daemon) -> None:
    """Waits until somebody listens for the answer to a call in the queue: a request has arrived."""
    await until(lambda: any(wait.listeners for wait in daemon.controller._waits.values()))
