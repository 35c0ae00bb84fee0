"""Every test of the project: here, and in the guest on each supported kernel; ends with one line that counts them all.

    python tests/run.py                    everything: what `make test` does
    python tests/run.py --here             only what needs no guest: seconds
    python tests/run.py --kernel 7.3       the guest's part on one kernel
    python tests/run.py --kernel 7.3 -- -k oom    with arguments for pytest

Exit status 0 only when every test passed. A test that is skipped is counted and its reason is printed; in the guest, which
exists to have what tests need, a skip is a failure.

What fails is run once more, by itself, in a guest that was booted anew. Tests here are about deadlines, ticks, memory
pressure and races, on a machine that is shared and, for the guest, emulated: its clock is this machine's and goes on while
its processors do not run. A second run tells the test's fault from the machine's. It is no carpet: a test that fails
twice has failed; one that passes only then is named in the summary, which is kept in build/test/summary.txt, and wants
mending; more than three of them in a stage are a failure, and more than ten failures are not run again. Likewise a guest
that does not get as far as pytest is booted once more, and the summary says so. One that is lost later is not: that may
be our programs' doing. With arguments for pytest nothing is run again.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests import results  # noqa: E402  (the path must be set first)
from tests.results import Results  # noqa: E402
from vm.outcome import ExitStatus  # noqa: E402

BUILD: Final = ROOT / "build" / "test"
# The kernels on which the guest's part runs: the oldest supported one and the newest.
KERNELS: Final = ("6.12", "7.3")
# One between them, on which only what depends on the kernel's BPF is run: types and functions differ by release.
BPF_KERNEL: Final = "6.18"
BPF_TESTS: Final = ("test_bpf_*.py", "test_memory*.py", "test_scheduler*.py")
# What the daemon makes of the scheduler is the same on every kernel that has one, and loading it takes ten seconds.
NOT_BPF_TESTS: Final = ("test_scheduler_daemon.py", "test_scheduler_tiers.py", "test_memory_guard_modes.py")
# What needs systemd, Docker and Prometheus is tested on one, and what takes minutes and is not about the kernel.
E2E_KERNEL: Final = "7.3"
E2E_TESTS: Final = (
    "tests/kernel/test_agent_loop.py",
    "tests/kernel/test_isolation_bench.py",
    "tests/kernel/test_lending.py",
    "tests/kernel/test_sequences.py",
)
GUEST_TIMEOUT_S: Final = 1500
_SHARE: Final = "agentcgroup"
# What the verifier made of the programs, written by tests/kernel/test_bpf_stats.py.
_FIGURES: Final = "figures.json"


# How vm/run ends when it did not come to the command's end: a guest that is lost, a mirror that did not answer.
NO_END: Final = (ExitStatus.PANIC, ExitStatus.GUEST_LOST, ExitStatus.TIMEOUT, ExitStatus.SETUP_FAILED)
# Written in the guest when pytest is about to start.
_BEGAN: Final = "began"
# A test there takes up to a minute; the bound of pyproject.toml is for this machine.
GUEST_TEST_TIMEOUT_S: Final = 240


def run_here(extra: list[str]) -> Results:
    first = _pytest_here(BUILD / "here.xml", extra)
    if extra or not first.to_run_again:
        return first
    _say_again(first)
    return first.with_second_run(_pytest_here(BUILD / "here-again.xml", first.to_run_again))


def _pytest_here(junit: Path, arguments: Sequence[str]) -> Results:
    junit.unlink(missing_ok=True)
    # Hypothesis: the same examples each time, however slow; who works on the code lets it look for others.
    profile = "--hypothesis-profile=ci"
    command = [sys.executable, "-m", "pytest", f"--junitxml={junit}", "-q", profile, *arguments]
    status = subprocess.run(command, cwd=ROOT, check=False).returncode
    return results.read(junit, status, ROOT, skips_fail=False)


def _say_again(first: Results) -> None:
    print(f"== once more: {len(first.to_run_again)} that failed", flush=True)


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


def _tests_for(kernel: str, *, only_bpf: bool) -> list[str]:
    """Arguments for pytest: what is to run on this kernel."""
    if only_bpf:
        found = {path for pattern in BPF_TESTS for path in ROOT.glob(f"tests/kernel/{pattern}")}
        return [_shown(path.relative_to(ROOT)) for path in sorted(found) if path.name not in NOT_BPF_TESTS]
    if kernel == E2E_KERNEL:
        return [_shown("tests/kernel"), _shown("tests/e2e")]
    return [_shown("tests/kernel"), *(f"--ignore={_shown(test)}" for test in E2E_TESTS)]


def _shown(name: str | Path) -> str:
    """Where the guest sees a file of the repository, or a test by its node id."""
    return f"/mnt/share/{_SHARE}/{name}"


def run_in_guest(kernel: str, extra: list[str], *, only_bpf: bool = False) -> Results:
    tests = [*_tests_for(kernel, only_bpf=only_bpf), *extra]
    out = BUILD / f"guest-{kernel}"
    first = _pytest_in_guest(kernel, out, ["--durations=10", *tests])
    if (out / _FIGURES).exists():
        # Where `make bpf-stats` keeps them, too.
        kept = ROOT / "build" / "bpf-stats" / kernel
        kept.mkdir(parents=True, exist_ok=True)
        shutil.copy2(out / _FIGURES, kept / _FIGURES)
    if extra or not first.to_run_again:
        return first
    _say_again(first)
    again = _pytest_in_guest(kernel, out / "again", [_shown(name) for name in first.to_run_again])
    return first.with_second_run(again)


def _pytest_in_guest(kernel: str, out: Path, arguments: Sequence[str]) -> Results:
    """Boots a guest and runs pytest in it; boots it once more if it is lost before."""
    notes: list[str] = []
    while True:
        shutil.rmtree(out, ignore_errors=True)
        status = _boot(kernel, out, arguments)
        is_lost = status in NO_END and not (out / _BEGAN).exists()
        if not is_lost or notes:
            break
        notes.append(
            f"the guest did not get as far as pytest (vm/run ended with {status}) and was booted again"
        )
        print(f"== {notes[0]}", flush=True)
    found = results.read(out / "junit.xml", status, ROOT, skips_fail=True)
    found.notes += notes
    return found


def _boot(kernel: str, out: Path, arguments: Sequence[str]) -> int:
    pytest = [
        "/opt/agentcgroup/bin/python", "-m", "pytest", "-q", "-p", "no:cacheprovider",
        "-c", _shown("pyproject.toml"), f"--rootdir={_shown('')}", "--junitxml=/mnt/out/junit.xml",
        "-o", f"timeout={GUEST_TEST_TIMEOUT_S}", *arguments,
    ]  # fmt: skip
    # On the disk, so that a panic does not take it along.
    begin = ["sh", "-c", f'touch /mnt/out/{_BEGAN} && sync -f /mnt/out && exec "$@"', "sh"]
    command = [
        str(ROOT / "vm" / "run"), "--kernel", kernel, "--timeout", str(GUEST_TIMEOUT_S), "--share", str(_share()),
        "--out", str(out), "--", *begin, "env", f"AGENTCG_BPF_FIGURES=/mnt/out/{_FIGURES}", *pytest,
    ]  # fmt: skip
    return subprocess.run(command, cwd=ROOT, check=False).returncode


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
    stages: list[tuple[str, Results, float]] = []

    def stage(name: str, found: Results, began: float) -> None:
        stages.append((name, found, time.monotonic() - began))

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

    summary = results.closing(stages)
    (BUILD / "summary.txt").write_text(f"{summary}\n")
    print(f"\n{summary}")
    is_good = all(found.is_good for _, found, _ in stages) and any(found.passed for _, found, _ in stages)
    return 0 if is_good else 1


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    sys.exit(main())
