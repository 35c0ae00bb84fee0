"""The agent in the guest: takes the job from the host, runs it as a systemd service, sends its output and its end.

It runs as ``vm-agent.service`` and starts ``vm-command.service``, whose processes are therefore none of its own: the
command may do to its cgroup what it likes. Output comes through named pipes; the exit status from ``ExecStopPost=``
(systemd.service(5)), which runs when every process of the command's service is gone.
"""

import contextlib
import fcntl
import os
import selectors
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from vm.channel import PORT_NAME, Decoder, Frame, Job, Kind, decode_job, encode
from vm.tunnel import Tunnel

RUN = Path("/run/vm")
PORTS = Path("/sys/class/virtio-ports")
OUT = Path("/mnt/out")
SHARES = Path("/mnt/share")
COMMAND_UNIT = "vm-command.service"
CHUNK_BYTES = 65536
PIPE_BYTES = 1024 * 1024
DEVICE_WAIT_S = 10.0


def find_port(ports: Path = PORTS) -> Path | None:
    """Return the device of our virtio-serial port; None when there is none (yet)."""
    for entry in ports.glob("*"):
        with contextlib.suppress(OSError):
            if (entry / "name").read_text().strip() == PORT_NAME:
                return Path("/dev") / entry.name
    return None


def find_disk(
    number: int, blocks: Path = Path("/sys/class/block"), devices: Path = Path("/dev")
) -> Path | None:
    """Return the device of the NVMe namespace with this number; None when there is none (yet)."""
    for entry in blocks.glob("nvme*"):
        with contextlib.suppress(OSError):
            # The paths of a multipath device (nvme0c0n1) have a number too, but no device to open.
            if (entry / "nsid").read_text().strip() == str(number) and (devices / entry.name).exists():
                return devices / entry.name
    return None


def wait_for(what: str, find: Callable[[], Path | None]) -> Path:
    """Call ``find`` until it finds something; raises TimeoutError after a while."""
    deadline = time.monotonic() + DEVICE_WAIT_S
    while time.monotonic() < deadline:
        path = find()
        if path is not None and path.exists():
            return path
        time.sleep(0.05)
    raise TimeoutError(f"{what} did not appear in {DEVICE_WAIT_S:.0f} s")


def command_script(job: Job, run: Path) -> str:
    """Return the shell script that becomes the command: environment, output pipes, exec."""
    exports = [f"export {name}={shlex.quote(value)}" for name, value in job.environment]
    return "\n".join(
        [
            *exports,
            'cd "$HOME"',
            f"exec </dev/null >{run}/stdout 2>{run}/stderr",
            f"exec {shlex.join(job.argv)}",
            "",
        ]
    )


def parse_end(text: str) -> int | None:
    """Turn "EXIT_CODE EXIT_STATUS" of systemd.exec(5) into a shell's exit status; None when it is neither."""
    match text.split():
        case ["exited", number] if number.isdigit():
            return int(number)
        case ["killed" | "dumped", name]:
            with contextlib.suppress(KeyError):
                return 128 + signal.Signals[f"SIG{name}"].value
    return None


class Agent:
    """One job from its start to its end."""

    def __init__(self, port: int, run: Path = RUN, out: Path = OUT) -> None:
        self.port = port
        self.run = run
        self.out = out
        self.decoder = Decoder()
        self.job: Job | None = None
        self.pipes: dict[str, int] = {}

    def make_pipes(self) -> None:
        """Make the named pipes; opened for both directions they never report an end of their own."""
        self.run.mkdir(parents=True, exist_ok=True)
        for name in ("stdout", "stderr", "status"):
            path = self.run / name
            os.mkfifo(path, 0o666)
            pipe = os.open(path, os.O_RDWR | os.O_NONBLOCK)
            with contextlib.suppress(OSError):
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
            self.pipes[name] = pipe

    def send(self, kind: Kind, body: bytes = b"") -> None:
        """Send one frame, blocking until the host has taken it."""
        data = memoryview(encode(kind, body))
        while data:
            data = data[os.write(self.port, data) :]

    def pump(self, name: str, kind: Kind) -> bool:
        """Send what one pipe holds, at most one chunk; False when it is empty."""
        try:
            data = os.read(self.pipes[name], CHUNK_BYTES)
        except BlockingIOError:
            return False
        self.send(kind, data)
        return True

    def serve(self) -> int:
        """Run until the command has ended; returns its exit status."""
        self.make_pipes()
        with selectors.DefaultSelector() as selector:
            tunnel = Tunnel(selector, self.send)
            selector.register(self.port, selectors.EVENT_READ, "port")
            for name, pipe in self.pipes.items():
                selector.register(pipe, selectors.EVENT_READ, name)
            while True:
                ready = set()
                for key, mask in selector.select():
                    if callable(key.data):
                        key.data(mask)
                    else:
                        ready.add(key.data)
                if "stdout" in ready:
                    self.pump("stdout", Kind.STDOUT)
                if "stderr" in ready:
                    self.pump("stderr", Kind.STDERR)
                if "port" in ready:
                    self.take(tunnel)
                if "status" in ready:
                    return self.end(os.read(self.pipes["status"], CHUNK_BYTES).decode())

    def take(self, tunnel: Tunnel) -> None:
        """Read what the host sent and do it."""
        for frame in self.decoder.feed(os.read(self.port, CHUNK_BYTES)):
            self.obey(frame, tunnel)

    def obey(self, frame: Frame, tunnel: Tunnel) -> None:
        """Start the job, stop it, or carry on a connection."""
        match frame.kind:
            case Kind.JOB:
                self.job = decode_job(frame.body)
                for number, name in self.job.shares:
                    self.mount_share(number, name)
                (self.run / "command").write_text(
                    command_script(self.job, self.run), "utf-8", "surrogateescape"
                )
                self.send(Kind.STARTED, Path("/proc/uptime").read_bytes().split()[0])
                subprocess.run(["systemctl", "--no-block", "start", COMMAND_UNIT], check=True)
            case Kind.STOP:
                subprocess.run(["systemctl", "--no-block", "stop", COMMAND_UNIT], check=False)
            case Kind.OPEN | Kind.DATA | Kind.CREDIT | Kind.SHUT | Kind.RESET:
                tunnel.take(frame, self.job.targets if self.job else ())
            case _:
                self.send(
                    Kind.PROBLEM, f"the agent does not know what to do with {frame.kind.name}".encode()
                )

    def mount_share(self, number: int, name: str) -> None:
        """Mount one share read-only under its name."""
        device = wait_for(f"the disk of share {name}", lambda: find_disk(number))
        place = SHARES / name
        place.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "-t", "ext4", "-o", "ro", device, place], check=True)

    def end(self, text: str) -> int:
        """Send the rest of the output, make what is under /mnt/out durable, and say how the command ended."""
        for name, kind in (("stdout", Kind.STDOUT), ("stderr", Kind.STDERR)):
            # Bounded by what a pipe holds: a process that escaped from the unit may go on writing for ever.
            for _ in range(2 * PIPE_BYTES // CHUNK_BYTES):
                if not self.pump(name, kind):
                    break
        subprocess.run(["sync", "-f", self.out], check=False)
        status = parse_end(text)
        if status is None:
            self.send(Kind.PROBLEM, f"systemd reported an end that is not one: {text!r}".encode())
            status = 255
        self.send(Kind.ENDED, str(status).encode())
        return status


def main() -> int:
    """Serve the host on the virtio-serial port."""
    port = os.open(wait_for(f"virtio-serial port {PORT_NAME}", find_port), os.O_RDWR)
    agent = Agent(port)
    try:
        agent.serve()
    except Exception as error:
        # Nobody else can tell the host; the traceback goes to the journal.
        agent.send(Kind.PROBLEM, f"{type(error).__name__}: {error}".encode())
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main())
