"""The mount option that decides what moving a process costs, set for the time of a measurement."""

import contextlib
import dataclasses
from collections.abc import Iterator

from agentcgroup.cgroups.membership import MountOptions, find_mount
from agentcgroup.daemon.host.mount_options import set_options
from bench.spawning import BenchError


@contextlib.contextmanager
def favordynmods(wanted: str) -> Iterator[None]:
    """`wanted`: "on" or "off" for the time of the context, or "keep". Raises BenchError.

    From kernel 6.18 on moves stay cheap after the option was cleared, until the kernel boots anew.
    """
    before = find_mount()
    if wanted == "keep" or before.options.favordynmods == (wanted == "on"):
        yield
        return
    _set(dataclasses.replace(before.options, favordynmods=wanted == "on"))
    try:
        yield
    finally:
        _set(before.options)


def _set(options: MountOptions) -> None:
    path = find_mount().path
    try:
        set_options(path, options)
    except OSError as error:
        raise BenchError(str(error)) from error
    if find_mount().options != options:
        raise BenchError(f"{path}: the mount options are {find_mount().options} after setting {options}")
