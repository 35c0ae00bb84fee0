"""What a tool call costs: `agentcg run` against starting the same program directly, and against `systemd-run
--scope`.

Run it with `make bench-launch`, or `python -m bench.launch --help`.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from agentcgroup.cgroups import files
from agentcgroup.cgroups.cgroup import Cgroup
from agentcgroup.cgroups.membership import find_mount
from bench import mounting
from bench.figures import Added, Figures, added, figures, times_cheaper
from bench.report import print_report, targets
from bench.spawning import (
    BenchError,
    Method,
    Programs,
    Way,
    build,
    entering,
    measure_flood,
    measure_latency,
    measure_rate,
)
from bench.subject import SESSION, Subject, cgroup_path, running_daemon

REPOSITORY: Final = Path(__file__).resolve().parent.parent
OUT: Final = REPOSITORY / "build" / "bench"
GUEST_SHARE: Final = "/mnt/share"
GUEST_PYTHON: Final = "/opt/agentcgroup/bin/python"

# Every kind of limit, so that every limit file is written, and patience enough for a thousand that ask at
# once of an emulated machine.
LIMITS: Final = (
    "--answer-timeout", "2m",
    "--memory", "2M", "--memory-max", "128M", "--cpu", "1", "--weight", "200", "--pids", "64", "--timeout", "5m",
)  # fmt: skip
IN_FLIGHT: Final = 1000
# What is to be sustained natively. In the guest every instruction is emulated, and a rate beyond its power
# would only pile up processes.
PAUSE_MS: Final = {"native": 10.0, "guest": 150.0}
RATE_PER_S: Final = {"native": 200, "guest": 10}

EPILOG: Final = """\
ways of starting, all interleaved in one run:
  bare           vfork and exec of a tiny program, until it is reaped
  agentcg        the same through `agentcg run` with every limit set: what users type
  launcher       the same through `agentcg run` without a daemon: what executing the launcher alone costs, and a line of
                 complaint, which a launch with a daemon has not
  floor-move     without a daemon: the child moves itself into a cgroup that is there, exec. With `launcher` it is what a
                 launch into a prepared call cannot be cheaper than
  floor-place    without a daemon: mkdir, the child moves itself into the cgroup, exec; no limit is written
  floor-clone3   without a daemon: mkdir, the child is born in the cgroup, exec; no limit is written
  systemd-run    the same through `systemd-run --scope`, where systemd runs

The removal of the floor's cgroups is not part of the time. The daemon prepares, does its books and removes its own
cgroups in the meantime; in the spaced run the pause leaves it the time for that, in the back-to-back run it goes on beside
whatever comes next. Every way follows every other equally often, so what that costs, all pay alike. `prepared` says how
many launches met a call that was prepared.

results: build/bench/launch-native.json, build/bench/launch-guest.json
exit status: 0 measured; 1 could not be measured; 3 with --check: a target was missed
"""


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.launch", description=__doc__, epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--where", choices=["native", "guest"], default="native")
    parser.add_argument(
        "--count", type=int, help="starts of each way; default 1000 natively, 100 in the guest"
    )
    parser.add_argument(
        "--pause-ms",
        type=float,
        help="between two starts of the spaced run; default 10 natively, 150 in the guest",
    )
    parser.add_argument("--seconds", type=float, default=15, help="length of each load; default 15")
    parser.add_argument(
        "--rest-seconds", type=float, default=30, help="length of the watch at rest; default 30"
    )
    parser.add_argument("--only-latency", action="store_true", help="no loads, nothing at rest")
    parser.add_argument(
        "--favordynmods", choices=["keep", "on", "off"], default="keep",
        help="set this option of cgroup2 for the run; default keep. It concerns the whole host, and newer kernels"
        " (seen on 6.18) stay as with it until they boot anew, also when it is cleared",
    )  # fmt: skip
    parser.add_argument("--kernel", default="7.3", help="kernel series of the guest; default 7.3")
    parser.add_argument(
        "--uncounted",
        action="store_true",
        help="in the guest, two CPUs and the host's clock, instead of one CPU and a clock that counts instructions",
    )
    parser.add_argument("--check", action="store_true", help="exit with 3 when a target is missed")
    parser.add_argument("--out", type=Path, default=OUT, help="directory of the results")
    parser.add_argument("--label", choices=["native", "guest"], default="native", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main() -> int:
    arguments = parse_arguments()
    try:
        if arguments.where == "guest":
            result = run_in_guest(arguments)
        else:
            with mounting.favordynmods(arguments.favordynmods):
                result = measure(arguments)
            path = arguments.out / f"launch-{arguments.label}.json"
            path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    except BenchError as error:
        print(f"bench.launch: {error}", file=sys.stderr)
        return 1
    print_report(result)
    return 3 if arguments.check and not all(each["met"] for each in result["targets"]) else 0


def run_in_guest(arguments: argparse.Namespace) -> dict[str, Any]:
    """The same in a guest, whose results come back."""
    place = arguments.out / "guest"
    place.mkdir(parents=True, exist_ok=True)
    command = [
        str(REPOSITORY / "vm" / "run"), "--kernel", arguments.kernel, "--timeout", "1800", "--share", "bench",
        *([] if arguments.uncounted else ["--counted"]),
        "--out", str(place), "--", "env", f"PYTHONPATH={GUEST_SHARE}", GUEST_PYTHON, "-m", "bench.launch",
        "--label", "guest", "--out", "/mnt/out", "--count", str(arguments.count or 100),
        "--pause-ms", str(arguments.pause_ms or PAUSE_MS["guest"]), "--seconds", str(arguments.seconds),
        "--rest-seconds", str(arguments.rest_seconds), "--favordynmods", arguments.favordynmods,
        *(["--only-latency"] if arguments.only_latency else []),
    ]  # fmt: skip
    ran = subprocess.run(command, cwd=REPOSITORY, stdout=sys.stderr, check=False)
    if ran.returncode:
        raise BenchError(f"the run in the guest ended with status {ran.returncode}")
    written = place / "launch-guest.json"
    shutil.copyfile(written, arguments.out / "launch-guest.json")
    result: dict[str, Any] = json.loads(written.read_text())
    return result


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything, here. Returns what goes into the JSON file."""
    count = arguments.count or 1000
    arguments.out.mkdir(parents=True, exist_ok=True)
    load_before = os.getloadavg()
    pause_ms = arguments.pause_ms or PAUSE_MS[arguments.label]
    with tempfile.TemporaryDirectory(prefix="agb-build-") as place, running_daemon() as subject:
        programs = build(Path(place))
        result = describe_host(subject)
        if not arguments.only_latency:
            result["at_rest"] = dataclasses.asdict(subject.rest(arguments.rest_seconds))
        with floor_parent() as floor:
            ways = ways_of(programs, subject, floor)
            result["spaced"] = latency(programs, subject, ways, count, pause_ms)
            result["back_to_back"] = latency(programs, subject, ways, count, 0)
        if not arguments.only_latency:
            command = agentcg_command(subject, programs.tiny)
            result["rate"] = rate(programs, subject, command, RATE_PER_S[arguments.label], arguments.seconds)
            result["flood"] = flood(programs, subject, command, arguments.seconds)
            result["in_flight"] = in_flight(programs, subject)
    result["load_average"] = {"before": load_before, "after": os.getloadavg()}
    result["targets"] = [dataclasses.asdict(target) for target in targets(result)]
    return result


def describe_host(subject: Subject) -> dict[str, Any]:
    """What has to be known about the place to read the figures."""
    controllers = enabled_controllers(subject.root)
    missing = sorted({"memory", "cpu", "pids"} - controllers)
    options = dataclasses.asdict(find_mount().options)
    return {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "cgroup_mount_options": sorted(name for name, is_set in options.items() if is_set),
        "is_enforced": not missing,
        "notes": [f"no {name} controller in cgroup v2 here: its limits are not written" for name in missing],
    }


def enabled_controllers(root: Path) -> frozenset[str]:
    """The controllers that calls get."""
    with Cgroup.open(root) as cgroup:
        return cgroup.read(files.CGROUP_SUBTREE_CONTROL) or frozenset()


@contextlib.contextmanager
def floor_parent() -> Iterator[Path]:
    """A cgroup for the floor's children, with the controllers that a call's cgroup has."""
    path = cgroup_path(f"agentcgroup-floor-{os.getpid()}")
    with Cgroup.open(path.parent) as top, top.create_child(path.name) as floor:
        try:
            present: frozenset[str] = floor.read(files.CGROUP_CONTROLLERS) or frozenset()
            floor.enable_controllers(present & {"memory", "cpu", "pids"})
            yield path
        finally:
            floor.remove_tree(10)


def agentcg_command(subject: Subject, *program: str) -> tuple[str, ...]:
    """What users type, with every limit."""
    return launcher(), "run", "--quiet", "--session-dir", subject.session_dir, *LIMITS, "--", *program


def launcher() -> str:
    """The native launcher: beside the Python that runs this, in the working tree, or on PATH."""
    beside = Path(sys.executable).parent / "agentcg"
    built = REPOSITORY / "client" / "launcher" / "agentcg"
    for path in (built, beside):
        if os.access(path, os.X_OK):
            return str(path)
    found = shutil.which("agentcg")
    if found is None:
        raise BenchError("agentcg is not built: make launcher")
    return found


def ways_of(programs: Programs, subject: Subject, floor: Path) -> list[Way]:
    """The ways to compare on this host."""
    alone = (
        launcher(),
        "run",
        "--quiet",
        "--session-dir",
        "/nonexistent",
        "--if-unreachable",
        "run",
        *LIMITS,
    )
    ways = [
        Way("bare", Method.SPAWN, (programs.tiny,)),
        Way("agentcg", Method.SPAWN, agentcg_command(subject, programs.tiny)),
        Way("launcher", Method.SPAWN, (*alone, "--", programs.tiny)),
        Way("floor-move", Method.MOVE, (programs.tiny,), str(floor)),
        Way("floor-place", Method.PLACE, (programs.tiny,), str(floor)),
        Way("floor-clone3", Method.CLONE3, (programs.tiny,), str(floor)),
    ]
    if os.path.isdir("/run/systemd/system") and (systemd_run := shutil.which("systemd-run")):
        ways.append(Way("systemd-run", Method.SPAWN, (systemd_run, "--scope", "--quiet", programs.tiny)))
    return ways


def latency(
    programs: Programs, subject: Subject, ways: Sequence[Way], count: int, pause_ms: float
) -> dict[str, Any]:
    """All ways interleaved; what each takes and what it adds to the bare one."""
    # systemd-run takes so long that a tenth of the starts says as much.
    counts = [max(20, count // 10) if way.name == "systemd-run" else count for way in ways]
    plan = subject.directory / "plan"
    before = subject.placements()
    durations = measure_latency(
        programs, ways, counts, round(pause_ms * 1000), plan, cgroup=agent_leaf(subject)
    )
    after = subject.placements()
    by_way: dict[str, Figures] = {name: figures(sample) for name, sample in durations.items()}
    costs: dict[str, Added] = {
        name: added(found, by_way["bare"]) for name, found in by_way.items() if name != "bare"
    }
    return {
        "pause_ms": pause_ms,
        "prepared": after["prepared"] - before["prepared"],
        "unprepared": after["launcher"] - before["launcher"],
        "ways": {name: dataclasses.asdict(found) for name, found in by_way.items()},
        "added_to_bare": {name: dataclasses.asdict(cost) for name, cost in costs.items()},
        "systemd_run_adds_times_agentcg": times_cheaper(costs, "agentcg", "systemd-run"),
    }


def agent_leaf(subject: Subject) -> Path:
    """Where the agent runtime lives, from which tools are started."""
    return subject.root / SESSION / "agent"


def rate(
    programs: Programs, subject: Subject, command: Sequence[str], per_s: int, seconds: float
) -> dict[str, Any]:
    """Launches at the rate to sustain; it is sustained when all succeed and none pile up."""
    cpu_s = subject.cpu_s()
    load = measure_rate(programs, command, per_s, seconds, cgroup=agent_leaf(subject))
    daemon_cpu_s = subject.cpu_s() - cpu_s
    drained_s = subject.await_no_calls(60)
    return {
        "per_s": per_s,
        "seconds": round(load.elapsed_s, 2),
        "started": load.started,
        "failures": load.failures + load.started - load.ended,
        "achieved_per_s": round(load.started / load.elapsed_s, 1),
        "most_at_once": load.most,
        "from_due_to_end": dataclasses.asdict(figures(load.durations_ns)),
        "daemon_cpu_ms_per_launch": round(daemon_cpu_s / load.started * 1000, 3),
        "drained_s": round(drained_s, 2),
    }


def flood(programs: Programs, subject: Subject, command: Sequence[str], seconds: float) -> dict[str, Any]:
    """As many launches as there are, four at once."""
    cpu_s = subject.cpu_s()
    load = measure_flood(programs, command, 4, seconds, cgroup=agent_leaf(subject))
    drained_s = subject.await_no_calls(60)
    return {
        "workers": 4,
        "started": load.started,
        "failures": load.failures + load.started - load.ended,
        "per_s": round(load.started / load.elapsed_s, 1),
        "each": dataclasses.asdict(figures(load.durations_ns)),
        "daemon_cpu_ms_per_launch": round((subject.cpu_s() - cpu_s) / load.started * 1000, 3),
        "drained_s": round(drained_s, 2),
    }


def in_flight(programs: Programs, subject: Subject) -> dict[str, Any]:
    """Many calls alive at once on the one daemon: are they all in their cgroups, and what does the daemon
    weigh?
    """
    before = subject.rss_bytes()
    command = [programs.spawner, "hold", str(IN_FLIGHT), *agentcg_command(subject, programs.tiny, "hold")]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=entering(agent_leaf(subject)),
    ) as holder:
        assert holder.stdin is not None and holder.stdout is not None
        held = int(holder.stdout.readline().split()[1])
        ready_ns = int(holder.stdout.readline().split()[1])
        calls = subject.calls_left()
        during = subject.rss_bytes()
        resting = subject.rest(2)
        holder.stdin.close()
        failures = int(holder.stdout.readline().split()[1])
    return {
        "asked": IN_FLIGHT,
        "held": held,
        "cgroups": calls,
        "failures": failures,
        "all_ready_s": round(ready_ns / 1e9, 2),
        "drained_s": round(subject.await_no_calls(120), 2),
        "rss_before_mb": round(before / 1e6, 1),
        "rss_during_mb": round(during / 1e6, 1),
        "rss_after_mb": round(subject.rss_bytes() / 1e6, 1),
        "cpu_percent_while_held": resting.cpu_percent,
    }


if __name__ == "__main__":
    sys.exit(main())
