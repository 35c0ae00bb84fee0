"""MAX and the small values with behaviour of their own."""

import pytest

from agentcgroup.cgroups.values import MAX, CpuMax, Limit


def test_max_is_greater_than_every_number() -> None:
    number = 2**63
    assert number < MAX
    assert number < MAX
    assert not MAX < 0
    assert MAX >= MAX
    assert MAX <= MAX
    assert not MAX > MAX
    assert not MAX <= 5
    limits: list[Limit] = [MAX, 7, 3]
    assert min(limits) == 3
    assert max(limits) is MAX
    assert sorted(limits) == [3, 7, MAX]


def test_max_is_the_word_max_and_compares_with_numbers_only() -> None:
    assert str(MAX) == "max"
    with pytest.raises(TypeError):
        _ = MAX < "max"


@pytest.mark.parametrize(
    ("cpu_milli", "expected"),
    [(1000, CpuMax(100_000, 100_000)), (1500, CpuMax(150_000, 100_000)), (1, CpuMax(1_000, 100_000))],
)
def test_thousandths_of_a_cpu_become_a_quota_of_at_least_a_millisecond(
    cpu_milli: int, expected: CpuMax
) -> None:
    assert CpuMax.from_cpus(cpu_milli) == expected
