"""The ladder of one call: which step follows from what is seen, and that no throttling is without end."""

import dataclasses

import pytest
from hypothesis import given, settings, strategies as st

from agentcgroup.daemon.model import Action, OnExceed, Rung
from agentcgroup.daemon.policy import ladder
from agentcgroup.daemon.policy.ladder import Rules, Seen, Stand, Step, step

MIB = 1 << 20


def rules(on_exceed: OnExceed, reserved: int = 100, most: int | None = 400) -> Rules:
    return Rules(on_exceed, reserved * MIB, most * MIB if most else None, 10_000, 30_000)


def see(now_ms: int, held: int | None, room: int = 0, others: int = 0) -> Seen:
    return Seen(now_ms, held * MIB if held is not None else None, room * MIB, others * MIB)


def actions(done: Step) -> list[Action]:
    return [each.action for each in done.acts]


def test_a_stop_call_has_its_soft_limit_a_little_below_its_maximum() -> None:
    assert rules(OnExceed.STOP).soft_bytes == 375 * MIB
    assert rules(OnExceed.STOP, most=16).soft_bytes == 14 * MIB
    assert rules(OnExceed.STOP, most=1 << 20).soft_bytes == ((1 << 20) - 128) * MIB
    assert rules(OnExceed.STOP, most=7).soft_bytes is None
    assert rules(OnExceed.STOP, most=None).soft_bytes is None


def test_a_stop_call_is_warned_once_and_then_runs_freely_up_to_its_maximum() -> None:
    own = rules(OnExceed.STOP)
    warned = step(own, Stand(), see(0, 374))
    assert actions(warned) == [Action.WARNED] and warned.stand.rung is Rung.WARNED
    assert warned.high_bytes is None and warned.stand.deadline_ms is None
    again = step(own, warned.stand, see(250, 380))
    assert again.acts == () and again.high_bytes is None and again.look_in_ms == ladder.LOOK_MS
    assert step(own, again.stand, see(500, 380)).look_in_ms == ladder.IDLE_LOOK_MS
    calm = step(own, again.stand, see(1500, 300))
    assert calm.stand.rung is Rung.CALM and calm.high_bytes == own.soft_bytes and calm.look_in_ms is None
    assert not any(each.is_news for each in calm.acts)
    # Back at the limit within the cool-down: done, but not said once more.
    assert [each.is_news for each in step(own, calm.stand, see(2000, 375)).acts] == [False]
    assert [each.is_news for each in step(own, calm.stand, see(12_000, 375)).acts] == [True]


@pytest.mark.parametrize("on_exceed", OnExceed)
def test_a_call_that_only_fills_its_cache_is_left_alone(on_exceed: OnExceed) -> None:
    own = rules(on_exceed)
    done = step(own, Stand(), see(0, 50))
    assert done.acts == () and done.look_in_ms is None and done.high_bytes == own.soft_bytes


def test_a_throttled_call_is_released_when_it_gives_memory_back() -> None:
    own = rules(OnExceed.THROTTLE)
    held = step(own, Stand(), see(0, 101))
    assert actions(held) == [Action.THROTTLED] and held.stand.deadline_ms == 10_000
    assert step(own, held.stand, see(250, 95)).acts == (), "between nine and ten tenths nothing changes"
    released = step(own, held.stand, see(500, 80))
    assert actions(released) == [Action.RELEASED] and released.stand.deadline_ms is None
    assert released.high_bytes == own.soft_bytes


def test_a_throttled_call_that_stays_is_killed_at_its_deadline_and_not_before() -> None:
    own = rules(OnExceed.THROTTLE)
    held = step(own, Stand(), see(0, 101))
    almost = step(own, held.stand, see(9_900, 102))
    assert almost.acts == () and almost.look_in_ms == 100
    assert actions(step(own, almost.stand, see(10_000, 102))) == [Action.KILLED]


def test_a_throttled_call_whose_limit_is_raised_goes_on() -> None:
    held = step(rules(OnExceed.THROTTLE), Stand(), see(0, 101))
    assert actions(step(rules(OnExceed.THROTTLE, reserved=200), held.stand, see(300, 101))) == [
        Action.RELEASED
    ]
    raised_to_maximum = rules(OnExceed.THROTTLE, reserved=400)
    done = step(raised_to_maximum, held.stand, see(300, 101))
    assert actions(done) == [Action.RELEASED] and done.high_bytes == raised_to_maximum.warns_bytes


def test_an_extended_call_gets_what_it_grows_by_within_room_and_maximum() -> None:
    own = rules(OnExceed.EXTEND)
    (act,) = step(own, Stand(), see(0, 100, room=1000)).acts
    assert act.action is Action.EXTENDED and act.to_bytes == 125 * MIB
    fast = Stand(held_bytes=10 * MIB, seen_ms=0)
    (act,) = step(own, fast, see(1000, 100, room=1000)).acts
    assert act.to_bytes == 190 * MIB
    (act,) = step(own, fast, see(1000, 100, room=10)).acts
    assert act.to_bytes == 110 * MIB
    (act,) = step(rules(OnExceed.EXTEND, most=101), Stand(), see(0, 100, room=1000)).acts
    assert act.to_bytes == 101 * MIB


def test_without_room_an_extended_call_is_clamped_then_frozen_then_killed() -> None:
    own = rules(OnExceed.EXTEND)
    clamped = step(own, Stand(), see(0, 100, others=300))
    assert actions(clamped) == [Action.CLAMPED]
    frozen = step(own, clamped.stand, see(10_000, 100, others=300))
    assert actions(frozen) == [Action.FROZEN] and frozen.stand.deadline_ms == 40_000
    assert actions(step(own, frozen.stand, see(40_000, 100, others=300))) == [Action.KILLED]


def test_where_nobody_could_give_room_nothing_is_frozen() -> None:
    own = rules(OnExceed.EXTEND)
    clamped = step(own, Stand(), see(0, 100))
    assert actions(step(own, clamped.stand, see(10_000, 100))) == [Action.KILLED]


def test_room_takes_a_call_from_every_rung_back_to_calm() -> None:
    own = rules(OnExceed.EXTEND)
    clamped = step(own, Stand(), see(0, 100, others=300))
    frozen = step(own, clamped.stand, see(10_000, 100, others=300))
    for stand, expected in (
        (clamped.stand, [Action.EXTENDED]),
        (frozen.stand, [Action.EXTENDED, Action.THAWED]),
    ):
        done = step(own, stand, see(11_000, 100, room=50))
        assert actions(done) == expected
        assert done.stand.rung is Rung.CALM and done.stand.deadline_ms is None


def test_a_frozen_call_whose_limit_is_raised_is_thawed() -> None:
    frozen = Stand(Rung.FROZEN, deadline_ms=30_000)
    done = step(rules(OnExceed.EXTEND, reserved=300), frozen, see(0, 100))
    assert actions(done) == [Action.THAWED, Action.RELEASED]


def test_what_the_kernel_measured_goes_before_what_two_looks_tell() -> None:
    own, before = rules(OnExceed.STOP), Stand(held_bytes=0, seen_ms=0)
    measured = dataclasses.replace(see(1000, 374), growth_bytes_per_s=700 * MIB)
    assert step(own, before, measured).stand.growth_bytes_per_s == 700 * MIB
    assert step(own, before, see(1000, 374)).stand.growth_bytes_per_s == 374 * MIB


def test_time_to_limit_is_known_only_of_a_call_that_grows() -> None:
    assert ladder.time_to_limit_ms(100, 50, 200) == 2000
    assert ladder.time_to_limit_ms(300, 50, 200) == 0
    for held, growth, limit in ((None, 1, 1), (1, None, 1), (1, 0, 1), (1, -5, 1), (1, 1, None)):
        assert ladder.time_to_limit_ms(held, growth, limit) is None


looks = st.lists(
    st.tuples(
        st.integers(1, 2000),  # ms since the last look, unless one is due earlier
        st.none() | st.integers(0, 450),
        st.integers(0, 60),
        st.integers(0, 100),
    ),
    min_size=1,
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(on_exceed=st.sampled_from(OnExceed), most=st.sampled_from([100, 101, 400, None]), seen=looks)
def test_whatever_is_seen_a_call_leaves_every_rung_within_its_deadline(
    on_exceed: OnExceed, most: int | None, seen: list[tuple[int, int | None, int, int]]
) -> None:
    own, stand, now_ms, look_in_ms = rules(on_exceed, most=most), Stand(), 0, None
    for elapsed_ms, held, room, others in seen:
        now_ms += min(elapsed_ms, look_in_ms) if look_in_ms is not None else elapsed_ms
        before = stand
        done = step(own, stand, see(now_ms, held, room, others))
        stand, look_in_ms = done.stand, done.look_in_ms
        if Action.KILLED in actions(done):
            assert before.deadline_ms is not None and now_ms >= before.deadline_ms, (
                "never before its deadline"
            )
            return
        held_back = stand.rung in (Rung.THROTTLED, Rung.CLAMPED, Rung.FROZEN)
        assert held_back == (stand.deadline_ms is not None)
        if held_back:
            assert on_exceed is not OnExceed.STOP, "who is to be stopped is never slowed down"
            assert stand.deadline_ms is not None and stand.deadline_ms > now_ms, "no deadline passes unseen"
            assert look_in_ms is not None and 0 < look_in_ms <= stand.deadline_ms - now_ms
        assert look_in_ms is None or look_in_ms >= min(ladder.LOOK_MS, (stand.deadline_ms or 10**9) - now_ms)
        if before.rung is not stand.rung:
            assert done.acts, "no rung is changed without a word about it"
        for act in done.acts:
            if act.to_bytes is not None:
                given_bytes = act.to_bytes - own.reserved_bytes
                assert 0 < given_bytes <= room * MIB, "nothing is promised that is not there"
                assert own.max_bytes is None or act.to_bytes <= own.max_bytes
                own = dataclasses.replace(own, reserved_bytes=act.to_bytes)


def test_a_call_that_goes_up_and_down_is_not_said_to_each_time_but_in_the_end() -> None:
    own, stand, told = rules(OnExceed.THROTTLE), Stand(), []
    for now_ms in range(0, 1500, 250):
        done = step(own, stand, see(now_ms, 101 if now_ms % 500 == 0 else 50))
        stand = done.stand
        told += [each.action for each in done.acts if each.is_news]
    assert told == [Action.THROTTLED, Action.RELEASED]
    held = step(own, stand, see(1500, 101))
    assert not any(each.is_news for each in held.acts)
    later = step(own, held.stand, see(2500, 101))
    assert [(each.action, each.is_news) for each in later.acts] == [(Action.THROTTLED, True)]


def test_being_clamped_is_news_right_after_an_extension() -> None:
    own = rules(OnExceed.EXTEND)
    extended = step(own, Stand(), see(0, 100, room=10))
    clamped = step(rules(OnExceed.EXTEND, reserved=110), extended.stand, see(20, 110))
    assert [(each.action, each.is_news) for each in clamped.acts] == [(Action.CLAMPED, True)]
