"""Decisions are kept beside the calls: in order, in bounds, and told call by call. Real SQLite throughout."""

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from agentcgroup.daemon.errors import Kind, RequestError
from agentcgroup.daemon.history import DisabledHistory, DropCause, HistoryStore, events, waiting
from agentcgroup.daemon.model import Action, Actor, Event, event_id
from tests.running import wait_until
from tests.unit.daemon.history.entries import DAY_NS, NOW_NS, Make, entry


def event(number: int, call_id: str = "c1", session: str = "alpha", **changes: object) -> Event:
    at_ns = NOW_NS + number * 1000
    made = Event(
        id=event_id(at_ns // 1000),
        at_ns=at_ns,
        session=session,
        call_id=call_id,
        actor=Actor.POLICY,
        action=Action.GRANTED,
        reason=f"reason {number}",
        inputs=(("memory_bytes", 1 << 30), ("verdict", "ok")),
    )
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["memory_bytes", "verdict", "exit_code"]),
            st.integers(-(2**62), 2**62) | st.text(),
        ),
        max_size=5,
    ),
    st.text(),
)
def test_an_event_comes_back_whole(inputs: list[tuple[str, int | str]], reason: str) -> None:
    full = event(
        1,
        inputs=tuple(inputs),
        reason=reason.encode(errors="replace").decode(),
        deadline_at_ns=7,
        dry_run=True,
    )
    clean = dataclasses.replace(
        full,
        inputs=tuple(
            (name, value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value)
            for name, value in full.inputs
        ),
    )
    assert events.decode(events.encode(clean)) == clean


def test_pages_go_from_the_newest_back_and_know_session_and_call(make: Make) -> None:
    store = make()
    for number in range(25):
        store.note(event(number, call_id=f"c{number % 2}", session="alpha" if number < 20 else "beta"))
    first, token = store.events(page_size=10)
    second, token = store.events(page_size=10, page_token=token)
    last, end = store.events(page_size=10, page_token=token)
    assert [each.reason for each in first + second + last] == [f"reason {n}" for n in reversed(range(25))]
    assert end == ""
    assert [each.reason for each in store.events("beta", "c1")[0]] == ["reason 23", "reason 21"]
    with pytest.raises(RequestError) as caught:
        store.events(page_token="x")
    assert caught.value.kind is Kind.INVALID


def test_a_story_has_the_call_and_what_befell_its_session_meanwhile(make: Make) -> None:
    store = make()
    store.note(event(0, call_id="", action=Action.FROZEN, reason="before it"))
    store.note(event(1, reason="granted"))
    store.note(event(2, call_id="c2", reason="another call"))
    store.note(event(3, call_id="", action=Action.FROZEN, reason="session frozen"))
    store.note(event(4, call_id="", action=Action.REFUSED, reason="another call refused"))
    store.note(event(5, call_id="", session="", action=Action.DRAINED, reason="host drained"))
    store.note(event(6, call_id="", session="beta", action=Action.FROZEN, reason="another session"))
    assert [each.reason for each in store.story("c1").events] == [
        "granted",
        "session frozen",
        "host drained",
    ]
    store.note(event(7, action=Action.ENDED, reason="ended"))
    store.record(entry(1))
    store.note(event(8, call_id="", action=Action.THAWED, reason="after it"))
    story = store.story("c1")
    assert [each.reason for each in story.events] == ["granted", "session frozen", "host drained", "ended"]
    assert (story.entry, story.left_out) == (entry(1), 0)
    assert store.story("c1", "beta").events == ()
    assert store.story("c1", "alpha", NOW_NS + 10**9) == store.story("nothing") == type(story)(None, ())


def test_a_long_story_keeps_its_end_and_says_what_is_left_out(make: Make) -> None:
    store = make()
    for number in range(events.STORY_MAX + 7):
        store.note(event(number))
    story = store.story("c1")
    assert story.left_out == 7
    assert (story.events[0].reason, story.events[-1].reason) == (
        "reason 7",
        f"reason {events.STORY_MAX + 6}",
    )


def test_ids_go_on_above_the_newest_kept_after_a_restart(make: Make) -> None:
    store = make()
    assert store.last_event_number == 0
    store.note(event(5))
    store.close()
    assert make().last_event_number == events.number_of(event(5))
    assert event_id(5) < event_id(16) < event_id(NOW_NS // 1000)


def test_events_end_with_age_and_size_like_calls(make: Make, path: Path) -> None:
    store = make(size_bytes=1 << 20)
    old = NOW_NS // 1000 - 31 * DAY_NS // 1000
    store.note(event(0, id=event_id(old), at_ns=old * 1000, reason="too old"))
    for number in range(4000):
        store.note(event(number, reason="x" * 500))
        if number % 500 == 0:
            store.record(entry(number))
            store.events(page_size=1)
    found, _ = store.events(page_size=1000)
    assert found[0].id == event(3999).id
    stats = store.stats()
    assert stats.events_written == 4001
    assert stats.events_expired > 1500
    # The oldest rows go first, whichever table they are in; of few calls all stay.
    assert stats.entries == 8
    store.close()
    assert path.stat().st_size <= 1 << 20


def test_events_that_find_no_room_are_counted_apart_from_calls(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = HistoryStore(tmp_path / "file" / "h.sqlite3", keep_ms=1, size_bytes=1)
    store.record(entry(1))
    for number in range(waiting.WAITING_MAX + 2):
        store.note(event(number))
    wait_until(
        lambda: store.stats().events_dropped.get(DropCause.QUEUE_FULL) == 2, what="the queue to overflow"
    )
    assert store.stats().dropped[DropCause.QUEUE_FULL] == 1
    assert store.close()
    assert store.stats().events_dropped[DropCause.STOPPED] == waiting.WAITING_MAX


def test_an_event_that_makes_no_row_spares_the_others(make: Make) -> None:
    store = make()
    store.note(event(1, deadline_at_ns=2**70))
    store.note(event(2))
    assert [each.reason for each in store.events()[0]] == ["reason 2"]
    assert store.stats().events_dropped[DropCause.UNWRITABLE] == 1


def test_a_history_that_is_switched_off_has_no_story() -> None:
    history = DisabledHistory()
    history.note(event(1))
    for ask in (history.events, lambda: history.story("c1")):
        with pytest.raises(RequestError) as caught:
            ask()
        assert caught.value.kind is Kind.STATE
