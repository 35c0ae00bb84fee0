"""Which names a cgroup may have."""

import os
import re
from typing import Final

from agentcgroup.cgroups.errors import BadFormat

_NAME_MAX_BYTES: Final = 255
# Every file the kernel makes in a cgroup is called CONTROLLER.SOMETHING or cgroup.SOMETHING, and a new
# kernel may add any: cgroup-v2.rst, section 2-6-2 "Avoid Name Collisions". So the whole prefix is taken.
_RESERVED_NAME: Final = re.compile(
    r"(cgroup|cpu|cpuset|cpuacct|io|memory|pids|hugetlb|rdma|misc|dmem|irq|perf_event|debug|net_cls|net_prio|devices)\."
)
_FORBIDDEN_IN_NAME: Final = re.compile(r"[/\0\n]")


def check_name(name: str, parent: str = "") -> str:
    """``name``, if it can be the name of a cgroup and never collides with an interface file.

    Raises :class:`BadFormat` if not; ``parent`` is the path that its message shows.
    """
    if not name or name in (".", ".."):
        reason = "is not a name"
    elif _FORBIDDEN_IN_NAME.search(name):
        reason = "holds a slash, a newline or a NUL"
    elif len(os.fsencode(name)) > _NAME_MAX_BYTES:
        reason = f"is longer than {_NAME_MAX_BYTES} bytes"
    elif _RESERVED_NAME.match(name):
        reason = "could collide with an interface file of the kernel; put something before it"
    else:
        return name
    raise BadFormat(parent or "cgroup", f"{name[:64]!r} cannot name a cgroup: it {reason}")
