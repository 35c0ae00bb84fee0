"""Builds every object once, runs until told to stop, takes everything down in order."""

import asyncio
import contextlib
import ctypes
import fcntl
import gc
import logging
import os
import resource
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Final

from agentcgroup import __version__
from agentcgroup.bpf.shared_maps import HOLDS, SharedMaps
from agentcgroup.daemon.api.server import Api
from agentcgroup.daemon.config import Config
from agentcgroup.daemon.controller import Controller, World
from agentcgroup.daemon.counters import Counters
from agentcgroup.daemon.door.native import open_door
from agentcgroup.daemon.feedback import Feed
from agentcgroup.daemon.history import open_history
from agentcgroup.daemon.host import capabilities, systemd
from agentcgroup.daemon.host.docker import DockerFollower
from agentcgroup.daemon.host.dry import DryRunHost
from agentcgroup.daemon.host.kernel_events import open_kernel_events
from agentcgroup.daemon.host.linux import LinuxHost
from agentcgroup.daemon.host.prepare import HostUnfit, limit_root, prepare, sweep
from agentcgroup.daemon.host.scheduler import keeper_for
from agentcgroup.daemon.metrics.endpoint import MetricsEndpoint
from agentcgroup.daemon.ports import Host
from agentcgroup.daemon.reload import Reloader

log = logging.getLogger("agentcgroup")


# Of the history's calls so many are looked at when the daemon starts: a few tenths of a second.
LEARN_FROM: Final = 5000


class AlreadyRunning(Exception):
    """Another daemon holds this run directory."""


class SystemClock:
    def now_ns(self) -> int:
        return time.time_ns()


@contextlib.contextmanager
def sole_instance(run_dir: Path) -> Iterator[None]:
    """Holds the run directory against a second daemon, which would take over the sockets of the first.

    The kernel drops the lock when the process ends, however it ends. Raises AlreadyRunning.
    """
    run_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
    path = run_dir / "daemon.lock"
    with open(path, "a+", encoding="ascii") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            raise AlreadyRunning(
                f"{path} is held by process {holder}: another agentcgroupd is running. "
                "Stop it (systemctl stop agentcgroup), or give this one its own daemon.run_dir and host.cgroup_root"
            ) from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


def _raise_descriptor_limit() -> None:
    # Each live call holds a cgroup, a pidfd and, until it begins, a connection.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _give_back_heap() -> None:
    """Returns what the start needed for a moment to the kernel: malloc_trim(3), which only glibc has."""
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


@contextlib.asynccontextmanager
async def _host(config: Config) -> AsyncIterator[Host]:
    ground = prepare(config)
    found = capabilities.probe(Path(ground.root.path))
    if config.bpf.enabled == "off":
        found = capabilities.without_bpf(
            found, "switched off: bpf.enabled in the configuration, or --no-bpf"
        )
    # For the scheduler and for every program that has it hold tasks.
    shared = SharedMaps(HOLDS)
    events = open_kernel_events(config, found, ground.root, shared)
    tier = capabilities.tier(found)
    # Before anything opens a PSI trigger, see SchedulerKeeper.
    keeper = keeper_for(config, shared)
    keeper.start()
    host = LinuxHost(config, ground.root, ground.mount, ground.controllers, found, tier, events, keeper)
    try:
        if config.daemon.dry_run:
            yield DryRunHost(host)
        else:
            sweep(ground.root)
            limit_root(ground.root, host.memory_capacity_bytes, config)
            yield host
    finally:
        host.close()
        await keeper.stop()
        shared.close()


async def _take_down(controller: Controller, api: Api, *, keep: bool) -> None:
    many = len(controller.sessions())
    if keep:
        log.info("stopping: %d sessions run on, the next start takes them over", many)
        await controller.leave()
    else:
        log.info("stopping: ending %d sessions", many)
        await controller.close()
    await api.stop(sessions_stay=keep)


async def run(config: Config, load: Callable[[], Config]) -> None:
    """Runs the daemon until SIGTERM, which sessions may outlive (daemon.on_stop), or SIGINT, which ends them.

    `load` reads the configuration again, on SIGHUP or an operator's word.

    Raises HostUnfit, AlreadyRunning or ConfigError before it serves.
    """
    _raise_descriptor_limit()
    stop, interrupt = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_interrupt() -> None:
        interrupt.set()
        stop.set()

    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGINT, on_interrupt)
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(sole_instance(Path(config.daemon.run_dir)))
        host = await stack.enter_async_context(_host(config))
        counters, feed = Counters(), Feed()
        history = open_history(config.history, config.daemon.state_dir)
        stack.callback(history.close)
        controller = Controller(World(config, host, history, SystemClock(), counters, feed))
        learned = controller.learn_from(history.newest(LEARN_FROM))
        log.info("learned from %d calls of the history", learned)
        host.listen(controller)
        reloader = Reloader(config, load, controller.reconfigure)
        loop.add_signal_handler(signal.SIGHUP, reloader.reload_on_signal)
        native = None if config.daemon.dry_run else open_door()
        if native is not None:
            stack.callback(native.close)
        api = Api(config, controller, history, reloader, native)
        controller.use_doors(api)
        left = host.records.sessions()
        api.prepare([kept.name for kept in left])

        async def take_down() -> None:
            on_stop = "end" if interrupt.is_set() else controller.config.daemon.on_stop
            # What fails ends nobody's work, whatever is configured for a stop.
            await _take_down(controller, api, keep=on_stop == "keep" or not stop.is_set())

        stack.push_async_callback(take_down)
        await controller.take_over(left)
        await api.start()
        if config.metrics.enabled:
            endpoint = MetricsEndpoint(config, controller, history)
            await endpoint.start()
            stack.push_async_callback(endpoint.stop)
        if config.docker.enabled and not config.daemon.dry_run:
            follower = DockerFollower(config, controller, api.show_feedback)
            await follower.start()
            stack.push_async_callback(follower.stop)
        log.info(
            "agentcgroupd %s ready: tier %s, cgroup root %s, operator socket %s/operator.sock",
            __version__,
            host.tier,
            host.cgroup_root,
            config.daemon.run_dir,
        )
        # The threads of history and metrics must not keep the loop from a launch for the default of 5 ms.
        sys.setswitchinterval(0.0005)
        # What lives now lives for good: the collector need not walk it in the middle of a launch.
        gc.collect()
        _give_back_heap()
        gc.freeze()
        stack.enter_context(systemd.ready(loop))
        await stop.wait()


__all__ = ["AlreadyRunning", "HostUnfit", "run"]
