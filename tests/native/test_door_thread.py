"""The door's thread by itself: what it serves, what it hands on, and that nothing upsets it."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from agentcgroup.daemon.door.native import LIBRARY, NativeDoor, load, open_door
from tests.running import wait_until

SOURCES = LIBRARY.parent
# sched(7); not in the os module of Python 3.11.
_SCHED_DEADLINE = 6
FUZZ = Path(__file__).with_name("door_fuzz.py")


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("door")
    subprocess.run(["make", "-s", "-C", str(SOURCES), "sanitized", f"OUT={directory}"], check=True)
    return directory / "libdoor.so"


@pytest.mark.parametrize("seed", range(4))
def test_nothing_that_arrives_upsets_it(sanitized: Path, seed: int) -> None:
    runtime = subprocess.run(
        ["cc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    # Leaks are looked for by the descriptor count: Python itself never frees everything.
    environment = os.environ | {"LD_PRELOAD": runtime, "ASAN_OPTIONS": "detect_leaks=0"}
    ran = subprocess.run(
        [sys.executable, str(FUZZ), str(sanitized), str(seed)],
        env=environment | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-4000:]


def test_without_the_library_python_serves_everybody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def opened() -> NativeDoor | None:
        return open_door(lambda: load(tmp_path / "libdoor.so"))

    assert asyncio.run(opened()) is None
    assert "every launch waits for Python" in caplog.text


def test_a_library_of_another_release_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = tmp_path / "other.c"
    source.write_text("int door_open(int events) { return events; }\n")
    other = tmp_path / "libdoor.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(other), str(source)], check=True)

    async def opened() -> NativeDoor | None:
        return open_door(lambda: load(other))

    assert asyncio.run(opened()) is None
    assert "has no door_close: build it again (make door)" in caplog.text


def policies() -> set[int]:
    """How threads of this process that are called "door" are scheduled."""
    return {
        os.sched_getscheduler(int(task.name))
        for task in Path("/proc/self/task").iterdir()
        if (task / "comm").read_text() == "door\n"
    }


def test_it_goes_first_and_the_kernel_bounds_it() -> None:
    async def opened() -> None:
        door = NativeDoor(load())
        # The thread begins to run in its own time.
        wait_until(lambda: policies() == {_SCHED_DEADLINE}, what="deadline scheduling")
        door.close()

    asyncio.run(opened())
