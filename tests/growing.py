"""A process that takes memory in a cgroup, for tests on a real kernel."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Final

from agentcgroup.cgroups.cgroup import Cgroup

MIB: Final = 1 << 20
# Touches so many MiB, a page at a time, says so, and keeps them until its stdin ends.
TOUCH: Final = (
    "import sys; b=bytearray(int(sys.argv[1])<<20)\nfor i in range(0,len(b),4096): b[i]=1\n"
    "print('touched', flush=True); sys.stdin.read()"
)
# Touches so many MiB and gives them back, over and over, until it is killed; mapped, as the allocator would keep them.
CHURN: Final = (
    "import mmap, sys\nsize=int(sys.argv[1])<<20\nwhile True:\n"
    " b=mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE|mmap.MAP_ANONYMOUS)\n"
    " for i in range(0,size,4096): b[i]=1\n"
    " b.close()"
)


def _start(cgroup: Cgroup, code: str, mib: int) -> "subprocess.Popen[bytes]":
    script = f'echo $$ > {cgroup.path}/cgroup.procs; exec {sys.executable} -S -c "$@"'
    return subprocess.Popen(
        ["sh", "-c", script, "sh", code, str(mib)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )


class Tool:
    """Touches so many MiB in `cgroup` and keeps them until `end`; `wait` False: need not have touched them yet."""

    def __init__(self, cgroup: Cgroup, mib: int, *, wait: bool = True) -> None:
        self.process = _start(cgroup, TOUCH, mib)
        if wait:
            self.wait()

    def wait(self) -> None:
        """Until it has touched all of it."""
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"touched\n"

    def end(self) -> None:
        self.process.communicate(timeout=120)


@contextlib.contextmanager
def churning(cgroup: Cgroup, mib: int) -> "Iterator[subprocess.Popen[bytes]]":
    """Meanwhile a process in `cgroup` is charged again and again: a test waits for what comes of it as long as it takes."""
    process = _start(cgroup, CHURN, mib)
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=120)
