"""What a container asks for: from `docker inspect` to the session it becomes. Pure but for /proc and the
sockets.

    docker run --label agentcgroup.session=alice --memory 4g \\
        -v /run/agentcgroup/containers/alice:/run/agentcgroup/session:ro \\
        -v /usr/local/bin/agentcg:/usr/local/bin/agentcg:ro  IMAGE

The label makes the container a session (without a value it is named like the container). The first mount is
where its sockets appear, and the only way for the container to reach the daemon: it sees no other session's.
Limits are those of `docker run` (--memory, --cpus, --pids-limit); labels go before them.
"""

import difflib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from agentcgroup.cgroups.errors import ProcessGone
from agentcgroup.cgroups.membership import cgroup_of
from agentcgroup.daemon.errors import Kind, RequestError
from agentcgroup.daemon.model import BudgetRequest, Labels, Priority, TransparentRule, ranges
from agentcgroup.daemon.policy import bounds
from agentcgroup.proto.quantity import BadQuantity, parse_cpu, parse_size
from agentcgroup.proto.transparent import BadRule, parse_rule

__all__ = ["LABEL", "MOUNT_POINT", "ContainerSession", "container_cgroup", "read_container"]

LABEL: Final = "agentcgroup.session"
# Where the launcher and the SDK look inside a container when nothing else is said.
MOUNT_POINT: Final = "/run/agentcgroup/session"

_PREFIX: Final = "agentcgroup."
_NOT_IN_NAME: Final = re.compile(r"[^a-z0-9._-]+")


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise BadQuantity(f"{text[:40]!r} is no whole number")
    return int(text)


# Label, field of BudgetRequest, how its text is read.
_BUDGET_LABELS: Final[dict[str, tuple[str, Callable[[str], int]]]] = {
    "agentcgroup.memory": ("memory_max_bytes", parse_size),
    "agentcgroup.agent-memory": ("agent_memory_bytes", parse_size),
    "agentcgroup.swap": ("swap_max_bytes", parse_size),
    "agentcgroup.cpu": ("cpu_milli", parse_cpu),
    "agentcgroup.weight": ("cpu_weight", _count),
    "agentcgroup.pids": ("pids_max", _count),
    "agentcgroup.calls": ("calls_max", _count),
}
_PRIORITY_LABEL: Final = "agentcgroup.priority"
_TRANSPARENT_LABEL: Final = "agentcgroup.transparent"
_KNOWN_LABELS: Final = frozenset({LABEL, _PRIORITY_LABEL, _TRANSPARENT_LABEL, *_BUDGET_LABELS})


@dataclass(frozen=True, slots=True)
class ContainerSession:
    """A running container that wants to be a session. `mount_source` is the host's side of the socket mount,
    if any.
    """

    container_id: str
    container_name: str
    pid: int
    name: str
    request: BudgetRequest
    priority: Priority | None
    labels: Labels
    mount_source: Path | None
    transparent: TransparentRule | None = None


def read_container(attributes: Mapping[str, Any]) -> ContainerSession:
    """Reads the answer of Docker's inspect call. Raises RequestError(INVALID) that names the label to mend."""
    container_id = str(attributes["Id"])
    container_name = str(attributes.get("Name") or "").lstrip("/") or container_id[:12]
    labels = _labels(attributes)
    name = labels.get(LABEL) or _name_of(container_name) or container_id[:12]
    bounds.check_name(name, LABEL)
    request = _budget(labels, attributes.get("HostConfig") or {})
    bounds.check_budget(request)
    image = str((attributes.get("Config") or {}).get("Image") or "")
    # Both texts are the user's, and go where labels go.
    marks = (("container", bounds.one_line(container_name, 200)), ("image", bounds.one_line(image, 200)))
    return ContainerSession(
        container_id=container_id,
        container_name=container_name,
        pid=int((attributes.get("State") or {}).get("Pid") or 0),
        name=name,
        request=request,
        priority=_priority(labels),
        labels=tuple((key, value) for key, value in marks if value),
        mount_source=_mount_source(attributes),
        transparent=_transparent(labels),
    )


def _labels(attributes: Mapping[str, Any]) -> dict[str, str]:
    """Our labels. A misspelt one is an error: a limit must not be silently absent."""
    everything = (attributes.get("Config") or {}).get("Labels") or {}
    ours = {str(key): str(value) for key, value in everything.items() if str(key).startswith(_PREFIX)}
    for key in ours.keys() - _KNOWN_LABELS:
        # Without the prefix, which makes all of them look alike.
        known = [label.removeprefix(_PREFIX) for label in _KNOWN_LABELS]
        close = difflib.get_close_matches(key.removeprefix(_PREFIX), known, n=1)
        hint = (
            f"did you mean {_PREFIX}{close[0]}?" if close else f"known: {', '.join(sorted(_KNOWN_LABELS))}"
        )
        raise RequestError(Kind.INVALID, f"label {key[:80]} is not known", hint, key)
    return ours


def _name_of(container_name: str) -> str:
    """A session's name like the container's: Docker allows upper case, and more characters."""
    return _NOT_IN_NAME.sub("-", container_name.lower()).strip("._-")[:63]


def _budget(labels: Mapping[str, str], host_config: Mapping[str, Any]) -> BudgetRequest:
    values = _docker_limits(host_config)
    for label, (field, parse) in _BUDGET_LABELS.items():
        if label not in labels:
            continue
        try:
            values[field] = parse(labels[label])
        except BadQuantity as error:
            raise RequestError(Kind.INVALID, f"label {label}: {error}", "", label) from error
    return BudgetRequest(**values)


def _docker_limits(host_config: Mapping[str, Any]) -> dict[str, int]:
    """What `docker run` was told; 0, -1 and null all mean that it was told nothing."""

    def number(key: str) -> int:
        return int(host_config.get(key) or 0)

    limits = {}
    if number("Memory") > 0:
        limits["memory_max_bytes"] = number("Memory")
    if number("NanoCpus") > 0:
        limits["cpu_milli"] = max(ranges.LEAST_CPU_MILLI, number("NanoCpus") // 1_000_000)
    elif number("CpuQuota") > 0:
        period_us = number("CpuPeriod") or 100_000
        limits["cpu_milli"] = max(ranges.LEAST_CPU_MILLI, number("CpuQuota") * 1000 // period_us)
    if number("PidsLimit") > 0:
        limits["pids_max"] = number("PidsLimit")
    return limits


def _priority(labels: Mapping[str, str]) -> Priority | None:
    text = labels.get(_PRIORITY_LABEL)
    if text is None:
        return None
    try:
        return Priority(text)
    except ValueError:
        choices = ", ".join(Priority)
        raise RequestError(
            Kind.INVALID,
            f"label {_PRIORITY_LABEL} is {text[:40]!r}",
            f"use one of {choices}",
            _PRIORITY_LABEL,
        ) from None


def _transparent(labels: Mapping[str, str]) -> TransparentRule | None:
    text = labels.get(_TRANSPARENT_LABEL)
    if text is None:
        return None
    try:
        return parse_rule(text)
    except BadRule as error:
        raise RequestError(
            Kind.INVALID, f"label {_TRANSPARENT_LABEL}: {error}", "", _TRANSPARENT_LABEL
        ) from error


def _mount_source(attributes: Mapping[str, Any]) -> Path | None:
    for mount in attributes.get("Mounts") or ():
        if mount.get("Type") == "bind" and os.path.normpath(str(mount.get("Destination"))) == MOUNT_POINT:
            return Path(str(mount.get("Source")))
    return None


def container_cgroup(container: ContainerSession) -> str:
    """The container's own cgroup, from the cgroup2 mount: the last part of its main process's path that
    names it.

    The process may be deeper: in `agent/` when a former daemon has adopted the container already, or
    wherever a service manager inside has put it. Raises RequestError.
    """
    try:
        path = cgroup_of(container.pid)
    except ProcessGone as error:
        raise RequestError(
            Kind.NOT_FOUND, f"container {container.container_name} has ended", "start it again"
        ) from error
    parts = path.split("/")
    for end in range(len(parts), 0, -1):
        if container.container_id in parts[end - 1]:
            return "/".join(parts[:end])
    raise RequestError(
        Kind.HOST,
        f"container {container.container_name} has no cgroup of its own in cgroup v2 (its process is in {path})",
        "Docker must use cgroup v2 (docker info: Cgroup Version) and the same hierarchy as agentcgroupd",
    )
