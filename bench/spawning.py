"""The C programs of the benchmark: built here, told what to start, and their answers read."""

import random
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

SOURCES = Path(__file__).resolve().parent
FLAGS = ("-O2", "-static", "-Wall", "-Wextra")


class BenchError(Exception):
    """The benchmark could not measure; the message says why."""


class Method(StrEnum):
    """How the spawner starts a program; see spawner.c."""

    SPAWN = "spawn"
    PLACE = "place"
    CLONE3 = "clone3"
    MOVE = "move"


@dataclass(frozen=True, slots=True)
class Way:
    """One way of starting. `parent`: the cgroup in which PLACE, MOVE and CLONE3 make theirs."""

    name: str
    method: Method
    command: tuple[str, ...]
    parent: str = ""


@dataclass(frozen=True, slots=True)
class Programs:
    """Paths of the built programs."""

    spawner: str
    tiny: str


@dataclass(frozen=True, slots=True)
class Load:
    """What came of a load. `durations_ns`: from when a start was due until its end. `most`: alive at once."""

    started: int
    ended: int
    most: int
    elapsed_s: float
    failures: int
    durations_ns: list[int]


def build_one(name: str, directory: Path) -> Path:
    """Compile `name`.c into `directory`. Raises BenchError."""
    target = directory / name
    command = ["cc", *FLAGS, "-o", str(target), str(SOURCES / f"{name}.c")]
    try:
        built = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise BenchError("no C compiler: apt-get install gcc libc6-dev") from error
    if built.returncode:
        raise BenchError(f"{' '.join(command)} failed:\n{built.stderr}")
    return target


def build(directory: Path) -> Programs:
    """Compile both programs into `directory`. Raises BenchError."""
    directory.mkdir(parents=True, exist_ok=True)
    return Programs(*(str(build_one(name, directory)) for name in ("spawner", "tiny")))


def shuffled_order(counts: Sequence[int], seed: int) -> list[int]:
    """Each way as often as `counts` says, spread evenly over the run and shuffled within each stretch of it.

    A stretch holds one of the rarest way, so that what disturbs the machine for a while disturbs all ways
    alike.
    """
    rounds = min(counts)
    chance = random.Random(seed)
    order: list[int] = []
    for index in range(rounds):
        stretch = [
            way
            for way, count in enumerate(counts)
            for _ in range(count * (index + 1) // rounds - count * index // rounds)
        ]
        chance.shuffle(stretch)
        order += stretch
    return order


def measure_latency(
    programs: Programs,
    ways: Sequence[Way],
    counts: Sequence[int],
    pause_us: int,
    plan: Path,
    *,
    cgroup: Path,
    seed: int = 1,
) -> dict[str, list[int]]:
    """Durations in nanoseconds by name of the way, all interleaved in one run. Raises BenchError."""
    lines = []
    for way in ways:
        fields = [way.method, *([way.parent] if way.method is not Method.SPAWN else []), *way.command]
        lines.append("\t".join(fields))
    lines.append("\t".join(["order", *map(str, shuffled_order(counts, seed))]))
    plan.write_text("\n".join(lines) + "\n", encoding="utf-8")
    rows = _run([programs.spawner, "latency", str(plan), str(pause_us)], cgroup)
    durations: dict[str, list[int]] = {way.name: [] for way in ways}
    for number, duration_ns, status in rows:
        way = ways[int(number)]
        if status != "0":
            raise BenchError(f"{way.name}: {' '.join(way.command)} ended with wait status {status}")
        durations[way.name].append(int(duration_ns))
    return durations


def measure_rate(
    programs: Programs, command: Sequence[str], per_second: float, seconds: float, *, cgroup: Path
) -> Load:
    """A start at every tick, whether the last has ended or not."""
    return _load([programs.spawner, "rate", str(per_second), str(seconds), *command], cgroup)


def measure_flood(
    programs: Programs, command: Sequence[str], workers: int, seconds: float, *, cgroup: Path
) -> Load:
    """As many starts as there is time for, `workers` at once."""
    return _load([programs.spawner, "flood", str(workers), str(seconds), *command], cgroup)


def _load(command: list[str], cgroup: Path) -> Load:
    return read_load(_run(command, cgroup))


def read_load(rows: Sequence[Sequence[str]]) -> Load:
    """What the spawner said of a rate or a flood, split at tabs."""
    head = {row[0]: int(row[1]) for row in rows[:4]}
    results = [(int(duration_ns), status) for _, duration_ns, status in rows[4:]]
    return Load(
        started=head["started"],
        ended=head["ended"],
        most=head["most"],
        elapsed_s=head["ns"] / 1e9,
        failures=sum(status != "0" for _, status in results),
        durations_ns=[duration_ns for duration_ns, _ in results],
    )


def entering(cgroup: Path) -> Callable[[], None]:
    """What a child does before its exec to live in `cgroup`."""

    def enter() -> None:
        (cgroup / "cgroup.procs").write_text("0")

    return enter


def _run(command: list[str], cgroup: Path) -> list[list[str]]:
    """Run the spawner in `cgroup` and read its lines."""

    # What the started programs say is of interest only when something went wrong: a launcher without a
    # daemon says so a thousand times.
    with tempfile.TemporaryFile("w+", errors="replace") as said:
        ran = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=said, text=True, check=False, preexec_fn=entering(cgroup)
        )
        said.seek(0)
        last_words = said.read()[-2000:]
    if ran.returncode:
        raise BenchError(f"{' '.join(command[:4])}: exit status {ran.returncode}\n{last_words}")
    return [line.split("\t") for line in ran.stdout.splitlines()]
