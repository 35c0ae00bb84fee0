"""The daemon as a systemd service: readiness, status and watchdog, by datagrams to $NOTIFY_SOCKET.

Source: sd_notify(3), sd_watchdog_enabled(3), systemd.service(5) (Type=notify, WatchdogSec=). Without systemd
every function here does nothing.
"""

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

__all__ = ["Notifier", "ready", "watchdog_interval_s"]

log = logging.getLogger("agentcgroup.host")

# A state file of systemd shows one line; what is longer helps nobody.
_STATUS_MOST_CHARACTERS: Final = 200


@dataclass(frozen=True, slots=True)
class Notifier:
    """Speaks to the service manager. `address` is $NOTIFY_SOCKET; None: there is no manager to speak to."""

    address: str | None

    @classmethod
    def of_environment(cls, environment: Mapping[str, str] = os.environ) -> "Notifier":
        """The manager that started this process, if one did."""
        return cls(environment.get("NOTIFY_SOCKET") or None)

    def send(self, **state: str) -> bool:
        """Send assignments such as READY="1", all in one datagram. False: nobody is there to hear it.

        A manager that cannot be reached is worth a line in the log and no more: the daemon serves all the
        same.
        """
        if self.address is None:
            return False
        if self.address[0] not in "/@":
            log.warning("NOTIFY_SOCKET=%s is of a kind this daemon does not speak to", self.address)
            return False
        text = "\n".join(f"{name}={value}" for name, value in state.items())
        # A leading @ stands for the NUL of an abstract address, unix(7).
        address = "\0" + self.address[1:] if self.address[0] == "@" else self.address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
                # The manager drains its queue quickly or is stuck; in neither case may it hold up the
                # daemon.
                channel.setblocking(False)
                channel.sendto(text.encode(), address)
        except OSError as error:
            log.warning("systemd could not be told %s: %s", ", ".join(state), error)
            return False
        return True

    def status(self, text: str) -> bool:
        """The line that `systemctl status` shows."""
        return self.send(STATUS=text.replace("\n", " ")[:_STATUS_MOST_CHARACTERS])


def watchdog_interval_s(environment: Mapping[str, str] = os.environ) -> float | None:
    """How often the watchdog wants a sign of life: half of WATCHDOG_USEC. None: it wants none from this
    process.
    """
    try:
        within_us = int(environment.get("WATCHDOG_USEC", ""))
        pid = int(environment.get("WATCHDOG_PID", os.getpid()))
    except ValueError:
        return None
    if within_us <= 0 or pid != os.getpid():
        return None
    return within_us / 2 / 1_000_000


@contextlib.contextmanager
def ready(
    loop: asyncio.AbstractEventLoop,
    status: Callable[[], str] | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Iterator[Notifier]:
    """Ready while the context lasts, stopping when it ends.

    In between, the watchdog gets its sign of life from `loop`, so that a loop that hangs is noticed and the
    daemon restarted; `status` is asked for its line with each.
    """
    notifier = Notifier.of_environment(environment)
    interval_s = watchdog_interval_s(environment)
    timer: asyncio.TimerHandle | None = None

    def sign_of_life() -> None:
        nonlocal timer
        notifier.send(WATCHDOG="1", **({"STATUS": status()} if status is not None else {}))
        if interval_s is not None:
            timer = loop.call_later(interval_s, sign_of_life)

    notifier.send(READY="1", **({"STATUS": status()} if status is not None else {}))
    if interval_s is not None and notifier.address is not None:
        sign_of_life()
    try:
        yield notifier
    finally:
        if timer is not None:
            timer.cancel()
        notifier.send(STOPPING="1")
