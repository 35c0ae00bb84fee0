"""The queue never promises what is not there, lets nobody starve, and lets small calls through."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from hypothesis import example, given, settings, strategies as st

from agentcgroup.daemon.model import CpuClass, Priority, Usage
from agentcgroup.daemon.policy import queue
from agentcgroup.daemon.policy.measured import SETTLE_MS, counted_bytes, given_back_bytes
from agentcgroup.daemon.policy.queue import (
    BYPASSES_MAX,
    EXPRESS_PART,
    YIELDS_MS,
    Level,
    Running,
    Share,
    View,
    Waiter,
    is_overdue,
    plan,
    wait_estimates_ms,
)

MIB = 1 << 20
HOST = "host"
WEB = Share(Priority.NORMAL, entitled_bytes=1000, reserved_bytes=0, calls_free=100)


def waiter(
    name: str,
    memory: int,
    arrived: int = 0,
    *,
    session: str = "web",
    cpu_class: CpuClass = CpuClass.NORMAL,
    passed: int = 0,
    runs_ms: int | None = None,
    waited_ms: int = 0,
) -> Waiter:
    return Waiter(name, session, (session, HOST), memory, cpu_class, arrived, passed, runs_ms, waited_ms)


def view(
    *waiting: Waiter, free: int = 1000, host_free: int | None = None, total: int = 1000, **shares: Share
) -> View:
    sessions = {"web": WEB} | shares
    host = Level(10 * total, free if host_free is None else host_free)
    levels = {name: Level(total, free) for name in sessions} | {HOST: host}
    return View(levels, sessions, 100, waiting)


def granted(found: queue.Plan) -> list[str]:
    return [each.id for each in found.granted]


def standing(found: queue.Plan) -> list[str]:
    return [each.id for each in found.standing]


def test_what_fits_is_granted_in_order_and_the_rest_stays() -> None:
    found = plan(view(waiter("a", 600, 1), waiter("b", 600, 2), waiter("c", 300, 3)))
    assert granted(found) == ["a", "c"]
    assert standing(found) == ["b"]
    assert found.standing[0].passed == 1, "c came later and took room that b is short of"


def test_sessions_go_by_priority_then_by_what_they_hold_of_their_own() -> None:
    low = replace(WEB, priority=Priority.LOW)
    high = replace(WEB, priority=Priority.HIGH, reserved_bytes=900)
    busy = replace(WEB, reserved_bytes=300)
    waiting = [
        waiter(name, 100, number, session=name) for number, name in enumerate(("low", "busy", "web", "high"))
    ]
    found = plan(view(*waiting, host_free=50, low=low, high=high, busy=busy))
    assert standing(found) == ["high", "web", "busy", "low"]


def test_a_grant_moves_its_session_behind_the_others() -> None:
    waiting = [waiter("a1", 100, 1), waiter("a2", 100, 2), waiter("b", 100, 3, session="other")]
    found = plan(view(*waiting, host_free=200, other=WEB))
    assert granted(found) == ["a1", "b"]


def test_inside_a_session_interactive_goes_first_and_batch_last() -> None:
    classes = (CpuClass.BATCH, CpuClass.NORMAL, CpuClass.INTERACTIVE)
    waiting = [waiter(each, 100, number, cpu_class=each) for number, each in enumerate(classes)]
    assert granted(plan(view(*waiting))) == ["interactive", "normal", "batch"]


def test_a_call_that_was_passed_often_enough_keeps_its_room() -> None:
    big = waiter("big", 900, 1, passed=BYPASSES_MAX)
    found = plan(view(big, waiter("later", 200, 2), free=500))
    assert granted(found) == []
    assert standing(found) == ["big", "later"]


def test_an_interactive_call_passes_even_an_overdue_one_when_that_does_not_keep_it_out() -> None:
    small = waiter("small", 60, 2, cpu_class=CpuClass.INTERACTIVE)
    for need, passes in ((900, True), (990, False)):
        found = plan(view(waiter("big", need, 1, passed=BYPASSES_MAX), small, free=500))
        assert (granted(found) == ["small"]) is passes


def test_the_express_lane_is_bounded() -> None:
    small = [waiter(f"s{each}", 50, 2 + each, cpu_class=CpuClass.INTERACTIVE) for each in range(10)]
    found = plan(view(waiter("big", 800, 1, passed=BYPASSES_MAX), *small, free=700))
    assert len(found.granted) * 50 <= 1000 // EXPRESS_PART


def test_an_overdue_call_of_one_session_does_not_stop_another_that_takes_nothing_from_it() -> None:
    big = waiter("big", 900, 1, passed=BYPASSES_MAX)
    found = plan(view(big, waiter("other", 400, 2, session="other"), free=500, host_free=2000, other=WEB))
    assert granted(found) == ["other"]


HIGH = replace(WEB, priority=Priority.HIGH)


def test_nobody_of_lower_priority_passes_into_room_that_a_better_call_waits_for() -> None:
    big = waiter("big", 900, 1, session="high")
    found = plan(view(big, waiter("small", 100, 2), host_free=800, high=HIGH))
    assert granted(found) == []
    assert standing(found) == ["big", "small"]
    # One of its own priority passes it as before, and so does one that has waited long enough for it.
    assert granted(plan(view(big, waiter("small", 100, 2, session="high"), host_free=800, high=HIGH))) == [
        "small"
    ]
    patient = waiter("small", 100, 2, waited_ms=YIELDS_MS)
    assert granted(plan(view(big, patient, host_free=800, high=HIGH))) == ["small"]


def test_a_better_call_that_waits_for_its_own_session_is_in_nobodys_way() -> None:
    full = replace(HIGH, reserved_bytes=900)
    levels = {"high": Level(1000, 100), "web": Level(1000, 1000), HOST: Level(10_000, 800)}
    waiting = (waiter("big", 300, 1, session="high"), waiter("small", 600, 2))
    assert granted(plan(View(levels, {"web": WEB, "high": full}, 100, waiting))) == ["small"]


def test_an_overdue_call_of_lower_priority_goes_before_a_better_one() -> None:
    big = waiter("big", 900, 2, session="high")
    overdue = waiter("overdue", 700, 1, passed=BYPASSES_MAX)
    assert granted(plan(view(big, overdue, host_free=800, high=HIGH))) == ["overdue"]


def test_calls_of_a_frozen_session_keep_their_place_and_nobody_waits_for_them() -> None:
    frozen = replace(WEB, is_open=False)
    overdue = waiter("frozen", 100, 1, session="frozen", passed=BYPASSES_MAX)
    found = plan(view(overdue, waiter("a", 900, 2), host_free=900, frozen=frozen))
    assert granted(found) == ["a"]
    assert standing(found) == ["frozen"]


def test_what_is_kept_for_overdue_calls_that_came_later_passes_those_before_them() -> None:
    """Two of a busy session are overdue; the first of them fits, and what the other keeps of the host keeps `early` out."""
    early = waiter("early", 10, 1, session="low", cpu_class=CpuClass.NORMAL, waited_ms=YIELDS_MS)
    late = [waiter(name, 700, number, passed=BYPASSES_MAX) for number, name in ((2, "first"), (3, "second"))]
    low = replace(WEB, priority=Priority.LOW)
    found = plan(view(early, *late, host_free=1200, low=low))
    assert granted(found) == ["first"]
    assert {each.id: each.passed for each in found.standing}["early"] == 1


def test_the_number_of_calls_is_a_bound_like_memory() -> None:
    assert granted(plan(view(waiter("a", 1, 1), waiter("b", 1, 2), web=replace(WEB, calls_free=1)))) == ["a"]
    none = replace(view(waiter("a", 1, 1)), calls_free=0)
    assert granted(plan(none)) == []


def test_the_wait_is_estimated_from_what_is_expected_to_end() -> None:
    running = [
        Running("web", ("web", HOST), 400, CpuClass.NORMAL, 5000),
        Running("web", ("web", HOST), 300, CpuClass.NORMAL, 2000),
    ]
    waiting = [
        waiter("a", 300, 1, runs_ms=1000),
        waiter("b", 300, 2),
        waiter("c", 600, 3),
        waiter("d", 900, 4),
    ]
    found = wait_estimates_ms(view(*waiting, free=0), running)
    # b holds its 300 for nobody knows how long, so nobody knows about c and d.
    assert found == {"a": 2000, "b": 3000}


# ---- any history ---------------------------------------------------------------------------------------------------

TOTAL = 1000
CAPACITY = 2000
NAMES = ("a", "b", "c")

arrivals = st.tuples(
    st.sampled_from(NAMES),
    st.one_of(st.integers(1, 120), st.integers(1, TOTAL)),
    st.sampled_from(list(CpuClass)),
    st.integers(1, 6),
)
rounds = st.lists(st.tuples(st.lists(arrivals, max_size=5), st.booleans()), max_size=40)


@dataclass
class World:
    """Three sessions of half the host each; calls run for some rounds and end."""

    priorities: Sequence[Priority]
    waiting: list[Waiter] = field(default_factory=list)
    running: list[tuple[Waiter, int]] = field(default_factory=list)
    runs: dict[str, int] = field(default_factory=dict)
    arrived: int = 0

    def view(self) -> View:
        def level(key: str, total: int) -> Level:
            here = [each for each, _ in self.running if key in each.levels]
            express = [each for each in here if each.cpu_class is CpuClass.INTERACTIVE]
            return Level(
                total,
                total - sum(each.memory_bytes for each in here),
                sum(each.memory_bytes for each in express),
            )

        levels = {name: level(name, TOTAL) for name in NAMES} | {HOST: level(HOST, CAPACITY)}
        sessions = {
            name: Share(priority, TOTAL, TOTAL - levels[name].free_bytes, 1000)
            for name, priority in zip(NAMES, self.priorities, strict=True)
        }
        return View(levels, sessions, 1000, self.waiting)

    def arrive(self, session: str, memory: int, cpu_class: CpuClass, runs: int) -> None:
        self.arrived += 1
        new = waiter(f"c{self.arrived}", memory, self.arrived, session=session, cpu_class=cpu_class)
        self.waiting.append(new)
        self.runs[new.id] = runs

    def grow(self, number: int, more: int) -> tuple[str, ...]:
        """One that runs takes more, as a ladder extends, of what is free and not kept for others; at these levels."""
        if not self.running:
            return ()
        each, left = self.running[number % len(self.running)]
        view = self.view()
        claimed = queue.claims(view)
        if any(view.levels[key].free_bytes - claimed[key] < more for key in each.levels):
            return ()
        larger = replace(each, memory_bytes=each.memory_bytes + more)
        self.running[number % len(self.running)] = larger, left
        passed = {other.id for other in queue.passed_by(self.view(), each.levels)}
        self.waiting = [replace(other, passed=other.passed + (other.id in passed)) for other in self.waiting]
        return each.levels

    def tick(self) -> queue.Plan:
        self.running = [(each, left - 1) for each, left in self.running if left > 1]
        found = plan(self.view())
        self.waiting = [replace(each, waited_ms=each.waited_ms + 1000) for each in found.standing]
        self.running += [(each, self.runs[each.id]) for each in found.granted]
        return found


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(list(Priority)), min_size=3, max_size=3), rounds)
def test_whatever_comes_no_level_is_overdrawn_and_everybody_gets_in(
    priorities: list[Priority], history: list[tuple[list[tuple[str, int, CpuClass, int]], bool]]
) -> None:
    world = World(priorities)
    for arriving, cancels in history:
        for new in arriving:
            world.arrive(*new)
        if cancels and world.waiting:
            world.waiting.pop(0)
        asked = {each.id for each in world.waiting}
        overdue = {each.id for each in world.waiting if is_overdue(each)}
        found = world.tick()
        assert {each.id for each in (*found.granted, *found.standing)} == asked
        after = world.view()
        assert all(level.free_bytes >= 0 for level in after.levels.values())
        if all(each.cpu_class is not CpuClass.INTERACTIVE for each in found.granted):
            for each in found.standing:
                for later in found.granted:
                    if each.id in overdue and each.arrived < later.arrived:
                        for key in set(each.levels) & set(later.levels):
                            # One that arrived before both may have become overdue by `later`, and gone first.
                            earlier_bytes = sum(
                                other.memory_bytes
                                for other in found.granted
                                if other.arrived < each.arrived and key in other.levels
                            )
                            assert after.levels[key].free_bytes + earlier_bytes >= each.memory_bytes
        if not overdue | {each.id for each in found.standing if is_overdue(each)}:
            rank = dict(zip(NAMES, map(list(Priority).index, priorities), strict=True))
            for better in found.standing:
                # Short of nothing but what all sessions share: nobody below it was let past.
                if after.levels[better.session].free_bytes >= better.memory_bytes:
                    assert not [
                        each
                        for each in found.granted
                        if rank[each.session] < rank[better.session]
                        and each.cpu_class is not CpuClass.INTERACTIVE
                        and each.waited_ms < YIELDS_MS
                    ]
    left = len(world.waiting)
    for _ in range(7 * left + 7):
        world.tick()
    assert world.waiting == []


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, TOTAL),
    st.sampled_from(list(CpuClass)),
    st.lists(arrivals, min_size=1, max_size=12),
)
# Once kept out for ever by what was kept for calls of "b" that came later and waited for their own session.
@example(
    1,
    CpuClass.INTERACTIVE,
    [
        ("b", 781, CpuClass.INTERACTIVE, 1),
        *[("a", 1, CpuClass.INTERACTIVE, 1)] * 6,
        ("b", 1, CpuClass.INTERACTIVE, 1),
        ("b", 716, CpuClass.INTERACTIVE, 1),
        ("c", 503, CpuClass.INTERACTIVE, 1),
    ],
)
def test_no_stream_of_later_calls_keeps_one_out(
    need: int, cpu_class: CpuClass, stream: list[tuple[str, int, CpuClass, int]]
) -> None:
    """The adversary: higher priority, at any moment as many calls as it likes, for ever the same."""
    world = World((Priority.LOW, Priority.HIGH, Priority.HIGH))
    world.arrive("a", need, cpu_class, 1)
    for _ in range(100):
        for new in stream:
            world.arrive(*new)
        if "c1" in {each.id for each in world.tick().granted}:
            return
        # The queue is bounded, as the daemon's is.
        world.waiting = sorted(world.waiting, key=lambda each: each.arrived)[:40]
    raise AssertionError("never granted")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(arrivals, min_size=1, max_size=8),
    st.lists(st.tuples(st.integers(0, 9), st.integers(1, 60)), min_size=1, max_size=60),
)
def test_whoever_grows_passes_each_that_waits_a_bounded_number_of_times(
    stream: list[tuple[str, int, CpuClass, int]], growths: list[tuple[int, int]]
) -> None:
    """Calls that never end and take more whenever they may: what is kept for others, nobody grows into."""
    world = World((Priority.LOW, Priority.HIGH, Priority.HIGH))
    for name, memory, cpu_class, _ in stream:
        world.arrive(name, memory // 4 + 1, cpu_class, 10**6)
    world.tick()
    for name in NAMES:
        world.arrive(name, TOTAL, CpuClass.BATCH, 1)
    world.tick()
    times: Counter[str] = Counter()
    for number, more in growths:
        grown = world.grow(number, more)
        after = world.view()
        times.update(
            each.id
            for each in world.waiting
            if any(after.levels[key].free_bytes < each.memory_bytes for key in set(each.levels) & set(grown))
        )
    assert all(count <= BYPASSES_MAX for count in times.values()), times


@settings(max_examples=100, deadline=None)
@given(rounds, st.integers(1, TOTAL // EXPRESS_PART), st.sampled_from(NAMES))
def test_a_small_interactive_call_goes_at_once_when_there_is_that_much_room(
    history: list[tuple[list[tuple[str, int, CpuClass, int]], bool]], need: int, session: str
) -> None:
    """Whatever waits before it, and however long that has waited."""
    world = World((Priority.HIGH, Priority.NORMAL, Priority.LOW))
    for arriving, _ in history:
        for name, memory, _, runs in arriving:
            world.arrive(name, memory, CpuClass.BATCH, runs)
        world.tick()
        before = world.view()
        largest = max((each.memory_bytes for each in world.waiting), default=0)
        world.arrive(session, need, CpuClass.INTERACTIVE, 1)
        small = world.waiting[-1]
        fits = all(before.levels[key].free_bytes >= need for key in small.levels)
        granted_now = small.id in granted(plan(world.view()))
        if fits and need <= TOTAL - largest:
            assert granted_now
        assert fits or not granted_now
        world.waiting.remove(small)


# ---- measured ------------------------------------------------------------------------------------------------------


def test_a_call_that_declared_4_gb_and_uses_200_mb_gives_back() -> None:
    usage = Usage(memory_current_bytes=200 * MIB, memory_peak_bytes=220 * MIB)
    assert given_back_bytes(4096 * MIB, usage, SETTLE_MS) == (4096 - 264) * MIB
    assert given_back_bytes(4096 * MIB, usage, SETTLE_MS - 1) == 0
    assert given_back_bytes(4096 * MIB, usage, SETTLE_MS, expected_ms=10 * SETTLE_MS) == 0
    assert given_back_bytes(4096 * MIB, Usage(), 10 * SETTLE_MS) == 0, "nothing is measured"
    peaked = replace(usage, memory_peak_bytes=4000 * MIB)
    assert given_back_bytes(4096 * MIB, peaked, SETTLE_MS) == 96 * MIB


@given(st.integers(0, 1000), st.integers(0, 1000), st.integers(0, 1000), st.floats(1, 4))
def test_what_fits_beside_the_counted_keeps_both_sums(
    declared: int, given_back: int, need: int, factor: float
) -> None:
    given_back = min(given_back, declared)
    counted = counted_bytes(declared, given_back, 1000, factor)
    assert 0 <= declared - given_back <= counted <= declared
    if counted + need <= 1000:
        assert declared - given_back + need <= 1000
        assert declared + need <= factor * 1000
