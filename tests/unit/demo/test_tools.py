"""The programs agents run as tools: real ones, run as agents run them."""

import subprocess
import sys
from pathlib import Path

import pytest

from demo.tools import measurements

TOOLS = Path(measurements.__file__).parent


def run(tool: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, TOOLS / tool, *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "measurements.csv"
    measurements.write(path, 2000)
    return path


def test_measurements_are_the_same_every_time(tmp_path: Path, file: Path) -> None:
    measurements.write(tmp_path / "again.csv", 2000)

    assert file.read_bytes() == (tmp_path / "again.csv").read_bytes()
    assert len(file.read_bytes().splitlines()) == 2001


def test_loading_and_streaming_give_the_same_table(file: Path) -> None:
    loaded, streamed = run("sum_up.py", file), run("sum_up.py", file, "--stream")

    assert loaded.stdout == streamed.stdout
    assert len(loaded.stdout.splitlines()) == len(measurements.TOOLS)
    assert sum(int(line.split()[1]) for line in loaded.stdout.splitlines()) == 2000


def test_workers_count_every_row_once(file: Path) -> None:
    assert run("count_rows.py", file, "--workers", "3").stdout == "2000 rows\n"
