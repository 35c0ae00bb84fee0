"""Keeps our CPU scheduler attached as the configuration says, and says when it is not.

Attach before PSI triggers are opened: opening one while a scheduler is being enabled is reported to deadlock some
kernels. Whatever happens here, cpu.weight and cpu.max go on being enforced: without us by the kernel's own scheduler.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable
from typing import Final, Protocol

from agentcgroup.bpf.libbpf import BpfError
from agentcgroup.bpf.scheduler import (
    CpuScheduler,
    ForeignScheduler,
    LatencyClass,
    SchedulerEnd,
    SchedulerMode,
)
from agentcgroup.bpf.shared_maps import SharedMaps
from agentcgroup.daemon.config import Config
from agentcgroup.daemon.model import CpuClass, SchedulerState, SchedulerStatus

__all__ = ["Scheduler", "SchedulerKeeper", "keeper_for"]

log = logging.getLogger("agentcgroup.scheduler")

# The kernel tells the end of a scheduler at once; this is for one that could not tell it.
_LOOK_EVERY_S: Final = 30.0
_BACK_OFF_FIRST_S: Final = 1.0
_BACK_OFF_LAST_S: Final = 300.0
# Having run so long, it may fail anew without being thought of as failing always.
_STABLE_S: Final = 600.0
# include/uapi/linux/sched.h
_SCHED_EXT: Final = 7
# A process may start threads while they are listed; who does so longer than this keeps some of them back.
_LISTINGS_MAX: Final = 5


class Scheduler(Protocol):
    """What CpuScheduler does for us."""

    def attach_scheduler(self, mode: SchedulerMode) -> None: ...
    def set_class(self, cgroup_id: int, latency: LatencyClass) -> None: ...
    def end(self) -> SchedulerEnd | None: ...
    def fileno(self) -> int:
        """Becomes readable when it ends."""

    def close(self) -> None: ...


def keeper_for(config: Config, shared: SharedMaps) -> "SchedulerKeeper":
    """Off, too, where BPF is switched off and in a dry run, which changes nothing. `shared`: see holds.bpf.h."""
    is_off = config.scheduler.mode == "off" or config.bpf.enabled == "off" or config.daemon.dry_run
    mode = None if is_off else SchedulerMode(config.scheduler.mode)
    return SchedulerKeeper(mode, lambda: CpuScheduler(shared=shared))


class SchedulerKeeper:
    """One for the daemon's life. `mode` None: off. Used on the event loop only."""

    def __init__(
        self,
        mode: SchedulerMode | None,
        load: Callable[[], Scheduler] = CpuScheduler,
        on_change: Callable[[SchedulerStatus], None] = lambda status: None,
    ) -> None:
        """`on_change` hears every change of the status; it must not raise."""
        self._mode = mode
        self._load = load
        self._listeners = [on_change]
        self._scheduler: Scheduler | None = None
        self._status = SchedulerStatus(
            mode=mode.value if mode is not None else "off",
            reason="off in the configuration" if mode is None else "",
        )
        # Kept here too: the map goes with the scheduler, the classes must outlive an ejection.
        self._classes: dict[int, LatencyClass] = {}
        self._watch: asyncio.Task[None] | None = None
        self._back_off_s = _BACK_OFF_FIRST_S

    @property
    def status(self) -> SchedulerStatus:
        return self._status

    @property
    def schedules_everybody(self) -> bool:
        """Whether a task of any process can be held now."""
        return self._status.state is SchedulerState.ATTACHED and self._mode is SchedulerMode.FULL

    def start(self) -> None:
        """Attach, and from now on see to it that it stays so. Does not raise: the status says what happened."""
        if self._mode is None:
            return
        self._attach(self._mode)
        if self._status.state is not SchedulerState.REFUSED:
            self._watch = asyncio.get_running_loop().create_task(
                self._keep(self._mode), name="scheduler keeper"
            )

    async def stop(self) -> None:
        """Detach; the kernel's own scheduler goes on."""
        if self._watch is not None:
            self._watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watch
            self._watch = None
        self._drop()
        if self._status.state is not SchedulerState.OFF:
            self._say(SchedulerState.OFF, "the daemon is stopping")

    def listen(self, on_change: Callable[[], None]) -> None:
        """`on_change`, too, hears every change of the status; it must not raise."""
        self._listeners.append(lambda status: on_change())

    def declare_agent(self, cgroup_id: int) -> None:
        """This cgroup is an agent runtime."""
        self.set_class(cgroup_id, LatencyClass.AGENT)

    def declare_call(self, cgroup_id: int, cpu_class: CpuClass) -> None:
        """This cgroup is a call of `cpu_class`."""
        self.set_class(cgroup_id, LatencyClass[cpu_class.name])

    def set_class(self, cgroup_id: int, latency: LatencyClass) -> None:
        """How soon wake-ups of this cgroup and of those below it are served. Remembered for every later attachment."""
        self._classes[cgroup_id] = latency
        self._tell_class(cgroup_id, latency)

    def forget(self, cgroup_id: int) -> None:
        """The cgroup is gone."""
        self._classes.pop(cgroup_id, None)

    @property
    def takes_processes(self) -> bool:
        """Whether `take` has to be called for every process that enters a call."""
        return self._mode is SchedulerMode.PARTIAL

    def take(self, pid: int) -> None:
        """In mode partial: schedule this process, all its threads, and what they will fork.

        Processes of a real-time or deadline policy keep it. While the scheduler is not attached the kernel treats the
        policy like the ordinary one (sched(7)).
        """
        if not self.takes_processes:
            return
        taken: set[str] = set()
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for _ in range(_LISTINGS_MAX):
                threads = set(os.listdir(f"/proc/{pid}/task")) - taken
                if not threads:
                    return
                taken |= threads
                for thread in threads:
                    _take_thread(int(thread))

    def _tell_class(self, cgroup_id: int, latency: LatencyClass) -> None:
        if self._scheduler is None:
            return
        try:
            self._scheduler.set_class(cgroup_id, latency)
        except BpfError as error:
            log.warning("cgroup %d stays of normal latency: %s", cgroup_id, error)

    def _say(self, state: SchedulerState, reason: str, ejections: int | None = None) -> None:
        count = self._status.ejections if ejections is None else ejections
        self._status = SchedulerStatus(state, self._status.mode, reason, count)
        for listener in self._listeners:
            listener(self._status)

    def _attach(self, mode: SchedulerMode) -> None:
        try:
            self._scheduler = self._load()
            self._scheduler.attach_scheduler(mode)
        except ForeignScheduler as error:
            log.warning("CPU scheduler not attached: %s", error)
            self._say(SchedulerState.REFUSED, str(error))
        except BpfError as error:
            self._drop()
            log.warning("CPU scheduler not attached, the kernel's own enforces the same weights: %s", error)
            self._say(SchedulerState.WAITING, str(error))
        except OSError as error:
            log.warning("CPU scheduler not attached: this kernel has no sched_ext (%s)", error)
            self._say(SchedulerState.REFUSED, f"no sched_ext: {error}")
        else:
            for cgroup_id, latency in self._classes.items():
                self._tell_class(cgroup_id, latency)
            log.info("CPU scheduler attached: mode %s, %d classes", mode, len(self._classes))
            self._say(SchedulerState.ATTACHED, "")

    def _drop(self) -> None:
        if self._scheduler is not None:
            self._scheduler.close()
            self._scheduler = None

    async def _keep(self, mode: SchedulerMode) -> None:
        loop = asyncio.get_running_loop()
        attached_at_s = loop.time()
        while self._status.state is not SchedulerState.REFUSED:
            if self._scheduler is None:
                await asyncio.sleep(self._back_off_s)
                self._back_off_s = min(self._back_off_s * 2, _BACK_OFF_LAST_S)
                self._attach(mode)
                attached_at_s = loop.time()
                continue
            await _readable(self._scheduler.fileno(), _LOOK_EVERY_S)
            end = self._scheduler.end()
            if end is None:
                continue
            self._drop()
            if loop.time() - attached_at_s > _STABLE_S:
                self._back_off_s = _BACK_OFF_FIRST_S
            log.error(
                "CPU scheduler ended: %s; the kernel's own enforces the same weights; next try in %.0f s",
                end,
                self._back_off_s,
            )
            self._say(SchedulerState.WAITING, str(end), self._status.ejections + 1)


def _take_thread(thread: int) -> None:
    try:
        policy = os.sched_getscheduler(thread)
        if policy in (os.SCHED_OTHER, os.SCHED_BATCH, os.SCHED_IDLE):
            os.sched_setscheduler(thread, _SCHED_EXT, os.sched_param(0))
    except ProcessLookupError:
        return
    except PermissionError as error:
        log.warning("thread %d stays with the kernel's own scheduler: %s", thread, error)


async def _readable(descriptor: int, at_most_s: float) -> None:
    """Until there is something to read, or the time is over."""
    loop, told = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(descriptor, told.set)
    try:
        async with asyncio.timeout(at_most_s):
            await told.wait()
    except TimeoutError:
        pass
    finally:
        loop.remove_reader(descriptor)
