"""A process that takes memory in a cgroup, for tests on a real kernel."""

import subprocess
import sys
from typing import Final

from agentcgroup.cgroups.cgroup import Cgroup

MIB: Final = 1 << 20
# Touches so many MiB, a page at a time, says so, and keeps them until its stdin ends.
TOUCH: Final = (
    "import sys; b=bytearray(int(sys.argv[1])<<20)\nfor i in range(0,len(b),4096): b[i]=1\n"
    "print('touched', flush=True); sys.stdin.read()"
)


class Tool:
    """Touches so many MiB in `cgroup` and keeps them until `end`; `wait` False: need not have touched them yet."""

    def __init__(self, cgroup: Cgroup, mib: int, *, wait: bool = True) -> None:
        script = f'echo $$ > {cgroup.path}/cgroup.procs; exec {sys.executable} -c "$@"'
        command = ["sh", "-c", script, "sh", TOUCH, str(mib)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        if wait:
            self.wait()

    def wait(self) -> None:
        """Until it has touched all of it."""
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"touched\n"

    def end(self) -> None:
        self.process.communicate(timeout=120)
