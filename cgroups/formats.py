"""The text formats of cgroup v2 interface files: text to value and back, without any I/O.

Documentation/admin-guide/cgroup-v2.rst, section 4-1, names five shapes: one value, values separated by
newlines or spaces, flat keyed (``KEY VALUE``) and nested keyed (``KEY SUB=VALUE ...``). Parsers raise
:class:`ValueError` on text the kernel does not document; formatters raise it for a value no kernel takes.
Who reads the file adds its path. Keys nobody knows yet are skipped, because new kernels print new lines
anywhere in a keyed file.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields
from enum import StrEnum
from typing import Final, TypeVar

from agentcgroup.cgroups.values import (
    MAX,
    CgroupEvents,
    CgroupStat,
    CpuMax,
    CpusetPartition,
    Limit,
    Max,
    MemoryNumaStat,
    PartitionKind,
    Pressure,
    PressureLine,
    SubsystemCount,
)

V = TypeVar("V")
E = TypeVar("E", bound=StrEnum)


def parse_number(text: str) -> int:
    """Digits, and nothing else."""
    # int() also takes "1_000", " 7" and "٣", none of which the kernel prints.
    if text.isascii() and text.isdigit():
        return int(text)
    raise ValueError(f"{text!r} is not a number")


def word_lines(text: str) -> Iterator[list[str]]:
    """The words of every line that has any."""
    for line in text.splitlines():
        if words := line.split():
            yield words


def key_values(words: Iterable[str]) -> dict[str, str]:
    """``KEY=VALUE`` words as a dictionary."""
    found = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise ValueError(f"{word!r} is not KEY=VALUE")
        found[key] = value
    return found


# ---- one value --------------------------------------------------------------------------------------------


def parse_count(text: str) -> int:
    """``123\\n``: a number that is not negative."""
    return parse_number(text.rstrip("\n"))


def format_count(value: int) -> str:
    """The reverse of :func:`parse_count`."""
    if not isinstance(value, int) or value is True or value is False or value < 0:
        raise ValueError(f"{value!r} is not a whole number of at least 0")
    return str(value)


def parse_signed(text: str) -> int:
    """``-20\\n``: a number that may be negative."""
    text = text.rstrip("\n")
    return -parse_number(text[1:]) if text.startswith("-") else parse_number(text)


def format_signed(value: int) -> str:
    """The reverse of :func:`parse_signed`."""
    if not isinstance(value, int) or value is True or value is False:
        raise ValueError(f"{value!r} is not a whole number")
    return str(value)


def parse_limit(text: str) -> Limit:
    """``123\\n`` or ``max\\n``."""
    return MAX if text == "max\n" else parse_limit_word(text.rstrip("\n"))


def parse_limit_word(word: str) -> Limit:
    """``123`` or ``max``, without the newline."""
    return MAX if word == "max" else parse_number(word)


def format_limit(value: Limit) -> str:
    """The reverse of :func:`parse_limit`."""
    return "max" if value is MAX else format_count(value)


def parse_switch(text: str) -> bool:
    """``0\\n`` or ``1\\n``."""
    match text.rstrip("\n"):
        case "0":
            return False
        case "1":
            return True
        case other:
            raise ValueError(f"{other!r} is neither 0 nor 1")


def format_switch(value: bool) -> str:
    """The reverse of :func:`parse_switch`."""
    if value.__class__ is not bool:
        raise ValueError(f"{value!r} is neither True nor False")
    return "1" if value else "0"


def format_trigger(value: bool) -> str:
    """For a write-only file whose only value is 1."""
    if value is not True:
        raise ValueError("the only value this file takes is True")
    return "1"


def parse_percent(text: str) -> float | Max:
    """``12.34\\n`` or ``max\\n``: a percentage."""
    text = text.rstrip("\n")
    if text == "max":
        return MAX
    for part in text.split(".", 1):
        parse_number(part)
    return float(text)


def format_percent(value: float | Max) -> str:
    """The reverse of :func:`parse_percent`; two decimals, 0 to 100."""
    if isinstance(value, Max):
        return "max"
    if not 0 <= value <= 100:
        raise ValueError(f"{value!r} is not a percentage from 0 to 100")
    return f"{value:.2f}"


def choice(kind: type[E]) -> tuple[Callable[[str], E], Callable[[E], str]]:
    """Parser and formatter of a file that holds one word of a closed set."""

    def parse(text: str) -> E:
        return kind(text.strip())

    def format_(value: E) -> str:
        return kind(value).value

    return parse, format_


# ---- lists ------------------------------------------------------------------------------------------------


def parse_ids(text: str) -> tuple[int, ...]:
    """Process or thread ids, one a line. 0 stands for a process that our pid namespace cannot see."""
    try:
        return tuple(map(int, text.split()))
    except ValueError as error:
        raise ValueError(f"not a list of ids: {error}") from None


def format_ids(value: tuple[int, ...]) -> str:
    """The reverse of :func:`parse_ids`. 0 is refused: to the kernel it means the writer itself."""
    if any(one.__class__ is not int or one < 1 for one in value):
        raise ValueError(f"{value!r} holds something that is not the id of a process")
    return "\n".join(map(str, value))


def parse_words(text: str) -> frozenset[str]:
    """``cpu io memory\\n``: controller names, in no order."""
    words = text.split()
    for word in words:
        if not word.replace("_", "").isalnum():
            raise ValueError(f"{word!r} is not the name of a controller")
    return frozenset(words)


def format_enable(value: frozenset[str]) -> str:
    """``+cpu +memory``: what cgroup.subtree_control takes to enable controllers."""
    parse_words(" ".join(value))
    return " ".join(f"+{word}" for word in sorted(value))


def parse_ranges(text: str) -> frozenset[int]:
    """``0-4,6\\n``: CPUs or memory nodes. The empty set means: as the parent has it."""
    found: set[int] = set()
    for part in text.strip().split(",") if text.strip() else ():
        first, dash, last = part.partition("-")
        low = parse_number(first)
        high = parse_number(last) if dash else low
        if high < low:
            raise ValueError(f"{part!r} runs backwards")
        found.update(range(low, high + 1))
    return frozenset(found)


def format_ranges(value: frozenset[int]) -> str:
    """The reverse of :func:`parse_ranges`.

    The empty set is written as a newline, which the kernel takes as empty.
    """
    parts: list[list[int]] = []
    for one in sorted(value):
        if one.__class__ is not int or one < 0:
            raise ValueError(f"{one!r} is not the number of a CPU or node")
        if parts and parts[-1][1] == one - 1:
            parts[-1][1] = one
        else:
            parts.append([one, one])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in parts) or "\n"


# ---- flat keyed -------------------------------------------------------------------------------------------


_FLAT_NUMBERS: Final = re.compile(r"(?:[!-~]+ [0-9]+\n)*")


def flat_keyed(kind: type[V], renamed: Sequence[tuple[str, str]] = ()) -> Callable[[str], V]:
    """Parser of ``KEY NUMBER`` lines into the dataclass ``kind``, all of whose fields default to None.

    ``renamed`` lists (key, field) where the kernel's key is not a Python name.
    """
    names = {one.name: one.name for one in fields(kind)}  # type: ignore[arg-type]
    names.update(renamed)

    def parse(text: str) -> V:
        if _FLAT_NUMBERS.fullmatch(text):
            # Nearly always; three times as fast as line by line.
            words = text.split()
            pairs = zip(words[::2], words[1::2], strict=True)
            return kind(**{names[key]: int(number) for key, number in pairs if key in names})
        found: dict[str, int] = {}
        for line in text.splitlines():
            key, space, number = line.partition(" ")
            if not space:
                raise ValueError(f"{line!r} is not 'KEY VALUE'")
            name = names.get(key)
            if name is not None:
                found[name] = parse_number(number)
        return kind(**found)

    return parse


def flat_number(key: str) -> Callable[[str], int | None]:
    """Parser of ``KEY NUMBER`` lines for the number of one `key`, None without it: ten times as fast as all of them."""
    line = re.compile(rf"^{re.escape(key)} ([0-9]+)$", re.MULTILINE)

    def parse(text: str) -> int | None:
        found = line.search(text)
        return int(found[1]) if found else None

    return parse


def parse_cgroup_events(text: str) -> CgroupEvents:
    """cgroup.events: ``populated 0|1`` and, since kernel 5.2, ``frozen 0|1``."""
    found = dict(line.partition(" ")[::2] for line in text.splitlines())
    if "populated" not in found:
        raise ValueError("no line 'populated'")
    frozen = found.get("frozen")
    return CgroupEvents(parse_switch(found["populated"]), None if frozen is None else parse_switch(frozen))


def parse_cgroup_stat(text: str) -> CgroupStat:
    """cgroup.stat.

    Two totals and, since kernel 6.12, ``nr_subsys_X`` and ``nr_dying_subsys_X`` per controller.
    """
    totals: dict[str, int] = {}
    live: dict[str, int] = {}
    dying: dict[str, int] = {}
    for line in text.splitlines():
        key, space, number = line.partition(" ")
        if not space:
            raise ValueError(f"{line!r} is not 'KEY VALUE'")
        if key in ("nr_descendants", "nr_dying_descendants"):
            totals[key] = parse_number(number)
        elif key.startswith("nr_subsys_"):
            live[key.removeprefix("nr_subsys_")] = parse_number(number)
        elif key.startswith("nr_dying_subsys_"):
            dying[key.removeprefix("nr_dying_subsys_")] = parse_number(number)
    counts = tuple(SubsystemCount(name, live.get(name), dying.get(name)) for name in sorted(live | dying))
    return CgroupStat(totals.get("nr_descendants"), totals.get("nr_dying_descendants"), counts)


# ---- several values ---------------------------------------------------------------------------------------


def parse_cpu_max(text: str) -> CpuMax:
    """``max 100000\\n``: quota and period in microseconds."""
    words = text.split()
    if len(words) != 2:
        raise ValueError(f"{text!r} is not 'QUOTA PERIOD'")
    return CpuMax(parse_limit_word(words[0]), parse_number(words[1]))


def format_cpu_max(value: CpuMax) -> str:
    """The reverse of :func:`parse_cpu_max`."""
    return f"{format_limit(value.quota_us)} {format_count(value.period_us)}"


def parse_partition(text: str) -> CpusetPartition:
    """``root\\n`` or ``root invalid (reason)\\n``."""
    kind, invalid, reason = text.strip().partition(" invalid")
    return CpusetPartition(PartitionKind(kind), reason.strip(" ()") if invalid else None)


def format_partition(value: CpusetPartition) -> str:
    """The kind alone; the reason is the kernel's."""
    return value.kind.value


def parse_pressure(text: str) -> Pressure:
    """``some avg10=0.00 avg60=0.00 avg300=0.00 total=0`` and the same for ``full``."""
    found: dict[str, PressureLine] = {}
    for kind, *pairs in word_lines(text):
        if kind not in ("some", "full"):
            continue
        values = dict(pair.split("=", 1) for pair in pairs)
        try:
            found[kind] = PressureLine(
                float(values["avg10"]),
                float(values["avg60"]),
                float(values["avg300"]),
                parse_number(values["total"]),
            )
        except KeyError as error:
            raise ValueError(f"line {kind!r} has no {error}") from None
    return Pressure(found.get("some"), found.get("full"))


def parse_numa_stat(text: str) -> tuple[MemoryNumaStat, ...]:
    """``anon N0=123 N1=0``."""
    result = []
    for key, *words in word_lines(text):
        pairs = key_values(words).items()
        nodes = tuple((parse_number(node.removeprefix("N")), parse_number(number)) for node, number in pairs)
        result.append(MemoryNumaStat(key, nodes))
    return tuple(result)
