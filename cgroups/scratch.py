"""A real cgroup for a test: made below the cgroup2 mount, and removed with all that is in it."""

import contextlib
import itertools
import os
from collections.abc import Iterator
from typing import Final

from agentcgroup.cgroups.cgroup import Cgroup
from agentcgroup.cgroups.errors import CgroupError
from agentcgroup.cgroups.membership import find_mount
from agentcgroup.cgroups.subtree import Subtree

_numbers: Final = itertools.count(1)


def scratch_path() -> str:
    """A path for a cgroup that no other test uses, below the cgroup2 mount."""
    return f"{find_mount().path}/agentcgroup-test-{os.getpid()}-{next(_numbers)}"


def why_unavailable(*controllers: str) -> str | None:
    """Why no cgroup with these controllers can be made here, in a sentence.

    None when it can. It is tried out.
    """
    try:
        with scratch_cgroup(*controllers) as cgroup, Subtree(cgroup, controllers) as subtree:
            failed = [one for one in subtree.probe_delegation().probes if not one.is_working]
    except CgroupError as error:
        return f"no cgroup can be made here: {error}"
    return "; ".join(f"{one.controller}: {one.reason}" for one in failed) or None


@contextlib.contextmanager
def scratch_cgroup(*controllers: str, deadline_s: float = 30.0) -> Iterator[Cgroup]:
    """A new cgroup whose children have those of ``controllers`` that the host offers.

    Killed and removed at the end.
    """
    path = scratch_path()
    try:
        with Subtree.open_or_create(path, controllers) as subtree:
            yield subtree.root
    finally:
        # Whatever the test did to its own handle, what is on disk goes.
        if os.path.isdir(path):
            with Cgroup.open(path) as leftover:
                leftover.remove_tree(deadline_s)
