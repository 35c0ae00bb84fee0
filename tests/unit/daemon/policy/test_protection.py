"""Protection between sessions: who is held back, in which order, and that somebody always gets on."""

from dataclasses import dataclass, replace

from hypothesis import example, given, settings, strategies as st

from agentcgroup.daemon.model import Priority
from agentcgroup.daemon.policy.protection import Plan, decide
from agentcgroup.daemon.policy.room import (
    RANK,
    CallView,
    Hold,
    Rules,
    Rung,
    SessionView,
    View,
    promised_bytes,
    rank,
)
from agentcgroup.proto.words import Action

MIB = 1 << 20
CAPACITY = 1100 * MIB
RULES = Rules()
# For whole lives, which would take long otherwise.
BRISK = Rules(horizon_ms=400, settle_ms=200, slow_limit_ms=1_000, freeze_limit_ms=4_000)
MS = 1_000_000
FAST = 400 * MIB


def call(
    session: str,
    priority: Priority = Priority.LOW,
    *,
    usage: int = 300,
    promised: int = 256,
    growth: int = 0,
    age: int = 0,
    hold: Hold | None = None,
) -> CallView:
    return CallView(
        f"c-{session}", session, priority, -age, usage * MIB, promised * MIB, growth * MIB, hold
    )  # fmt: skip


def view(*calls: CallView, room: int | None = None, now_ms: int = 0, stalled: tuple[str, ...] = ()) -> View:
    left = CAPACITY - sum(each.usage_bytes for each in calls) if room is None else room * MIB
    sessions = {
        each.session: SessionView(each.session, each.priority, 0, each.session in stalled) for each in calls
    }
    return View(now_ms * MS, CAPACITY, left, tuple(sessions.values()), calls)


def done(plan: Plan) -> list[tuple[str, Action]]:
    return [(step.call.session, step.action) for step in plan.steps]


def hold(
    rung: Rung, *, settled_ms: int = 0, deadline_ms: int = 10_000, growth: int = 0, turns: int = 0
) -> Hold:
    return Hold(rung, settled_ms * MS, deadline_ms * MS, growth * MIB, turns)


HIGH = call("high", Priority.HIGH, usage=300, promised=430)


def test_nothing_is_done_while_growth_fits() -> None:
    plan = decide(view(HIGH, call("low", growth=400, usage=100)), RULES)
    assert not plan.steps and not plan.is_calm


def test_calm_when_nobody_grows() -> None:
    assert decide(view(HIGH, call("low")), RULES).is_calm


def test_allowances_keep_the_promise_of_the_high_session() -> None:
    low1, low2 = call("low1"), call("low2")
    seen = view(HIGH, low1, low2)
    given = dict(decide(seen, RULES).allowances)
    assert given["high"] >= 130 * MIB
    assert sum(given.values()) <= seen.room_bytes - RULES.margin_bytes(CAPACITY) // 4
    assert given["low1"] == given["low2"]


def test_the_free_rest_goes_by_priority() -> None:
    calls = [call(priority.value, priority, usage=100, promised=100) for priority in Priority]
    given = dict(decide(view(*calls, room=442), RULES).allowances)
    assert {name: size // MIB for name, size in given.items()} == {"high": 320, "normal": 80, "low": 20}


def test_the_best_session_is_not_slowed_for_the_margin() -> None:
    growing = replace(HIGH, usage_bytes=420 * MIB, growth_bytes_per_s=FAST)
    frozen = call("low", hold=hold(Rung.FROZEN))
    given = dict(decide(view(growing, frozen, room=20), RULES).allowances)
    assert given["high"] == 10 * MIB, "what it was promised, and no more"
    given = dict(decide(view(growing, frozen, room=12), RULES).allowances)
    assert 6 * MIB < given["high"] < 7 * MIB, "the last quarter is nobody's"


def test_the_fastest_grower_of_the_lowest_priority_is_slowed_first() -> None:
    normal = call("normal", Priority.NORMAL, usage=200, growth=500)
    calls = (HIGH, normal, call("low1", growth=100), call("low2", growth=300, usage=250))
    plan = decide(view(*calls, room=200), RULES)
    assert done(plan)[0] == ("low2", Action.SLOWED)
    reason = plan.steps[0].reason
    assert "high" not in reason.replace("higher priority", "") and "low1" not in reason


def test_slowed_and_still_growing_is_frozen_and_bounded() -> None:
    slowed = call("low", growth=300, hold=hold(Rung.SLOWED))
    (step,) = decide(view(HIGH, slowed, room=160, now_ms=100), RULES).steps
    assert step.action is Action.FROZEN and step.hold is not None
    assert step.hold.deadline_at_ns == (100 + RULES.freeze_limit_ms) * MS


def test_slowed_gets_its_time_to_slow_down() -> None:
    slowed = call("low", growth=300, hold=hold(Rung.SLOWED, settled_ms=150))
    assert not decide(view(HIGH, slowed, room=160, now_ms=100), RULES).steps


def test_in_the_margin_there_is_no_time_to_slow_down() -> None:
    plan = decide(view(HIGH, call("low", growth=300), room=20), RULES)
    assert done(plan) == [("low", Action.FROZEN)]


def test_a_call_that_does_not_grow_is_left_alone() -> None:
    growing = replace(HIGH, growth_bytes_per_s=2 * FAST)
    assert not decide(view(growing, call("low"), room=40), RULES).steps


def test_killed_only_when_all_are_held_and_the_margin_goes() -> None:
    growing = replace(HIGH, growth_bytes_per_s=2 * FAST)
    frozen = hold(Rung.FROZEN)
    low1, low2 = call("low1", usage=300, hold=frozen), call("low2", usage=350, hold=frozen)
    normal = call("normal", Priority.NORMAL, usage=500, hold=frozen)
    assert not decide(view(growing, low1, low2, normal, room=30, now_ms=500), RULES).steps
    plan = decide(view(growing, low1, low2, normal, room=5, now_ms=500), RULES)
    assert done(plan) == [("low2", Action.KILLED)]


def test_of_equals_nobody_is_killed_who_keeps_to_its_promise() -> None:
    best = call("low1", usage=500, promised=256, growth=500, age=9)
    kept = call("low2", usage=200, promised=256)
    plan = decide(view(best, kept, room=5, now_ms=500), RULES)
    assert done(plan) == [("low1", Action.FROZEN)], "the best waits for it"
    assert not decide(view(replace(best, promised_bytes=900 * MIB), kept, room=5, now_ms=500), RULES).steps


def test_stall_alone_holds_nobody_back() -> None:
    assert not decide(view(HIGH, call("low"), stalled=("high",)), RULES).steps


def test_stall_with_growth_below_slows_one_and_waits() -> None:
    calls = (HIGH, call("low1", growth=60, usage=50), call("low2", growth=90, usage=50))
    plan = decide(view(*calls, stalled=("high",)), RULES)
    assert done(plan) == [("low2", Action.SLOWED)]
    held = plan.steps[0].hold
    assert held is not None and held.settled_at_ns == RULES.stall_settle_ms * MS
    calls = (HIGH, calls[1], replace(calls[2], hold=held))
    assert not decide(view(*calls, now_ms=500, stalled=("high",)), RULES).steps


def test_stall_of_a_low_session_holds_back_nobody_above() -> None:
    growing = replace(HIGH, growth_bytes_per_s=FAST)
    assert not decide(view(growing, call("low", usage=50), stalled=("low",)), RULES).steps


def test_released_with_twice_the_room_and_the_best_first() -> None:
    frozen = hold(Rung.FROZEN, settled_ms=100)
    old, young = call("old", usage=100, age=9, hold=frozen), call("young", usage=100, age=1, hold=frozen)
    top = call("high", Priority.HIGH, usage=300, promised=300)
    step = RULES.step_bytes(CAPACITY) // MIB + 1
    margin = RULES.margin_bytes(CAPACITY) // MIB + 1
    promises = 2 * 156
    assert not decide(view(top, old, young, room=margin + step, now_ms=99), RULES).steps
    plan = decide(view(top, old, young, room=margin + promises + 2 * step, now_ms=100), RULES)
    assert done(plan) == [("old", Action.RELEASED)], "one a round"


def test_a_slowed_call_that_has_stopped_asking_is_released_at_its_deadline() -> None:
    slowed = call("low", usage=400, hold=hold(Rung.SLOWED, deadline_ms=100, growth=500))
    assert done(decide(view(HIGH, slowed, room=100, now_ms=100), RULES)) == [("low", Action.RELEASED)]
    plan = decide(view(HIGH, slowed, room=100, now_ms=100, stalled=("low",)), RULES)
    assert done(plan) == [("low", Action.FROZEN)], "it waits for memory"


def test_a_freeze_that_runs_out_gives_one_turn_and_then_ends_the_call() -> None:
    frozen = call("low", usage=400, hold=hold(Rung.FROZEN, deadline_ms=100, growth=500))
    plan = decide(view(HIGH, frozen, room=100, now_ms=100), RULES)
    assert done(plan) == [("low", Action.SLOWED)]
    turned = plan.steps[0].hold
    assert turned is not None and turned.turns == 1
    again = replace(frozen, hold=replace(turned, rung=Rung.FROZEN))
    late = turned.deadline_at_ns // MS
    assert done(decide(view(HIGH, again, room=100, now_ms=late), RULES)) == [("low", Action.KILLED)]


def test_more_is_kept_for_what_declared_nothing_and_outgrew_the_default() -> None:
    default = 256 * MIB
    assert promised_bytes(None, default, 300 * MIB, Priority.HIGH) == 464 * MIB
    assert promised_bytes(None, default, 100 * MIB, Priority.HIGH) == default
    assert promised_bytes(default, default, 300 * MIB, Priority.HIGH) == default
    assert promised_bytes(None, default, 300 * MIB, Priority.NORMAL) == default


# ---- properties


@st.composite
def views(draw: st.DrawFn) -> View:
    calls: list[CallView] = []
    sessions: list[SessionView] = []
    now_ns = draw(st.integers(0, 60_000)) * MS
    times = st.integers(-40_000, 40_000).map(lambda ms: now_ns + ms * MS)
    for index in range(draw(st.integers(0, 5))):
        priority = draw(st.sampled_from(Priority))
        sessions.append(
            SessionView(f"s{index}", priority, draw(st.integers(0, 200)) * MIB, draw(st.booleans()))
        )
        for number in range(draw(st.integers(0, 3))):
            held = draw(
                st.none()
                | st.builds(
                    Hold, st.sampled_from(Rung), times, times, st.integers(0, 2000 * MIB), st.integers(0, 1)
                )
            )
            calls.append(
                CallView(
                    f"c{index}-{number}", f"s{index}", priority, draw(st.integers(0, 9)),
                    draw(st.integers(0, 800)) * MIB, draw(st.integers(0, 500)) * MIB,
                    draw(st.integers(0, 2000)) * MIB, held,
                )
            )  # fmt: skip
    return View(now_ns, CAPACITY, draw(st.integers(-200, 1100)) * MIB, tuple(sessions), tuple(calls))


@given(views())
@settings(max_examples=200)
def test_any_view_gets_a_plan_that_keeps_its_word(seen: View) -> None:
    plan = decide(seen, RULES)
    assert plan == decide(seen, RULES)
    after = {each.id: each.hold for each in seen.calls}
    gone = set()
    for step in plan.steps:
        after[step.call.id] = step.hold
        if step.action is Action.KILLED:
            gone.add(step.call.id)
    # Somebody runs.
    left = [after[each.id] for each in seen.calls if each.id not in gone]
    assert not left or any(held is None or held.rung is Rung.SLOWED for held in left)
    # Every hold has an end, later than now, and nobody is dealt with twice.
    for step in plan.steps:
        assert step.reason and (step.hold is None or step.hold.deadline_at_ns > seen.now_ns)
    assert len({step.call.id for step in plan.steps}) == len(plan.steps)
    # No hold outlives its deadline without something being done.
    for each in seen.calls:
        if each.hold is not None and each.hold.deadline_at_ns <= seen.now_ns:
            assert after[each.id] != each.hold
    # What may be taken until the next look is there.
    room = max(0, seen.room_bytes - RULES.margin_bytes(CAPACITY) // 4)
    assert sum(allowance for _, allowance in plan.allowances) <= room
    assert all(allowance >= 0 for _, allowance in plan.allowances)


@given(views())
@settings(max_examples=150)
def test_nobody_is_frozen_while_one_of_lower_priority_grows_freely(seen: View) -> None:
    calm = replace(seen, sessions=tuple(replace(each, is_stalled=False) for each in seen.sessions))
    least = RULES.step_bytes(CAPACITY) * 1000 // RULES.horizon_ms
    plan = decide(calm, RULES)
    touched = {step.call.id for step in plan.steps}
    expired = {each.id for each in calm.calls if each.hold and each.hold.deadline_at_ns <= calm.now_ns}
    best = min(calm.calls, key=rank, default=None)
    for step in plan.steps:
        if step.action not in (Action.SLOWED, Action.FROZEN) or step.call.id in expired:
            continue
        for other in calm.calls:
            free = other.hold is None and other.id not in touched and other is not best
            if free and other.growth_bytes_per_s > 2 * least:
                assert RANK[other.priority] <= RANK[step.call.priority]


@dataclass
class _Job:
    view: CallView
    wanted: int
    rate: int
    done: bool = False


@st.composite
def jobs(draw: st.DrawFn) -> list[_Job]:
    found = []
    for index in range(draw(st.integers(1, 6))):
        priority = draw(st.sampled_from(Priority))
        each = CallView(f"c{index}", f"s{index}", priority, index, 0, draw(st.integers(0, 400)) * MIB, 0)
        found.append(_Job(each, draw(st.integers(1, 1000)) * MIB, draw(st.integers(20, 900)) * MIB))
    return found


def _job(number: int, priority: Priority, promised: int, wanted: int, rate: int) -> _Job:
    view = CallView(f"c{number}", f"s{number}", priority, number, 0, promised * MIB, 0)
    return _Job(view, wanted * MIB, rate * MIB)


# Two that creep eat the reserve while three stand still, whose turns then come when it is nearly gone.
CREEPING = [
    _job(0, Priority.LOW, 0, 308, 701),
    _job(1, Priority.NORMAL, 208, 196, 50),
    _job(2, Priority.LOW, 0, 216, 827),
    _job(3, Priority.LOW, 0, 328, 318),
    _job(4, Priority.LOW, 0, 1, 20),
    _job(5, Priority.LOW, 0, 55, 37),
]


@given(jobs())
@example(CREEPING)
@settings(max_examples=40, deadline=None)
def test_whoever_fits_alone_ends_and_nobody_waits_for_ever(work: list[_Job]) -> None:
    """Each job takes what it wants, is done when it has it, and gives it back. Marks hold as the kernel's would."""
    work = [replace(job) for job in work]
    tick_ms, now_ms, marks = 100, 0, dict[str, int]()
    killed = set()
    while any(not job.done for job in work) and now_ms < 100_000:
        for job in work:
            if job.done or job.view.is_frozen:
                job.view = replace(job.view, growth_bytes_per_s=0)
                continue
            before = job.view.usage_bytes
            free = max(0, marks.get(job.view.session, 0) - before)
            speed = job.rate * tick_ms // 1000
            # Above the mark at a hundredth of the speed.
            taken = min(job.wanted - before, speed, free + speed // 100)
            growth = taken * 1000 // tick_ms
            job.view = replace(job.view, usage_bytes=before + taken, growth_bytes_per_s=growth)
            if before + taken >= job.wanted:
                job.done = True
        live = [job for job in work if not job.done]
        used = sum(job.view.usage_bytes for job in live)
        sessions = tuple(SessionView(job.view.session, job.view.priority) for job in live)
        seen = View(now_ms * MS, CAPACITY, CAPACITY - used, sessions, tuple(job.view for job in live))
        assert used <= CAPACITY, "the kernel would have killed"
        plan = decide(seen, BRISK)
        by_id = {job.view.id: job for job in live}
        for step in plan.steps:
            job = by_id[step.call.id]
            job.view = replace(job.view, hold=step.hold)
            if step.action is Action.KILLED:
                job.done = True
                killed.add(job.view.id)
        marks = {name: allowed + by_id[f"c{name[1:]}"].view.usage_bytes for name, allowed in plan.allowances}
        now_ms += tick_ms
    assert all(job.done for job in work), "somebody waits for ever"
    if sum(job.wanted for job in work) < CAPACITY - 2 * BRISK.margin_bytes(CAPACITY):
        assert not killed
