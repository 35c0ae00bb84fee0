"""Who is warned of a limit that several calls share."""

from hypothesis import given, strategies as st

from agentcgroup.daemon.policy.shared_limits import Addressee, Holder, Told, addressees

MIB = 1 << 20


def holder(call_id: str, held: int, growth: int | None = 0, own_left: int | None = None) -> Holder:
    return Holder(
        call_id,
        held * MIB,
        growth * MIB if growth is not None else None,
        own_left * MIB if own_left is not None else None,
    )


def told(*holders: Holder, left: int = 30, slack: int = 8) -> list[str]:
    return [each.holder.call_id for each in addressees(holders, left * MIB, slack * MIB)]


def test_who_grows_is_told_and_who_holds_the_most_and_nobody_else() -> None:
    assert told(holder("rests", 300), holder("slow", 20, 1), holder("fast", 50, 40), holder("small", 5)) == [
        "fast",
        "rests",
    ]
    assert told(holder("a", 100, 10), holder("b", 90, 9)) == ["a", "b"]


def test_while_nobody_knows_who_grows_the_largest_is_told() -> None:
    (one,) = addressees((holder("a", 100, None), holder("b", 90, None)), MIB, 0)
    assert one.holder.call_id == "a" and one.is_likely
    assert addressees((), MIB, 0) == ()


def test_who_is_ended_first_by_another_rule_than_the_kernels_is_told_instead_of_the_largest() -> None:
    found = addressees(
        (holder("large", 100), holder("low", 50), holder("fast", 10, 5)), MIB, likely_id="low"
    )
    assert [(each.holder.call_id, each.is_likely) for each in found] == [("fast", False), ("low", True)]


def test_who_was_warned_of_a_limit_of_its_own_that_is_as_near_is_not_told_twice() -> None:
    alone = holder("a", 480, 20, own_left=32)
    assert told(alone) == []
    assert told(holder("a", 240, 20, own_left=60), holder("b", 240, 20)) == ["a", "b"]


def test_each_is_told_once_until_there_is_room_again_and_not_within_ten_seconds() -> None:
    memory = Told()
    one, other = (Addressee(holder(name, 10), is_likely=False) for name in "ab")
    assert memory.news([one], 0) == [one]
    assert memory.news([one, other], 60_000) == [other]
    memory.over(61_000)
    assert memory.news([one, other], 62_000) == [one]
    memory.over(80_000)
    assert memory.news([one, other], 80_000) == [one, other]


@given(
    st.lists(st.tuples(st.integers(0, 1000), st.none() | st.integers(-100, 1000)), min_size=1, max_size=20)
)
def test_somebody_is_always_told_and_the_fastest_grower_among_them(
    calls: list[tuple[int, int | None]],
) -> None:
    holders = [holder(str(index), held, growth) for index, (held, growth) in enumerate(calls)]
    found = addressees(holders, MIB, 0)
    assert sum(each.is_likely for each in found) == 1
    fastest = max(holders, key=lambda each: each.growth_bytes_per_s or 0)
    if (fastest.growth_bytes_per_s or 0) > 0:
        assert found[0].holder.growth_bytes_per_s == fastest.growth_bytes_per_s
