"""How long it takes from what happens in the kernel to the message that an agent reads, and whether a warning is in time.

Run it with `make bench-feedback`; ARGS="--where guest" for the warnings, which need a memory controller; ARGS="--check" to
fail when a target is missed. The figures go to build/bench/feedback-native.json and feedback-guest.json.

messages   everywhere: a tool's process enters its call (cgroup_attach_task) and ends (sched_process_exit); the kernel's own
           time of both, from the records of our BPF programs, against the arrival of STARTED and ENDED on the gRPC stream.
           STARTED has nothing to wait for; before ENDED the daemon kills what is left, waits until the call is empty, reads
           its counters and removes it, which is in the figure. Beside each a bare wake-up of a Python process by a pipe:
           what this machine, with what else it does, takes for that alone.
warnings   where there is a memory controller: a tool grows at a given rate up to its own limit, its session's or that of
           all sessions, until a call is ended (bench/warned.py). From the soft limit being reached to the arrival of
           WARNING, and whether that was before the end.
"""

import argparse
import contextlib
import json
import os
import platform
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from agentcgroup.bpf.abi import EventKind
from agentcgroup.bpf.libbpf import BpfError
from agentcgroup.bpf.lifecycle import Lifecycle
from agentcgroup.bpf.records import Arrival, Exit, Record
from agentcgroup.cgroups.cgroup import Cgroup
from agentcgroup.cgroups.errors import CgroupError
from agentcgroup.client import Client, FeedbackKind
from bench.figures import Figures, figures
from bench.launch import GUEST_PYTHON, GUEST_SHARE, OUT, REPOSITORY, enabled_controllers
from bench.listening import Ear, launch
from bench.report import Target
from bench.spawning import BenchError, build_one
from bench.subject import SESSION, Subject, running_daemon
from bench.warned import OWED_MS, Limit, Warned, measure_warnings

MOST_P99_MS: Final = 20.0
BARE: Final = "a bare wake-up"
COUNTS: Final = {"native": 1000, "guest": 50}


# ---- messages

# Says when it was woken up, as often as it is.
_WOKEN: Final = """
import os, struct, time
while os.read(0, 1):
    os.write(1, struct.pack("Q", time.clock_gettime_ns(time.CLOCK_BOOTTIME)))
"""


@contextlib.contextmanager
def sleeper() -> Iterator[Callable[[], int]]:
    """Wakes another process up; how long that took, in ns."""
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", _WOKEN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    )
    assert process.stdin is not None and process.stdout is not None
    into, out = process.stdin, process.stdout

    def wake() -> int:
        at_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        into.write(b"!")
        woken_ns: int = struct.unpack("Q", out.read(8))[0]
        return woken_ns - at_ns

    wake()
    yield wake
    into.close()
    process.wait()


def measure_messages(subject: Subject, count: int) -> dict[str, Figures]:
    """By what happened and by who served the launch: Python, or the door's thread that has a call prepared."""
    records: list[Record] = []
    durations: dict[str, list[int]] = {}
    with contextlib.ExitStack() as stack:
        try:
            lifecycle = stack.enter_context(
                contextlib.closing(Lifecycle(records.append, kinds=(EventKind.ATTACH, EventKind.EXIT)))
            )
            with Cgroup.open(subject.root / SESSION) as session:
                lifecycle.open_account(session.id)
        except (BpfError, CgroupError) as error:
            raise BenchError(f"no kernel events to compare with: {error}") from error
        ear = stack.enter_context(Ear(Client(subject.session_dir)))
        wake = stack.enter_context(sleeper())
        for number in range(count):
            from_agent = number % 2 == 1
            process = subprocess.Popen(launch(subject, "true", from_agent=from_agent))
            heard = ear.until(FeedbackKind.STARTED, FeedbackKind.ENDED)
            process.wait()
            durations.setdefault(BARE, []).append(wake())
            while lifecycle.drain():
                pass
            mine = [each for each in records if each.pid == process.pid]
            records.clear()
            # The last: one from the agent was moved into the agent's leaf before.
            entered = [each.at_ns for each in mine if isinstance(each, Arrival)][-1]
            ended = [each.at_ns for each in mine if isinstance(each, Exit)][-1]
            who = "agent" if from_agent else "outside"
            for name, kind, at_ns in (
                ("entered", FeedbackKind.STARTED, entered),
                ("ended", FeedbackKind.ENDED, ended),
            ):
                durations.setdefault(f"{name}, from {who}", []).append(heard[kind][0] - at_ns)
    return {name: figures(each) for name, each in durations.items()}


# ---- results


def targets(result: Mapping[str, Any]) -> list[Target]:
    found = []
    if result["where"] == "native":
        for name, each in result["messages"].items():
            if name == BARE:
                continue
            p99_ms = each["p99_ms"]
            found.append(
                Target(f"{name}: p99 to the message, ms", f"< {MOST_P99_MS:g}", p99_ms, p99_ms < MOST_P99_MS)
            )
    for limit in Limit:
        owed = [
            each
            for each in result.get("warnings", ())
            if each["limit"] == limit and each["left_ms"] >= OWED_MS
        ]
        if owed:
            in_time = sum((each["before_end_ms"] or 0) > 0 for each in owed)
            name = f"{limit}: warned before the end where growth left {OWED_MS} ms, of {len(owed)}"
            found.append(Target(name, f"{len(owed)}", in_time, in_time == len(owed)))
    return found


def _delays_ns(warnings: Sequence[Warned], limit: Limit) -> list[int]:
    return [
        int(each.warned_after_ms * 1e6)
        for each in warnings
        if each.limit is limit and each.warned_after_ms is not None
    ]


def measure(where: str, count: int, out: Path) -> dict[str, Any]:
    load_before = os.getloadavg()
    result: dict[str, Any] = {
        "where": where,
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
    }
    with tempfile.TemporaryDirectory(prefix="agb-build-") as place, running_daemon() as subject:
        result["messages"] = {name: asdict(each) for name, each in measure_messages(subject, count).items()}
        if "memory" in enabled_controllers(subject.root):
            warnings = measure_warnings(subject, build_one("climb", Path(place)))
            result["warnings"] = [asdict(each) for each in warnings]
            result["soft_limit_to_warning"] = {
                limit: asdict(figures(heard)) for limit in Limit if (heard := _delays_ns(warnings, limit))
            }
    result["load_average"] = {"before": load_before, "after": os.getloadavg()}
    result["targets"] = [asdict(target) for target in targets(result)]
    out.mkdir(parents=True, exist_ok=True)
    (out / f"feedback-{where}.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


def measure_in_guest(arguments: argparse.Namespace) -> dict[str, Any]:
    place = arguments.out / "guest"
    place.mkdir(parents=True, exist_ok=True)
    command = [
        str(REPOSITORY / "vm" / "run"), "--kernel", arguments.kernel, "--counted", "--no-daemon", "--timeout", "900",
        "--share", "bench", "--out", str(place), "--",
        "env", f"PYTHONPATH={GUEST_SHARE}", GUEST_PYTHON, "-m", "bench.feedback", "--label", "guest", "--out", "/mnt/out",
        "--count", str(arguments.count or COUNTS["guest"]),
    ]  # fmt: skip
    ran = subprocess.run(command, cwd=REPOSITORY, stdout=sys.stderr, check=False)
    if ran.returncode:
        raise BenchError(f"the run in the guest ended with status {ran.returncode}")
    written = place / "feedback-guest.json"
    shutil.copyfile(written, arguments.out / written.name)
    result: dict[str, Any] = json.loads(written.read_text())
    return result


def report(result: Mapping[str, Any]) -> Iterator[str]:
    """What was measured, for a terminal."""
    yield f"kernel {result['kernel']}, {result['cpus']} CPUs, load {result['load_average']['before'][0]:.1f}"
    rows = dict(result["messages"])
    for limit, each in result.get("soft_limit_to_warning", {}).items():
        rows[f"soft limit reached, {limit}"] = each
    for name, each in rows.items():
        yield (
            f"{name:28} p50 {each['p50_ms']:7.2f}  p90 {each['p90_ms']:7.2f}  p99 {each['p99_ms']:7.2f}  "
            f"most {each['most_ms']:7.2f} ms, n {each['n']}"
        )
    if "warnings" in result:
        yield "ended at   growth left  limit   warned after   before the end"
    for each in result.get("warnings", ()):
        after, left = each["warned_after_ms"], each["before_end_ms"]
        told = "not warned" if left is None else f"{left:8.1f} ms"
        since = f"{after:9.2f} ms" if after is not None else " " * 12
        yield f"{each['limit']:10} {each['left_ms']:8} ms  {each['maximum_mib']:4}M  {since}  {told}"
    for target in result["targets"]:
        said = "met   " if target["met"] else "MISSED"
        yield f"  {said}  {target['name']}: {target['got']} (wanted {target['wanted']})"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        prog="python -m bench.feedback",
    )
    parser.add_argument("--where", choices=["native", "guest"], default="native")
    parser.add_argument(
        "--count", type=int, help="launches; default 1000 of each kind natively, 50 in the guest"
    )
    parser.add_argument("--kernel", default="7.3", help="kernel series of the guest; default 7.3")
    parser.add_argument("--check", action="store_true", help="exit with 3 when a target is missed")
    parser.add_argument("--out", type=Path, default=OUT, help="directory of the results")
    parser.add_argument("--label", choices=["native", "guest"], default="native", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    try:
        if arguments.where == "guest":
            result = measure_in_guest(arguments)
        else:
            result = measure(arguments.label, arguments.count or 2 * COUNTS[arguments.label], arguments.out)
    except BenchError as error:
        print(f"bench.feedback: {error}", file=sys.stderr)
        return 1
    print("\n".join(report(result)))
    return 3 if arguments.check and not all(each["met"] for each in result["targets"]) else 0


if __name__ == "__main__":
    sys.exit(main())
