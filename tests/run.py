"""Every test of the project: here, and in the guest on each supported kernel; ends with one line that counts them all.

    python tests/run.py                    everything: what `make test` does
    python tests/run.py --here             only what needs no guest: seconds
    python tests/run.py --kernel 7.3       the guest's part on one kernel
    python tests/run.py --kernel 7.3 -- -k oom    with arguments for pytest

Exit status 0 only when every test passed. A test that is skipped is counted and its reason is printed; in the guest, which
exists to have what tests need, a skip is a failure.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
BUILD: Final = ROOT / "build" / "test"
# The kernels on which the guest's part runs: the oldest supported one and the newest.
KERNELS: Final = ("6.12", "7.3")
# One between them, on which only what depends on the kernel's BPF is run: types and functions differ by release.
BPF_KERNEL: Final = "6.18"
BPF_TESTS: Final = ("test_bpf_*.py", "test_memory*.py", "test_scheduler*.py")
# What needs systemd, Docker and Prometheus is tested on one, and what takes minutes and is not about the kernel.
E2E_KERNEL: Final = "7.3"
E2E_TESTS: Final = ("tests/kernel/test_agent_loop.py", "tests/kernel/test_isolation_bench.py")
GUEST_TIMEOUT_S: Final = 1500
_SHARE: Final = "agentcgroup"
# What the verifier made of the programs, written by tests/kernel/test_bpf_stats.py.
_FIGURES: Final = "figures.json"


@dataclass(slots=True)
class Count:
    passed: int = 0
    failed: int = 0
    skipped: list[str] = field(default_factory=list)


def count(junit: Path, *, skips_fail: bool) -> Count:
    """The outcome in a JUnit file; a file that is missing is one failure: the run did not end as it should."""
    total = Count()
    if not junit.exists():
        total.failed = 1
        return total
    for case in ElementTree.parse(junit).iter("testcase"):
        skip = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            total.failed += 1
        elif skip is not None:
            total.skipped.append(f"{case.get('classname')}.{case.get('name')}: {skip.get('message')}")
            total.failed += skips_fail
        else:
            total.passed += 1
    return total


def run_here(extra: list[str]) -> Count:
    junit = BUILD / "here.xml"
    junit.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", f"--junitxml={junit}", "-q", *extra]
    status = subprocess.run(command, cwd=ROOT, check=False).returncode
    return _checked(count(junit, skips_fail=False), status)


def _checked(total: Count, status: int) -> Count:
    # pytest can fail outside of any test (a collection error, a crash), which no test case tells.
    if status not in (0, 1) and total.failed == 0:
        total.failed = 1
    return total


def _share() -> Path:
    """A folder with what the guest needs besides the installed package: the tests and what they look at."""
    share = BUILD / _SHARE
    shutil.rmtree(share, ignore_errors=True)
    listed = subprocess.run(
        [
            "git",
            "ls-files",
            "--cached",
            "--others",
            "--exclude-standard",
            "tests",
            "dashboards",
            "pyproject.toml",
            "bench",
        ],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for name in listed.splitlines():
        if (ROOT / name).is_file():
            target = share / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target)
    return share


def run_in_guest(kernel: str, extra: list[str], *, only_bpf: bool = False) -> Count:
    out = BUILD / f"guest-{kernel}"
    shutil.rmtree(out, ignore_errors=True)
    tests = ["tests/kernel", "tests/e2e"] if kernel == E2E_KERNEL else ["tests/kernel"]
    left_out = [] if kernel == E2E_KERNEL else [f"--ignore=/mnt/share/{_SHARE}/{test}" for test in E2E_TESTS]
    if only_bpf:
        found = [path for pattern in BPF_TESTS for path in ROOT.glob(f"tests/kernel/{pattern}")]
        tests = sorted(str(path.relative_to(ROOT)) for path in found)
    pytest = [
        "/opt/agentcgroup/bin/python", "-m", "pytest", "-q", "-p", "no:cacheprovider",
        "-c", f"/mnt/share/{_SHARE}/pyproject.toml", f"--rootdir=/mnt/share/{_SHARE}",
        "--junitxml=/mnt/out/junit.xml", "--durations=10", *left_out,
        *(f"/mnt/share/{_SHARE}/{test}" for test in tests), *extra,
    ]  # fmt: skip
    command = [
        str(ROOT / "vm" / "run"), "--kernel", kernel, "--timeout", str(GUEST_TIMEOUT_S), "--share", str(_share()),
        "--out", str(out), "--", "env", f"AGENTCG_BPF_FIGURES=/mnt/out/{_FIGURES}", *pytest,
    ]  # fmt: skip
    status = subprocess.run(command, cwd=ROOT, check=False).returncode
    if (out / _FIGURES).exists():
        # Where `make bpf-stats` keeps them, too.
        kept = ROOT / "build" / "bpf-stats" / kernel
        kept.mkdir(parents=True, exist_ok=True)
        shutil.copy2(out / _FIGURES, kept / _FIGURES)
    return _checked(count(out / "junit.xml", skips_fail=True), status)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="tests/run.py"
    )
    parser.add_argument("--here", action="store_true", help="only the tests that need no guest")
    parser.add_argument(
        "--kernel", action="append", help="only the guest's tests on this kernel; may be repeated"
    )
    parser.add_argument("pytest", nargs="*", help="arguments for pytest, after --")
    arguments = parser.parse_args()
    BUILD.mkdir(parents=True, exist_ok=True)
    stages: list[tuple[str, Count, float]] = []

    def stage(name: str, total: Count, began: float) -> None:
        stages.append((name, total, time.monotonic() - began))

    if not arguments.kernel:
        print("== here: unit, integration, native, linters", flush=True)
        began = time.monotonic()
        stage("here", run_here(arguments.pytest), began)
    if not arguments.here:
        for kernel in arguments.kernel or KERNELS:
            print(f"== guest: Linux {kernel}", flush=True)
            began = time.monotonic()
            stage(f"guest {kernel}", run_in_guest(kernel, arguments.pytest), began)
        if not arguments.kernel:
            print(f"== guest: Linux {BPF_KERNEL}, BPF only", flush=True)
            began = time.monotonic()
            stage(f"guest {BPF_KERNEL}", run_in_guest(BPF_KERNEL, arguments.pytest, only_bpf=True), began)

    print()
    for name, total, seconds in stages:
        print(
            f"{name:12} {total.passed:5} passed {total.failed:4} failed {len(total.skipped):4} skipped  {seconds:6.0f} s"
        )
        for reason in total.skipped:
            print(f"             skipped {reason}")
    passed = sum(total.passed for _, total, _ in stages)
    failed = sum(total.failed for _, total, _ in stages)
    skipped = sum(len(total.skipped) for _, total, _ in stages)
    print(f"\n{passed} passed, {failed} failed, {skipped} skipped")
    return 0 if failed == 0 and passed > 0 else 1


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    sys.exit(main())
