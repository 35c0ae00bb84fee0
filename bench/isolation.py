"""What agents do to each other on a host that is too small for them, and what the product changes about it.

Plays one recording again and again, in every arm in turn, so that whatever else the machine does meets all of them alike.
Run it with `make bench-isolation`, or `python -m bench.isolation --help`.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from agentcgroup.client import recordings
from agentcgroup.client.recordings import Recording
from agentcgroup.client.replaying import SMALL_PAGE_BYTES, Pace, play
from agentcgroup.proto.quantity import format_size, parse_size
from bench.arms import HIGH, MEANING, Arm, Scene, daemons, joint_need, needs_of, stage_of
from bench.isolation_figures import (
    Estimate,
    arm_figures,
    in_short,
    score_table,
    scores,
    table,
    verdicts,
)
from bench.isolation_outcomes import Outcome, outcome_of, read_outcome
from bench.spawning import BenchError

REPOSITORY: Final = Path(__file__).resolve().parent.parent
OUT: Final = REPOSITORY / "build" / "bench"
SHIPPED: Final = REPOSITORY / "bench" / "main-job.jsonl"
GUEST_SHARE: Final = "/mnt/share"
GUEST_PYTHON: Final = "/opt/agentcgroup/bin/python"
# Of the order of the arms in each repetition, which the results tell.
_SEED: Final = 1
_HARDWARE_CLOCK: Final = Path("/sys/class/rtc/rtc0/since_epoch")
_LARGE_PAGES: Final = Path("/sys/kernel/mm/transparent_hugepage")

_ARMS: Final = "\n".join(f"  {arm.value:<22}{meaning}" for arm, meaning in MEANING.items())
EPILOG: Final = f"""\
arms:
{_ARMS}

A limit is a size, or a share of what the sessions hold at most together when nothing holds them up: "89%" is a tenth too
small.

results: build/bench/isolation-NAME.json, NAME being the recording's
exit status: 0 measured; 1 could not be measured; 3 with --check: a goal was missed
"""


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.isolation", description=__doc__, epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("--recording", type=Path, default=SHIPPED, help="default: the project's main job")
    add("--limit", action="append", default=[], help="memory of the host, may be repeated; 89%% and 106%%")
    add("--speed", type=float, default=50.0, help="default %(default)s")
    add("--scale", type=float, default=1.0, help="of all memory, default 1")
    add("--step", default="1M", help="allocated and timed at a time, default %(default)s")
    add(
        "--pages", default="64K", metavar="SIZE",
        help="size of the pages that memory is taken in, where the kernel has it (mTHP): an emulated machine needs a third "
        "of the time for 64K; with 4K, and elsewhere, small ones; default %(default)s",
    )  # fmt: skip
    add("--repetitions", type=int, default=10, help="default %(default)s")
    add(
        "--minutes",
        type=float,
        metavar="M",
        help="of one limit: no repetition begins that would take longer",
    )
    add(
        "--arm",
        action="append",
        default=[],
        choices=[*Arm],
        metavar="ARM",
        help="only these; may be repeated",
    )
    add(
        "--deadline",
        type=float,
        default=60.0,
        metavar="S",
        help="of an arm's repetition, default %(default)s",
    )
    add(
        "--onto", type=Path, metavar="FILE",
        help="a result of the same measurement, which goes on: its repetitions count among --repetitions",
    )  # fmt: skip
    add("--here", action="store_true", help="on this machine, instead of in the guest")
    add("--kernel", default="7.3", help="of the guest, default %(default)s")
    add("--counted", action="store_true", help="in a guest of one CPU whose clock counts instructions")
    add("--out", type=Path, default=OUT)
    add("--check", action="store_true", help="status 3 when a goal was missed")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """The entry point."""
    given = parse_arguments(arguments)
    try:
        result = measure(given) if given.here else measure_in_guest(given)
    except BenchError as error:
        print(f"bench.isolation: {error}", file=sys.stderr)
        return 1
    missed = any(line.startswith("MISSED") for scene in result["scenes"] for line in scene["verdicts"])
    return 3 if given.check and missed else 0


def measure_in_guest(given: argparse.Namespace) -> dict[str, Any]:
    """The same in a guest, whose results come back."""
    place = given.out / "guest"
    place.mkdir(parents=True, exist_ok=True)
    name = given.recording.stem
    with tempfile.TemporaryDirectory(prefix="agentcgroup-") as directory:
        share = Path(directory, "recording")
        share.mkdir()
        shutil.copyfile(given.recording, share / given.recording.name)
        if given.onto is not None:
            shutil.copyfile(given.onto, share / "onto.json")
        options = [
            *(word for limit in given.limit for word in ("--limit", limit)),
            *(word for arm in given.arm for word in ("--arm", arm)),
            *(["--minutes", str(given.minutes)] if given.minutes is not None else []),
            *(["--onto", f"{GUEST_SHARE}/recording/onto.json"] if given.onto is not None else []),
        ]
        command = [
            str(REPOSITORY / "vm" / "run"), "--kernel", given.kernel, "--timeout", "7200", "--no-daemon",
            *(["--counted"] if given.counted else []),
            "--share", "bench", "--share", str(share), "--out", str(place), "--",
            "env", f"PYTHONPATH={GUEST_SHARE}", GUEST_PYTHON, "-m", "bench.isolation", "--here",
            "--recording", f"{GUEST_SHARE}/recording/{given.recording.name}", "--out", "/mnt/out",
            "--speed", str(given.speed), "--scale", str(given.scale), "--step", given.step, "--pages", given.pages,
            "--repetitions", str(given.repetitions), "--deadline", str(given.deadline), *options,
        ]  # fmt: skip
        ran = subprocess.run(command, cwd=REPOSITORY, stdout=sys.stderr, check=False)
    if ran.returncode:
        raise BenchError(f"the run in the guest ended with status {ran.returncode}")
    written = place / f"isolation-{name}.json"
    shutil.copyfile(written, given.out / written.name)
    result: dict[str, Any] = json.loads(written.read_text())
    return result


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Everything, here; written to the JSON file, and told on the way."""
    recording = recordings.read(given.recording)
    if not any(each.priority == HIGH for each in recording.sessions):
        raise BenchError(f"{given.recording} has no session of high priority: there is nobody to protect")
    with pages_of(parse_size(given.pages)) as page_bytes:
        return _measure(given, recording, Pace(given.speed, given.scale, parse_size(given.step), page_bytes))


def _measure(given: argparse.Namespace, recording: Recording, pace: Pace) -> dict[str, Any]:
    needs = needs_of(recording, pace)
    arms = [Arm(each) for each in given.arm] or list(Arm)
    given.out.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "kernel": platform.release(),
        "cpus": len(os.sched_getaffinity(0)),
        "recording": {"name": given.recording.stem, "note": recording.note, "needs_bytes": needs},
        "pace": dataclasses.asdict(pace),
        "scenes": [],
        "told": [],
    }
    scenes = [
        Scene(recording, pace, limit_bytes(limit, joint_need(recording, pace)), needs)
        for limit in given.limit or ["89%", "106%"]
    ]
    begun = begun_scenes(given.onto, _plain(result), [each.memory_bytes for each in scenes], arms)
    for scene, before in zip(scenes, begun, strict=True):
        result["scenes"].append(_scene(scene, before, given, result["told"]))
    target = given.out / f"isolation-{given.recording.stem}.json"
    target.write_text(json.dumps(_plain(result), indent=1) + "\n", encoding="utf-8")
    _tell(result["told"], f"written to {target}")
    return result


@contextlib.contextmanager
def pages_of(size_bytes: int) -> Iterator[int]:
    """Until the end whoever asks for large pages gets those of `size_bytes` and no others (transhuge.rst). The size: that of
    a small page where the kernel has no such."""
    wanted = _LARGE_PAGES / f"hugepages-{size_bytes >> 10}kB" / "enabled"
    if not wanted.exists():
        yield SMALL_PAGE_BYTES
        return
    before = {each: _chosen(each.read_text()) for each in sorted(_LARGE_PAGES.glob("hugepages-*/enabled"))}
    try:
        for each in before:
            each.write_text("madvise" if each == wanted else "never")
        yield size_bytes
    finally:
        for each, chosen in before.items():
            each.write_text(chosen)


def _chosen(words: str) -> str:
    """ "always [madvise] never" is madvise."""
    return words.partition("[")[2].partition("]")[0]


def limit_bytes(text: str, need_bytes: int) -> int:
    """A size, or a share of `need_bytes`."""
    return round(need_bytes * float(text[:-1]) / 100) if text.endswith("%") else parse_size(text)


@dataclasses.dataclass(slots=True)
class Begun:
    """What was played of a scene so far: by arm, and the order of the arms in each repetition."""

    played: dict[Arm, list[Outcome]]
    orders: list[list[Arm]] = dataclasses.field(default_factory=list)
    took_s: float = 0.0


def begun_scenes(
    onto: Path | None, head: Mapping[str, Any], memory_bytes: Sequence[int], arms: Sequence[Arm]
) -> list[Begun]:
    """One for each of `memory_bytes`: nothing, or what the result in `onto` has. Raises BenchError when that measured
    something else than `head` says."""
    if onto is None:
        return [Begun({arm: [] for arm in arms}) for _ in memory_bytes]
    try:
        before = json.loads(onto.read_text(encoding="utf-8"))
        for what in ("kernel", "cpus", "recording", "pace"):
            if before[what] != head[what]:
                raise BenchError(f"{onto}: its {what} is {before[what]}, and here it is {head[what]}")
        found = [
            Begun(
                {
                    Arm(arm): [read_outcome(each) for each in played]
                    for arm, played in scene["played"].items()
                },
                [[Arm(arm) for arm in order] for order in scene["orders"]],
                scene["took_s"],
            )
            for scene in before["scenes"]
        ]
        sizes = [scene["memory_bytes"] for scene in before["scenes"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BenchError(f"{onto} is no result to go on with: {error!r}") from error
    if sizes != list(memory_bytes) or any(list(each.played) != list(arms) for each in found):
        raise BenchError(f"{onto}: it was measured with other limits or arms")
    return found


def _scene(scene: Scene, begun: Begun, given: argparse.Namespace, told: list[str]) -> dict[str, Any]:
    played, orders = begun.played, begun.orders
    arms = list(played)
    source = random.Random(_SEED)
    for _ in orders:
        source.sample(arms, len(arms))
    need = joint_need(scene.recording, scene.pace)
    _tell(told, f"\n{len(scene.recording.sessions)} sessions that need {format_size(need)} together, "
                f"in {format_size(scene.memory_bytes)}, {scene.pace.speed:g} times as fast")  # fmt: skip
    began_s, longest_s, first = _wall_s(), 0.0, len(orders)
    with daemons(arms, scene.memory_bytes) as running:
        for number in range(first, given.repetitions):
            before_s = _wall_s()
            if (
                number > first
                and given.minutes is not None
                and before_s + longest_s > began_s + given.minutes * 60
            ):
                _tell(told, f"{number} repetitions in {given.minutes:g} minutes")
                break
            # A different order each time: what an arm leaves behind in the machine is nobody's in particular.
            orders.append(source.sample(arms, len(arms)))
            for arm in orders[-1]:
                chosen = alone(scene.recording) if arm is Arm.ALONE else scene.recording
                part = dataclasses.replace(scene, recording=chosen)
                with stage_of(arm, part, running) as stage:
                    played[arm].append(outcome_of(play(chosen, stage, scene.pace, given.deadline)))
                print(f"  {number + 1}/{given.repetitions} {arm}: {in_short(played[arm][-1])}", flush=True)
            longest_s = max(longest_s, _wall_s() - before_s)
    found = [arm_figures(arm, played[arm]) for arm in arms]
    compared = scores(played)
    sentences = verdicts(compared)
    for line in (*table(found), "", *score_table(compared), "", *sentences):
        _tell(told, line)
    return {
        "memory_bytes": scene.memory_bytes,
        "repetitions": len(orders),
        "seed": _SEED,
        "orders": orders,
        "took_s": round(begun.took_s + _wall_s() - began_s, 1),
        "arms": found,
        "scores": compared,
        "verdicts": sentences,
        "played": played,
    }


def _wall_s() -> float:
    """The time of whoever waits, which that of a counted guest is not: its hardware clock is the host's."""
    try:
        return float(_HARDWARE_CLOCK.read_text())
    except (OSError, ValueError):
        return time.time()


def alone(recording: Recording) -> Recording:
    """The sessions of high priority by themselves."""
    return recording.only([each.session for each in recording.sessions if each.priority == HIGH])


def _tell(told: list[str], line: str) -> None:
    told.append(line)
    print(line, flush=True)


def _plain(value: Any) -> Any:
    match value:
        case dict():
            return {str(key): _plain(each) for key, each in value.items()}
        case list() | tuple():
            return [_plain(each) for each in value]
        case Estimate():
            return dataclasses.asdict(value)
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return dataclasses.asdict(value)
        case _:
            return value


if __name__ == "__main__":
    sys.exit(main())
