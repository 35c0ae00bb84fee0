"""The spawner and its orders: real programs, real processes."""

import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from bench.spawning import (
    BenchError,
    Method,
    Programs,
    Way,
    build,
    measure_flood,
    measure_latency,
    measure_rate,
    shuffled_order,
)

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    return build(tmp_path_factory.mktemp("bench"))


@pytest.fixture
def cgroup(tmp_path: Path) -> Path:
    (tmp_path / "cgroup.procs").touch()
    return tmp_path


def test_every_way_comes_as_often_as_asked_and_spread_over_the_whole_run() -> None:
    order = shuffled_order([100, 100, 10], seed=7)
    assert Counter(order) == {0: 100, 1: 100, 2: 10}
    for begin in range(0, len(order), 21):
        assert Counter(order[begin : begin + 21]) == {0: 10, 1: 10, 2: 1}
    assert order == shuffled_order([100, 100, 10], seed=7)
    assert order != shuffled_order([100, 100, 10], seed=8)


def test_latencies_are_sorted_by_the_way_they_were_measured(programs: Programs, cgroup: Path) -> None:
    ways = [
        Way("bare", Method.SPAWN, (programs.tiny,)),
        Way("by-shell", Method.SPAWN, ("/bin/sh", "-c", f"exec {programs.tiny}")),
    ]
    durations = measure_latency(programs, ways, [20, 10], 0, cgroup / "plan", cgroup=cgroup)
    assert {name: len(sample) for name, sample in durations.items()} == {"bare": 20, "by-shell": 10}
    assert min(durations["bare"] + durations["by-shell"]) > 0


def test_a_program_that_fails_makes_the_measurement_fail(programs: Programs, cgroup: Path) -> None:
    for command in (("/bin/false",), ("/nonexistent",)):
        with pytest.raises(BenchError, match="ended with wait status"):
            measure_latency(
                programs, [Way("bad", Method.SPAWN, command)], [1], 0, cgroup / "plan", cgroup=cgroup
            )


def test_a_rate_starts_at_every_tick_and_waits_for_all_to_end(programs: Programs, cgroup: Path) -> None:
    load = measure_rate(programs, [programs.tiny], 50, 0.2, cgroup=cgroup)
    assert (load.started, load.ended, load.failures) == (10, 10, 0)
    assert len(load.durations_ns) == 10


def test_a_load_counts_what_failed(programs: Programs, cgroup: Path) -> None:
    load = measure_rate(programs, ["/bin/false"], 50, 0.1, cgroup=cgroup)
    assert load.failures == load.started == 5


def test_a_flood_keeps_so_many_alive_and_no_more(programs: Programs, cgroup: Path) -> None:
    load = measure_flood(programs, ["/bin/sleep", "0.02"], 3, 0.2, cgroup=cgroup)
    assert load.most == 3
    assert load.started == load.ended and load.failures == 0


def test_held_programs_live_until_they_are_let_go(programs: Programs) -> None:
    command = [programs.spawner, "hold", "20", programs.tiny, "hold"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdin is not None and holder.stdout is not None
        assert holder.stdout.readline() == "held\t20\n"
        assert holder.stdout.readline().startswith("ns\t")
        holder.stdin.close()
        assert holder.stdout.read() == "failed\t0\n"
    assert holder.returncode == 0
