"""One run of a guest: boots it, hands it the job, passes its output on, and says how it ended."""

import contextlib
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from types import FrameType

from vm.channel import ChannelError, Decoder, Frame, Job, Kind, encode
from vm.console import Console
from vm.outcome import ExitStatus, SetupError
from vm.qemu import Machine, Running, start
from vm.steps import say
from vm.tunnel import Forward, ListenError, Tunnel

CHUNK_BYTES = 65536
# How long the guest may take to start its command, within its timeout: 10 to 20 s emulated on two free cores.
BOOT_TIMEOUT_S = 300.0
# How long the guest may take to stop its command and to flush what it wrote, once asked.
STOP_GRACE_S = 20.0
# A panicking kernel goes on printing, then QEMU ends by itself.
LAST_WORDS_S = 2.0


@dataclass(slots=True)
class Progress:
    """What is known about a run while it goes on."""

    # Seconds from power-on to the command's start, as the guest's kernel counts them.
    started_at_s: float | None = None
    status: int | None = None
    problem: str = ""
    stop_signals: tuple[int, ...] = ()
    has_timed_out: bool = False
    has_lost_guest: bool = False
    has_lost_reader: bool = False


@contextmanager
def stop_requests(progress: Progress) -> Iterator[socket.socket]:
    """Collect SIGINT, SIGTERM and SIGHUP in ``progress`` instead of dying; gives a socket that becomes readable then."""
    wake, theirs = socket.socketpair()
    theirs.setblocking(False)

    def note(number: int, frame: FrameType | None) -> None:
        progress.stop_signals += (number,)
        with contextlib.suppress(BlockingIOError):
            theirs.send(b"s")

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, note) for number in numbers]
    try:
        yield wake
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
        wake.close()
        theirs.close()


class GuestRun:
    """A guest from its boot to its end."""

    def __init__(
        self,
        machine: Machine,
        job: Job,
        timeout_s: float,
        console_log: Path,
        forwards: Sequence[Forward] = (),
    ) -> None:
        self.machine = machine
        self.forwards = forwards
        self.timeout_s = timeout_s
        self.console_log = console_log
        self.progress = Progress()
        self.console = Console()
        self.decoder = Decoder()
        self.outgoing = bytearray(job.encode())

    def run(self, scratch: Path, held_fds: Sequence[int] = ()) -> int:
        """Boot, run the job, stop the guest; returns the status to exit with, having said on stderr why."""
        self.console_log.parent.mkdir(parents=True, exist_ok=True)
        with (
            stop_requests(self.progress) as wake,
            self.console_log.open("wb", buffering=0) as log,
            selectors.DefaultSelector() as selector,
            self._tunnel(selector) as tunnel,
        ):
            running = start(self.machine, scratch, held_fds=held_fds)
            try:
                self._follow(running, wake, log, selector, tunnel)
                if self.progress.has_lost_guest or self.console.has_panicked:
                    self._hear_last_words(running, tunnel, log)
            finally:
                running.process.kill()
                running.process.wait()
                running.console.close()
                running.channel.close()
        return self._conclude(running)

    @contextmanager
    def _tunnel(self, selector: selectors.BaseSelector) -> Iterator[Tunnel]:
        """Give the host's end of the tunnel, listening. Raises SetupError when it cannot."""
        tunnel = Tunnel(selector, self._queue)
        try:
            tunnel.listen(self.forwards)
            yield tunnel
        except ListenError as error:
            raise SetupError(f"{error}. Next step: give --forward another local address.") from error
        finally:
            tunnel.close()

    def _queue(self, kind: Kind, body: bytes) -> None:
        self.outgoing += encode(kind, body)

    def _follow(
        self,
        running: Running,
        wake: socket.socket,
        log: FileIO,
        selector: selectors.BaseSelector,
        tunnel: Tunnel,
    ) -> None:
        """Pass data on until the command has ended, the guest is lost, or it is time to give up."""
        progress = self.progress
        powered_on_s = time.monotonic()
        deadline = powered_on_s + min(self.timeout_s, BOOT_TIMEOUT_S)
        is_stopping = False
        running.channel.setblocking(False)
        for source in (running.console, running.channel, wake):
            selector.register(source, selectors.EVENT_READ)
        while progress.status is None and not progress.has_lost_guest and not self.console.has_panicked:
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self.outgoing else 0)
            selector.modify(running.channel, events)
            for key, mask in selector.select(max(0.0, deadline - time.monotonic())):
                if key.fileobj is running.console:
                    self._read_console(running.console, log)
                elif key.fileobj is running.channel:
                    self._serve_channel(running.channel, tunnel, mask)
                elif key.fileobj is wake:
                    wake.recv(CHUNK_BYTES)
                else:
                    key.data(mask)
            if progress.has_lost_reader or len(progress.stop_signals) > 1:
                return
            if progress.started_at_s is not None and not is_stopping:
                deadline = powered_on_s + self.timeout_s
            is_late = time.monotonic() >= deadline
            if is_late and is_stopping:
                return
            progress.has_timed_out |= is_late
            if (progress.stop_signals or is_late) and not is_stopping and progress.status is None:
                if progress.started_at_s is None:
                    return
                is_stopping = True
                self.outgoing += encode(Kind.STOP)
                deadline = time.monotonic() + STOP_GRACE_S

    def _read_console(self, console: socket.socket, log: FileIO) -> bool:
        data = console.recv(CHUNK_BYTES)
        if not data:
            self.progress.has_lost_guest = True
            return False
        log.write(data)
        self.console.feed(data)
        return True

    def _hear_last_words(self, running: Running, tunnel: Tunnel, log: FileIO) -> None:
        """Read what is still to come from a guest that is going or gone, until QEMU has closed both sockets."""
        deadline = time.monotonic() + LAST_WORDS_S
        with selectors.DefaultSelector() as selector:
            selector.register(running.console, selectors.EVENT_READ)
            selector.register(running.channel, selectors.EVENT_READ)
            while selector.get_map() and (ready := selector.select(max(0.0, deadline - time.monotonic()))):
                for key, mask in ready:
                    if key.fileobj is running.console:
                        is_open = self._read_console(running.console, log)
                    else:
                        is_open = self._serve_channel(running.channel, tunnel, mask)
                    if not is_open:
                        selector.unregister(key.fileobj)

    def _serve_channel(self, channel: socket.socket, tunnel: Tunnel, mask: int) -> bool:
        try:
            if mask & selectors.EVENT_WRITE:
                del self.outgoing[: channel.send(self.outgoing)]
            if not mask & selectors.EVENT_READ:
                return True
            data = channel.recv(CHUNK_BYTES)
            for frame in self.decoder.feed(data):
                self._take(frame, tunnel)
        except ConnectionError:
            data = b""
        except ChannelError as error:
            self.progress.problem = f"the guest's channel is out of step: {error}"
            data = b""
        if not data:
            self.progress.has_lost_guest = True
        return bool(data)

    def _take(self, frame: Frame, tunnel: Tunnel) -> None:
        match frame.kind:
            case Kind.STDOUT:
                self._pass_on(sys.stdout.fileno(), frame.body)
            case Kind.STDERR:
                self._pass_on(sys.stderr.fileno(), frame.body)
            case Kind.STARTED:
                self.progress.started_at_s = float(frame.body)
            case Kind.ENDED:
                self.progress.status = int(frame.body)
            case Kind.PROBLEM:
                self.progress.problem = frame.body.decode(errors="replace")
            case Kind.DATA | Kind.CREDIT | Kind.SHUT | Kind.RESET:
                tunnel.take(frame)
            case Kind.JOB | Kind.STOP | Kind.OPEN:
                raise ChannelError(f"the guest sent {frame.kind.name}")

    def _pass_on(self, descriptor: int, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(descriptor, view) :]
        except BrokenPipeError:
            self.progress.has_lost_reader = True

    def _conclude(self, running: Running) -> int:
        progress = self.progress
        complaints = running.errors.read_text(errors="replace").strip()
        if progress.has_lost_guest and complaints and not self.console.last_lines():
            raise SetupError(f"QEMU did not run the guest: {complaints}")
        if self.console.has_panicked:
            return self._report(running, ExitStatus.PANIC, "the guest's kernel panicked")
        if progress.has_timed_out:
            has_started = progress.started_at_s is not None
            when = "while its command ran" if has_started else "before its command had started"
            after_s = self.timeout_s if has_started else min(self.timeout_s, BOOT_TIMEOUT_S)
            return self._report(
                running, ExitStatus.TIMEOUT, f"the guest was stopped after {after_s:g} s {when}"
            )
        if progress.stop_signals:
            name = signal.Signals(progress.stop_signals[0]).name
            say(f"{name}: the guest was stopped")
            return 128 + progress.stop_signals[0]
        if progress.has_lost_reader:
            return 128 + signal.SIGPIPE
        if progress.status is None:
            return self._report(
                running, ExitStatus.GUEST_LOST, "the guest went away without saying how its command ended"
            )
        if progress.problem:
            say(progress.problem)
        return progress.status

    def _report(self, running: Running, status: ExitStatus, what: str) -> int:
        say(f"{what} (status {status.value})")
        if self.progress.problem:
            say(f"the guest said: {self.progress.problem}")
        complaints = running.errors.read_text(errors="replace").strip()
        if complaints:
            say(f"QEMU said: {complaints}")
        lines = self.console.last_lines()
        say(
            f"last lines of its console, all of which are in {self.console_log}:"
            if lines
            else "its console stayed empty"
        )
        for line in lines:
            print(f"    {line}", file=sys.stderr)
        return status
