"""Callbacks for changes of cgroup files: what agentcgroup.cgroups.watch tells, handed out on the event loop."""

import asyncio
from collections.abc import Callable
from typing import Any

from agentcgroup.cgroups.cgroup import Cgroup
from agentcgroup.cgroups.files import InterfaceFile
from agentcgroup.cgroups.watch import EventWatch, WatchEventKind


class Changes:
    """Watches files of cgroups on the running event loop, whose reader it is until `close`."""

    def __init__(self) -> None:
        self._events = EventWatch()
        self._changed: dict[int, Callable[[], None]] = {}
        self._lost: Callable[[], None] = lambda: None
        asyncio.get_running_loop().add_reader(self._events.fileno(), self._on_events)

    def __len__(self) -> int:
        """How many files are watched."""
        return len(self._changed)

    def on_loss(self, lost: Callable[[], None]) -> None:
        """`lost` is called when the kernel dropped events, before every watch's callback, as any may be due."""
        self._lost = lost

    def watch(self, cgroup: Cgroup, file: InterfaceFile[Any], changed: Callable[[], None]) -> int:
        """Calls `changed` when the kernel says that the file has, the last time when the cgroup is gone.

        The id is for `forget`. Raises CgroupError, and CgroupGone when the cgroup is gone already.
        """
        watch_id = self._events.add(cgroup, file)
        self._changed[watch_id] = changed
        return watch_id

    def forget(self, watch_id: int) -> None:
        """Ends a watch; one that has ended by itself is ignored."""
        self._changed.pop(watch_id, None)
        self._events.remove(watch_id)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._events.fileno())
        self._events.close()

    def _on_events(self) -> None:
        for event in self._events.read():
            if event.kind is WatchEventKind.OVERFLOW:
                self._lost()
                due = list(self._changed.values())
            else:
                changed = self._changed.get(event.watch_id)
                due = [changed] if changed else []
                if event.kind is WatchEventKind.GONE:
                    self._changed.pop(event.watch_id, None)
            for changed in due:
                changed()
