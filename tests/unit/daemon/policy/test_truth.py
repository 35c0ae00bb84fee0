"""What a tool is told to size itself by."""

from agentcgroup.daemon.model import CallLimits
from agentcgroup.daemon.policy import truth
from agentcgroup.daemon.policy.truth import Surroundings

MIB = 1 << 20
FREE = Surroundings(cpu_milli=(None,), host_cpu_milli=8000, memory_bytes=(None,))


def test_where_nothing_is_capped_nothing_is_set() -> None:
    assert truth.defaults(CallLimits(memory_bytes=64 * MIB), FREE) == ()
    assert truth.cpu_milli(CallLimits(memory_bytes=1), FREE) == 8000
    assert truth.memory_max_bytes(CallLimits(memory_bytes=1), FREE) is None


def test_workers_are_whole_and_at_least_one() -> None:
    for milli, workers in ((10, "1"), (1000, "1"), (1500, "2"), (7999, "8")):
        told = dict(truth.defaults(CallLimits(memory_bytes=1, cpu_milli=milli), FREE))
        assert told["OMP_NUM_THREADS"] == told["PYTEST_XDIST_AUTO_NUM_WORKERS"] == workers


def test_the_tightest_level_tells() -> None:
    around = Surroundings(cpu_milli=(2000, None), host_cpu_milli=8000, memory_bytes=(500 * MIB, None))
    limits = CallLimits(memory_bytes=1, memory_max_bytes=800 * MIB, cpu_milli=4000)
    assert truth.cpu_milli(limits, around) == 2000
    assert truth.memory_max_bytes(limits, around) == 500 * MIB
    assert dict(truth.defaults(limits, around))["GOMEMLIMIT"] == f"{450 * MIB}B"
