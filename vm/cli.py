"""The command line of ``vm/run``."""

import argparse
import fcntl
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from vm import disk, outdir
from vm.accel import choose_accelerator
from vm.app import PREFIX, ensure_app, read_project
from vm.cache import Cache, default_cache_directory
from vm.channel import Job
from vm.guestrun import GuestRun
from vm.kernel import DEFAULT_SERIES, SERIES, ensure_kernel
from vm.outcome import ExitStatus, SetupError
from vm.packages import ensure_tools
from vm.qemu import Disk, Machine
from vm.rootfs import ensure_root
from vm.steps import say

REPOSITORY = Path(__file__).resolve().parent.parent
DEFAULT_OUT = Path("build/vm/out")
DEFAULT_TIMEOUT_S = 900.0
MEMORY = re.compile(r"^[1-9][0-9]*[MG]$")
SERIES_FORM = re.compile(r"^\d+\.\d+$")

DESCRIPTION = "Run one command in a Debian guest with cgroup v2, systemd, Docker and this project installed."
EPILOG = """\
The guest has no network. The command runs as root under systemd, with /root as its directory and /dev/null as its
stdin; agentcg and agentcgroupd are on PATH, installed from the working tree in /opt/agentcgroup. Everything the guest
changes is dropped at the end, except what the command writes under /mnt/out.

exit status:
  the command's own, 128+N when signal N ended it, and of vm/run itself:
  240  the guest's kernel panicked           242  the guest went away (powered off, QEMU died)
  241  the timeout passed                    243  set-up or arguments failed: nothing was run
  130  Ctrl-C                                (each with a line on stderr that begins with "vm:")

environment:
  AGENTCGROUP_CACHE_DIR    where kernels and images are kept (else agentcgroup/vm in $XDG_CACHE_HOME or ~/.cache)
  AGENTCGROUP_VM_PARALLEL  1: do not wait for other guests of this host

examples:
  vm/run -- uname -a
  vm/run --kernel 6.12 -- agentcg check
  vm/run --share tests --out build/kernel -- sh -c 'cd /mnt/share/tests && pytest kernel --junitxml /mnt/out/kernel.xml'
"""


@dataclass(frozen=True, slots=True)
class Arguments:
    """What the user asked for."""

    series: str
    cpus: int
    memory: str
    shares: tuple[Path, ...]
    out: Path
    timeout_s: float
    is_bare: bool
    is_build_only: bool
    is_print_cache: bool
    is_clean: bool
    command: tuple[str, ...]


class Parser(argparse.ArgumentParser):
    """Exits with our status for failed set-ups: 2 could be the command's."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and how to learn more."""
        self.exit(ExitStatus.SETUP_FAILED, f"vm: {message}. Next step: vm/run --help\n")


def _series(text: str) -> str:
    if not SERIES_FORM.match(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a kernel series like {', '.join(SERIES)}")
    return text


def _memory(text: str) -> str:
    if not MEMORY.match(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size like 4G or 1500M")
    return text


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 64:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of CPUs from 1 to 64")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 7 * 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0 and below a week")
    return value


def _directory(text: str) -> Path:
    path = Path(text)
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is not a directory")
    return path.resolve()


def make_parser() -> Parser:
    """Return the parser, whose --help teaches."""
    parser = Parser("vm/run", description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
                    usage="vm/run [OPTIONS] -- COMMAND...", allow_abbrev=False)
    add = parser.add_argument
    add("--kernel", type=_series, default=DEFAULT_SERIES, metavar="SERIES",
        help=f"newest Debian kernel of this series; tried: {', '.join(SERIES)} (default: %(default)s)")
    add("--cpus", type=_count, default=2, metavar="N", help="processors of the guest (default: %(default)s)")
    add("--memory", type=_memory, default="4G", metavar="SIZE", help="memory of the guest (default: %(default)s)")
    add("--share", type=_directory, action="append", default=[], metavar="DIR", dest="shares",
        help="show a copy of DIR, read-only, as /mnt/share/<its name>; may be given several times")
    add("--out", type=Path, default=DEFAULT_OUT, metavar="DIR",
        help="bring what is under /mnt/out at the end to DIR, replacing files of the same name (default: %(default)s, emptied first)")
    add("--timeout", type=_seconds, default=DEFAULT_TIMEOUT_S, metavar="S",
        help="stop the guest after this many seconds of running, boot included (default: %(default).0f)")
    add("--bare", action="store_true", help="without the project: for looking at the kernel alone, or when the tree does not build")
    add("--build-only", action="store_true", help="prepare everything for this kernel, boot nothing")
    add("--print-cache", action="store_true", help="list what the cache holds, in MiB")
    add("--clean", action="store_true", help="remove the cache")
    add("command", nargs="*", metavar="COMMAND", help=argparse.SUPPRESS)
    return parser


def parse(words: Sequence[str]) -> Arguments:
    """Read the command line; exits with status 243 when it makes no sense."""
    parser = make_parser()
    own, command = (words[:words.index("--")], words[words.index("--") + 1:]) if "--" in words else (words, [])
    found = parser.parse_args(list(own))
    if found.command:
        parser.error(f"the command goes after --: vm/run [OPTIONS] -- {' '.join([*found.command, *command])}")
    arguments = Arguments(found.kernel, found.cpus, found.memory, tuple(found.shares), found.out, found.timeout, found.bare,
                          found.build_only, found.print_cache, found.clean, tuple(command))
    without_command = arguments.is_build_only + arguments.is_print_cache + arguments.is_clean
    if without_command > 1:
        parser.error("--build-only, --print-cache and --clean exclude each other")
    if bool(without_command) == bool(command):
        parser.error("a command is missing after --" if not command else "this option takes no command")
    names = [share.name for share in arguments.shares]
    doubles = {name for name in names if names.count(name) > 1}
    if doubles:
        parser.error(f"two shares would both be /mnt/share/{doubles.pop()}")
    if "" in names:
        parser.error("/ cannot be shared")
    return arguments


@contextmanager
def guest_lock() -> Iterator[tuple[int, ...]]:
    """Hold the host-wide right to run a guest; gives the descriptors QEMU has to hold too.

    One guest at a time keeps timings honest on small machines. The kernel drops the lock with the last holder.
    """
    if os.environ.get("AGENTCGROUP_VM_PARALLEL") == "1":
        yield ()
        return
    directory = next((path for path in (Path("/run/lock"), Path("/tmp")) if os.access(path, os.W_OK)), Path("/tmp"))
    with (directory / "agentcgroup-vm.lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            say(f"waiting for the guest of pid {file.read().strip() or 'unknown'}")
            fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        file.truncate()
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield (file.fileno(),)


def job_of(command: Sequence[str], shares: Sequence[tuple[int, str]]) -> Job:
    """Return what the guest is to do: the command, and under which names to mount which disks."""
    environment = {
        "HOME": "/root", "USER": "root", "LOGNAME": "root", "SHELL": "/bin/bash", "LANG": "C.UTF-8",
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM": os.environ.get("TERM", "dumb"),
        "AGENTCGROUP_VM": "1",
    }
    return Job(tuple(command), tuple(environment.items()), tuple(shares))


def run(arguments: Arguments, cache: Cache) -> int:
    """Prepare what is missing, boot, run the command; returns the exit status."""
    ensure_tools(cache)
    project = None if arguments.is_bare else read_project(REPOSITORY)
    root = ensure_root(cache)
    kernel = ensure_kernel(cache, arguments.series)
    app = ensure_app(cache, root, project)
    scratch_base = cache.path("tmp")
    scratch_base.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch_base) as name:
        scratch = Path(name)
        accelerator = choose_accelerator(cache, kernel.image, scratch)
        if arguments.is_build_only:
            say(f"ready: kernel {kernel.release}, {accelerator}")
            return 0
        log = scratch / "disks.log"
        out_image = scratch / "out.img"
        outdir.make(out_image, log)
        disks = [
            Disk(root.image), Disk(kernel.modules_disk, "/usr/lib/modules"), Disk(app, PREFIX),
            Disk(out_image, "/mnt/out", outdir.MOUNT_OPTIONS, keeps_writes=True),
        ]
        shares: list[tuple[int, str]] = []
        for share in arguments.shares:
            image = scratch / f"share{len(shares)}.img"
            disk.make_image(image, share, log)
            disks.append(Disk(image))
            shares.append((len(disks), share.name))
        machine = Machine(accelerator, arguments.cpus, arguments.memory, kernel.image, tuple(disks))
        with guest_lock() as held_fds:
            guest = GuestRun(machine, job_of(arguments.command, shares), arguments.timeout_s, cache.log("console"))
            status = guest.run(scratch, held_fds)
        bring_back(out_image, arguments.out, log)
        return status


def bring_back(image: Path, directory: Path, log: Path) -> None:
    """Collect the output disk; the default directory is ours and shows one run only."""
    if directory == DEFAULT_OUT:
        directory = REPOSITORY / DEFAULT_OUT
        shutil.rmtree(directory, ignore_errors=True)
    count = outdir.collect(image, directory, log)
    if count:
        say(f"{count} {'entry' if count == 1 else 'entries'} of /mnt/out in {directory}")


def print_cache(cache: Cache) -> int:
    """List the cache's layers and their disk usage on stdout."""
    for name, size_bytes in cache.sizes_bytes().items():
        print(f"{size_bytes / disk.MIB:9.1f} MiB  {name}")
    print(f"{'':>13}  {cache.root}")
    return 0


def clean(cache: Cache) -> int:
    """Remove the cache."""
    if cache.root.exists():
        started_s = time.monotonic()
        shutil.rmtree(cache.root)
        say(f"removed {cache.root}: {time.monotonic() - started_s:.1f} s")
    return 0


def main(words: Sequence[str] | None = None) -> int:
    """Run ``vm/run``; returns its exit status."""
    arguments = parse(sys.argv[1:] if words is None else words)
    cache = Cache(default_cache_directory())
    try:
        if arguments.is_print_cache:
            return print_cache(cache)
        if arguments.is_clean:
            return clean(cache)
        return run(arguments, cache)
    except SetupError as error:
        say(f"{error} (status {ExitStatus.SETUP_FAILED.value})")
        return ExitStatus.SETUP_FAILED
    except KeyboardInterrupt:
        say("interrupted before the guest had started")
        return ExitStatus.INTERRUPTED
