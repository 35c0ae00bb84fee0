"""Whether KVM really boots a guest here: it is tried once, because /dev/kvm alone promises nothing.

On some hosts the device opens and firmware runs, but guest kernel code is emulated and stops at the first instruction
that the emulator does not know.
"""

import json
import os
import select
import time
from pathlib import Path

from vm.cache import Cache
from vm.console import Console
from vm.qemu import Accelerator, Machine, start
from vm.steps import say, step
from vm.tools import qemu_version

PROBE_TIMEOUT_S = 20.0
# The kernel ran through all its initialisation when it finds that there is no root.
BOOTED = "VFS: Unable to mount root fs"


def choose_accelerator(
    cache: Cache, kernel: Path, scratch: Path, device: Path = Path("/dev/kvm")
) -> Accelerator:
    """Return KVM when it boots ``kernel`` on this host with this QEMU, else TCG; remembers the answer in the cache."""
    if not device.exists() or not os.access(device, os.R_OK | os.W_OK):
        return Accelerator.TCG
    host = f"{os.uname().release} {os.uname().version}; {qemu_version()}"
    path = cache.path("accelerator.json")
    known = _read(path)
    if host not in known:
        with step("trying whether KVM boots a guest here"):
            known[host] = probe_kvm(kernel, scratch)
        say(
            f"KVM {'works' if known[host] else 'does not boot a guest: emulating (TCG), several times slower'}"
        )
        partial = path.with_name(f"{path.name}.{os.getpid()}")
        partial.write_text(json.dumps(known, indent=2))
        partial.rename(path)
    return Accelerator.KVM if known[host] else Accelerator.TCG


def _read(path: Path) -> dict[str, bool]:
    try:
        table = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return {str(key): value is True for key, value in table.items()} if isinstance(table, dict) else {}


def probe_kvm(kernel: Path, scratch: Path) -> bool:
    """Boot ``kernel`` without disks and see whether it gets as far as missing its root."""
    machine = Machine(Accelerator.KVM, 2, "512M", kernel, None, ())
    running = start(machine, scratch)
    console = Console()
    deadline = time.monotonic() + PROBE_TIMEOUT_S
    try:
        while (left_s := deadline - time.monotonic()) > 0:
            if running.process.poll() is not None or b"KVM internal error" in running.errors.read_bytes():
                break
            if select.select([running.console], [], [], min(left_s, 0.25))[0]:
                data = running.console.recv(65536)
                if not data:
                    break
                console.feed(data)
                if any(BOOTED in line for line in console.last_lines()):
                    return True
    finally:
        running.process.kill()
        running.process.wait()
        running.console.close()
        running.channel.close()
    return any(BOOTED in line for line in console.last_lines())
