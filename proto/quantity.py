"""Quantities as people write them, read and printed the same way by launcher, CLI, API and configuration.

Sizes are binary (2G is 2 GiB), as the kernel's own memparse reads them for memory.max; CPU is in cores (1.5)
or thousandths (1500m); durations are in seconds unless a unit says otherwise (90, 500ms, 10m, 1h30m).
"""

import re
from typing import Final

# These texts come from sandboxed callers. So the digits are bounded, and no pattern can match the same text
# in two ways, for then a failed match would take exponential time.
_NUMBER: Final = r"\d{1,20}(?:\.\d{1,20})?"
_SIZE: Final = re.compile(rf"({_NUMBER})\s?([kmgtpe]?)(?:i?b)?", re.IGNORECASE | re.ASCII)
_SIZE_SHIFT: Final = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50, "e": 60}
_CPU: Final = re.compile(rf"({_NUMBER})(m?)", re.ASCII)
_DURATION: Final = re.compile(rf"{_NUMBER}|(?:{_NUMBER}(?:ms|s|m|h|d))+", re.ASCII)
_DURATION_PART: Final = re.compile(rf"({_NUMBER})(ms|s|m|h|d)?", re.ASCII)
_DURATION_MS: Final = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}

# What one field of the API can carry.
_MOST_BYTES: Final = 2**63 - 1
_MOST_MILLI: Final = 2**31 - 1


class BadQuantity(ValueError):
    """Text that is no quantity; the message says what it should look like."""


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")


def parse_size(text: str) -> int:
    """Bytes in `text`: 2G, 512M, 1.5GiB, 4096. Raises BadQuantity; 0 is a size."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise BadQuantity(
            f"{_shown(text)} is no size: write bytes or a number with K, M, G or T, for example 512M or 2G"
        )
    number, unit = match.groups()
    size = (
        int(number) << _SIZE_SHIFT[unit.lower()]
        if number.isdigit()
        else int(float(number) * (1 << _SIZE_SHIFT[unit.lower()]))
    )
    if size > _MOST_BYTES:
        raise BadQuantity(f"{_shown(text)} is more than 8 EiB")
    return size


def parse_cpu(text: str) -> int:
    """Thousandths of a core in `text`: 1.5 (cores) or 1500m. Raises BadQuantity."""
    match = _CPU.fullmatch(text.strip())
    if match is None:
        raise BadQuantity(
            f"{_shown(text)} is no CPU amount: write cores or thousandths, for example 1.5 or 1500m"
        )
    number, milli = match.groups()
    amount = round(float(number) * (1 if milli else 1000))
    if amount > _MOST_MILLI:
        raise BadQuantity(f"{_shown(text)} is more CPU than any host has")
    return amount


def parse_duration(text: str) -> int:
    """Milliseconds in `text`: 90 (seconds), 500ms, 10m, 1h30m. Raises BadQuantity."""
    stripped = text.strip()
    if not _DURATION.fullmatch(stripped):
        raise BadQuantity(
            f"{_shown(text)} is no duration: write seconds or units, for example 90, 500ms, 10m or 1h30m"
        )
    total_ms = sum(
        float(number) * _DURATION_MS[unit or "s"] for number, unit in _DURATION_PART.findall(stripped)
    )
    if total_ms > _MOST_BYTES:
        raise BadQuantity(f"{_shown(text)} is too long a duration")
    return round(total_ms)


def format_size(size_bytes: int) -> str:
    """`size_bytes` for people, three significant digits: 1.5 GiB, 312 MiB, 900 B."""
    amount = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"):
        if amount < 1024 or unit == "EiB":
            break
        amount /= 1024
    digits = 0 if unit == "B" or amount >= 100 else 1 if amount >= 10 else 2
    text = f"{amount:.{digits}f}"
    return f"{text.rstrip('0').rstrip('.') if '.' in text else text} {unit}"


def format_cpu(cpu_milli: int) -> str:
    """`cpu_milli` for people: 1.5 CPUs, 1 CPU."""
    return f"{cpu_milli / 1000:.10g} CPU{'' if cpu_milli == 1000 else 's'}"


def format_duration(duration_ms: float) -> str:
    """`duration_ms` for people: 340 ms, 12.3 s, 4 min 5 s, 2 h 10 min."""
    if duration_ms < 1000:
        return f"{duration_ms:.0f} ms"
    seconds = duration_ms / 1000
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds % 1 else f"{seconds:.0f} s"
    minutes, rest_s = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest_s} s" if rest_s else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"
