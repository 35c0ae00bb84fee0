"""One call of ``vm/run``: prepares what is missing, boots the guest, brings back what it wrote."""

import fcntl
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

from vm import disk, outdir
from vm.accel import choose_accelerator
from vm.app import PREFIX, PROJECT_UNIT, ensure_app
from vm.arguments import DEFAULT_OUT, Arguments, parse
from vm.cache import Cache, default_cache_directory
from vm.channel import Job
from vm.guestrun import GuestRun
from vm.kernel import ensure_kernel
from vm.outcome import ExitStatus, SetupError
from vm.qemu import Accelerator, Disk, Machine
from vm.rootfs import ensure_root
from vm.steps import say
from vm.tools import ensure_tools

REPOSITORY = Path(__file__).resolve().parent.parent


@contextmanager
def guest_lock() -> Iterator[tuple[int, ...]]:
    """Hold the host-wide right to run a guest; gives the descriptors QEMU has to hold too.

    One guest at a time keeps timings honest on small machines. The kernel drops the lock with the last holder.
    """
    if os.environ.get("AGENTCGROUP_VM_PARALLEL") == "1":
        yield ()
        return
    directory = next(
        (path for path in (Path("/run/lock"), Path("/tmp")) if os.access(path, os.W_OK)), Path("/tmp")
    )
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


def job_of(command: Sequence[str], shares: Sequence[tuple[int, str]], targets: Sequence[str]) -> Job:
    """Return what the guest is to do: the command, which disks to mount under which names, what may be connected to."""
    environment = {
        "HOME": "/root",
        "USER": "root",
        "LOGNAME": "root",
        "SHELL": "/bin/bash",
        "LANG": "C.UTF-8",
        # The last one brings pytest and python with the project's packages; python3 stays Debian's.
        "PATH": f"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:{PREFIX}/bin",
        "TERM": os.environ.get("TERM", "dumb"),
        "AGENTCGROUP_VM": "1",
    }
    return Job(tuple(command), tuple(environment.items()), tuple(shares), tuple(targets))


def require_root() -> None:
    """Raise SetupError unless we are root."""
    if os.geteuid() != 0:
        raise SetupError(
            "preparing a guest needs root: apt installs QEMU and mmdebstrap here, and Debian's packages are unpacked and"
            " configured in a chroot. Next step: sudo vm/run ..."
        )


@contextmanager
def scratch_directory(cache: Cache) -> Iterator[Path]:
    """Give a directory for this run, and remove those of runs that were killed."""
    base = cache.path("tmp")
    base.mkdir(parents=True, exist_ok=True)
    for left in base.iterdir():
        owner = left.name.split("-", 1)[0]
        if owner.isdecimal() and not Path("/proc", owner).exists():
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"{os.getpid()}-", dir=base) as name:
        yield Path(name)


def pin(path: Path, scratch: Path) -> Path:
    """Return a hard link of an image, which stays when its layer is dropped while we wait for another guest."""
    link = scratch / path.name
    link.hardlink_to(path)
    return link


def run(arguments: Arguments, cache: Cache) -> int:
    """Prepare what is missing, boot, run the command; returns the exit status."""
    require_root()
    ensure_tools(cache)
    root = ensure_root(cache)
    kernel = ensure_kernel(cache, arguments.series)
    app = ensure_app(cache, root, None if arguments.is_bare else REPOSITORY)
    with scratch_directory(cache) as scratch:
        accelerator = (
            Accelerator.COUNTED if arguments.is_counted else choose_accelerator(cache, kernel.image, scratch)
        )
        if arguments.is_build_only:
            say(f"ready: kernel {kernel.release}, {accelerator}")
            return 0
        image = pin(kernel.image, scratch)
        log = scratch / "disks.log"
        out_image = scratch / "out.img"
        outdir.make(out_image, log)
        disks = [
            Disk(pin(root.image, scratch)),
            Disk(pin(kernel.modules_disk, scratch), "/usr/lib/modules"),
            Disk(pin(app, scratch), PREFIX),
            Disk(out_image, "/mnt/out", outdir.MOUNT_OPTIONS, keeps_writes=True),
        ]
        shares: list[tuple[int, str]] = []
        for share in arguments.shares:
            copy = scratch / f"share{len(shares)}.img"
            disk.make_image(copy, share, log)
            disks.append(Disk(copy))
            shares.append((len(disks), share.name))
        not_at_boot = PROJECT_UNIT if arguments.is_without_daemon else None
        machine = Machine(accelerator, arguments.cpus, arguments.memory, image, not_at_boot, tuple(disks))
        job = job_of(arguments.command, shares, [forward.remote for forward in arguments.forwards])
        guest = GuestRun(machine, job, arguments.timeout_s, cache.log("console"), arguments.forwards)
        with guest_lock() as held_fds:
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
    """Remove the cache, when no guest runs."""
    if cache.root.exists():
        started_s = time.monotonic()
        with guest_lock():
            cache.clean()
        say(f"removed {cache.root}: {time.monotonic() - started_s:.1f} s")
    return 0


def _end_orderly(number: int, frame: FrameType | None) -> NoReturn:
    # Unlike the default action, this lets temporary directories be removed.
    raise SystemExit(128 + number)


def main(words: Sequence[str] | None = None) -> int:
    """Run ``vm/run``; returns its exit status."""
    arguments = parse(sys.argv[1:] if words is None else words)
    signal.signal(signal.SIGTERM, _end_orderly)
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
        say("interrupted")
        return ExitStatus.INTERRUPTED
