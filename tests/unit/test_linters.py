"""What the linters say, as ordinary tests: a tree that does not keep its own rules does not pass."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
SOURCES = (
    "daemon",
    "cgroups",
    "bpf",
    "proto",
    "client",
    "vm",
    "bench",
    "demo",
    "tests",
    "dashboards",
    "setup.py",
)


def run(*command: str, **environment: str) -> None:
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
        timeout=600,
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-8000:]}{done.stderr[-4000:]}"


def present() -> list[str]:
    return [name for name in SOURCES if (ROOT / name).exists()]


def test_ruff_finds_nothing() -> None:
    run(str(BIN / "ruff"), "check", *present())


def test_the_formatter_would_change_nothing() -> None:
    run(str(BIN / "ruff"), "format", "--check", *present())


@pytest.mark.timeout(600)
def test_the_package_is_typed() -> None:
    run(str(BIN / "mypy"), "-p", "agentcgroup")


@pytest.mark.timeout(600)
def test_tests_guest_and_benchmarks_are_typed() -> None:
    run(str(BIN / "mypy"), *(name for name in ("tests", "vm", "bench", "demo") if (ROOT / name).exists()))


def test_the_import_contracts_are_kept() -> None:
    run(str(BIN / "lint-imports"), "--no-cache")
