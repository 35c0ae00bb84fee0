"""The text formats of the io controller's files, whose lines are keyed by a block device's ``MAJOR:MINOR``.

The same contract as :mod:`agentcgroup.cgroups.formats`. Source: Documentation/admin-guide/cgroup-v2.rst,
section 5-3.
"""

from collections.abc import Iterator
from dataclasses import fields
from typing import Any, Final

from agentcgroup.cgroups.formats import (
    format_count,
    format_limit,
    key_values,
    parse_limit_word,
    parse_number,
    word_lines,
)
from agentcgroup.cgroups.values import DeviceNumber, DeviceSettings, IoLatency, IoMax, IoStat, IoWeight

# mm/backing-dev.c, bdi_dev_name(): what stands in the place of the number when the device was removed. Seen
# in io.stat of the root on 7.3.
_REMOVED: Final = "(unknown)"


def _device(word: str) -> DeviceNumber:
    major, colon, minor = word.partition(":")
    if not colon:
        raise ValueError(f"{word!r} is not MAJOR:MINOR")
    return DeviceNumber(parse_number(major), parse_number(minor))


def _device_lines(text: str) -> Iterator[list[str]]:
    # What was set for a device that is gone stays in the file, but cannot be told apart or changed any more.
    return (words for words in word_lines(text) if words[0] != _REMOVED)


def parse_io_stat(text: str) -> tuple[IoStat, ...]:
    """``8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6``.

    Some kernels print a device without numbers.
    """
    known = {one.name for one in fields(IoStat)} - {"device"}
    result = []
    for device, *words in word_lines(text):
        numbers: dict[str, Any] = {}
        for key, value in key_values(words).items():
            if (name := key.replace(".", "_")) in known:
                numbers[name] = parse_number(value)
        result.append(IoStat(None if device == _REMOVED else _device(device), **numbers))
    return tuple(result)


def parse_io_max(text: str) -> tuple[IoMax, ...]:
    """``8:16 rbps=2097152 wbps=max riops=max wiops=120``."""
    result = []
    for device, *words in _device_lines(text):
        found = {key: parse_limit_word(value) for key, value in key_values(words).items()}
        limits = [found.get(key) for key in ("rbps", "wbps", "riops", "wiops")]
        result.append(IoMax(_device(device), *limits))
    return tuple(result)


def format_io_max(value: tuple[IoMax, ...]) -> str:
    """One line a device, limits that are None left out."""
    lines = []
    for one in value:
        limits = (("rbps", one.rbps), ("wbps", one.wbps), ("riops", one.riops), ("wiops", one.wiops))
        words = [f"{key}={format_limit(limit)}" for key, limit in limits if limit is not None]
        if not words:
            raise ValueError(f"no limit is given for device {one.device}")
        lines.append(" ".join([str(one.device), *words]))
    return "\n".join(lines)


def parse_io_weight(text: str) -> tuple[IoWeight, ...]:
    """``default 100`` and ``8:16 200`` lines."""
    result = []
    for words in _device_lines(text):
        if len(words) != 2:
            raise ValueError(f"{' '.join(words)!r} is not 'DEVICE WEIGHT'")
        result.append(IoWeight(None if words[0] == "default" else _device(words[0]), parse_number(words[1])))
    return tuple(result)


def format_io_weight(value: tuple[IoWeight, ...]) -> str:
    """The reverse of :func:`parse_io_weight`; weight None is written as ``default``."""
    lines = []
    for one in value:
        if one.device is None and one.weight is None:
            raise ValueError("the default weight cannot be removed")
        weight = "default" if one.weight is None else format_count(one.weight)
        lines.append(f"{one.device or 'default'} {weight}")
    return "\n".join(lines)


def parse_io_latency(text: str) -> tuple[IoLatency, ...]:
    """``8:16 target=75000``."""
    result = []
    for device, *words in _device_lines(text):
        pairs = key_values(words)
        if "target" not in pairs:
            raise ValueError(f"device {device} has no target")
        result.append(IoLatency(_device(device), parse_limit_word(pairs["target"])))
    return tuple(result)


def format_io_latency(value: tuple[IoLatency, ...]) -> str:
    """The reverse of :func:`parse_io_latency`."""
    return "\n".join(f"{one.device} target={format_limit(one.target_us)}" for one in value)


def parse_device_settings(text: str) -> tuple[DeviceSettings, ...]:
    """``8:16 enable=1 ctrl=auto rpct=95.00 ...``."""
    return tuple(
        DeviceSettings(_device(device), tuple(key_values(words).items()))
        for device, *words in _device_lines(text)
    )


def format_device_settings(value: tuple[DeviceSettings, ...]) -> str:
    """The reverse of :func:`parse_device_settings`."""
    return "\n".join(
        " ".join([str(one.device), *(f"{key}={text}" for key, text in one.settings)]) for one in value
    )
