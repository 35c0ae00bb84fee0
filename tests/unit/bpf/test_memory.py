"""Figures of the memory program as they are told later than they were written."""

from agentcgroup.bpf.memory import AVERAGING_NS, MemoryAccount, growth_of


def account(**figures: int) -> MemoryAccount:
    made = MemoryAccount()
    for name, value in figures.items():
        setattr(made, name, value)
    return made


def test_a_rate_is_halved_after_the_averaging_time_without_a_charge() -> None:
    grown = account(at_ns=1000, rate_bytes_per_s=800, peak_rate_bytes_per_s=900)
    assert growth_of(grown, 1000).rate_bytes_per_s == 800
    assert growth_of(grown, 1000 + AVERAGING_NS).rate_bytes_per_s == 400
    assert growth_of(grown, 1000 + AVERAGING_NS).peak_rate_bytes_per_s == 900


def test_a_stretch_over_the_soft_limit_counts_while_it_lasts() -> None:
    over = account(at_ns=1000, over_soft_ns=50, over_soft_since_ns=900)
    assert (growth_of(over, 1100).over_soft_ns, growth_of(over, 1100).is_over_soft) == (250, True)
    under = account(at_ns=1000, over_soft_ns=50)
    assert (growth_of(under, 1100).over_soft_ns, growth_of(under, 1100).is_over_soft) == (50, False)


def test_a_charge_that_is_newer_than_the_clock_read_counts_as_now() -> None:
    newer = account(at_ns=2000, rate_bytes_per_s=800, over_soft_since_ns=2000)
    assert growth_of(newer, 1990).rate_bytes_per_s == 800
    assert growth_of(newer, 1990).over_soft_ns == 0
