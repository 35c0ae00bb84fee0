"""Decisions as rows of the table `events`, and the questions that are asked of it.

A row's id is the event's number, which rises in time (agentcgroup.daemon.model.event_id), so the primary key is the order.
"""

import logging
import sqlite3
from typing import Final

import msgspec

from agentcgroup.daemon.history import pages, rows
from agentcgroup.daemon.model import Action, Actor, Event, HistoryEntry, Inputs, Story, event_id

LOGGER: Final = logging.getLogger(__name__)

COLUMNS: Final = (
    *(
        "id",
        "at_ns",
        "session",
        "call_id",
        "actor",
        "action",
        "reason",
        "inputs",
        "deadline_at_ns",
        "dry_run",
    ),
)
# Of one call's story this many decisions are told, the newest.
STORY_MAX: Final = 1000

_SELECT: Final = f"SELECT {', '.join(COLUMNS)} FROM events"


def number_of(event: Event) -> int:
    return int(event.id.removeprefix("e-"), 16)


def encode(event: Event) -> rows.Row:
    """`event` as values for COLUMNS. Raises ValueError when no row can be made of it."""
    row: rows.Row = (
        number_of(event),
        event.at_ns,
        event.session,
        event.call_id,
        event.actor.value,
        event.action.value,
        rows.clean(event.reason),
        rows.clean(msgspec.json.encode(event.inputs).decode()),
        event.deadline_at_ns,
        int(event.dry_run),
    )
    return rows.checked(row)


def decode(row: rows.Row) -> Event:
    """The event that `encode` made `row` of. Raises BadRow."""
    number, at_ns, session, call_id, actor, action, reason, inputs, deadline_at_ns, dry_run = row
    try:
        return Event(
            id=event_id(int(number or 0)),
            at_ns=int(at_ns or 0),
            session=str(session),
            call_id=str(call_id),
            actor=Actor(str(actor)),
            action=Action(str(action)),
            reason=str(reason),
            inputs=msgspec.json.decode(str(inputs), type=Inputs),
            deadline_at_ns=None if deadline_at_ns is None else int(deadline_at_ns),
            dry_run=bool(dry_run),
        )
    except (ValueError, TypeError, msgspec.MsgspecError) as error:
        raise rows.BadRow(f"event {number}: {error}") from error


def last_number(database: sqlite3.Connection) -> int:
    """The number of the newest event, 0 when there is none. Raises sqlite3.Error."""
    ((number,),) = database.execute("SELECT coalesce(max(id), 0) FROM events").fetchall()
    return int(number)


def read_page(
    database: sqlite3.Connection, session: str, call_id: str, before: int | None, size: int
) -> tuple[list[Event], str]:
    """At most `size` events, newest first, and the token of the next page, "" at the end. Raises sqlite3.Error."""
    conditions, values = ["1"], list[int | str]()
    for condition, value in (
        ("id < ?", before),
        ("session = ?", session or None),
        ("call_id = ?", call_id or None),
    ):
        if value is not None:
            conditions.append(condition)
            values.append(value)
    found = database.execute(
        f"{_SELECT} WHERE {' AND '.join(conditions)} ORDER BY id DESC LIMIT ?", (*values, size + 1)
    ).fetchall()
    page = found[:size]
    return _decoded(page), pages.token_before(page[-1][0]) if len(found) > size else ""


def read_story(database: sqlite3.Connection, call_id: str, session: str, since_ns: int) -> Story:
    """What happened to `call_id`, of `session` when that is not "", since `since_ns`. Raises sqlite3.Error.

    Decisions about its whole session or the host are part of the story as long as the call was there; what other calls
    were refused is not.
    """
    theirs: tuple[str | int, ...] = (call_id, session, session, since_ns)
    condition = "call_id = ? AND (? = '' OR session = ?) AND at_ns >= ?"
    ((first, last, count, owner),) = database.execute(
        f"SELECT min(id), max(id), count(*), max(session) FROM events WHERE {condition}", theirs
    ).fetchall()
    entry = _entry(database, call_id, session, since_ns)
    if first is None:
        return Story(entry, ())
    until = last if entry is not None else (1 << 63) - 1
    around = f"{_SELECT} WHERE session IN (?, '') AND call_id = '' AND id BETWEEN ? AND ? AND action <> '{Action.REFUSED}'"
    found = database.execute(
        f"{_SELECT} WHERE {condition} UNION ALL {around} ORDER BY id DESC LIMIT ?",
        (*theirs, owner, first, until, STORY_MAX),
    ).fetchall()
    return Story(entry, tuple(reversed(_decoded(found))), left_out=max(0, count - STORY_MAX))


def _entry(database: sqlite3.Connection, call_id: str, session: str, since_ns: int) -> HistoryEntry | None:
    for row in database.execute(
        f"SELECT {', '.join(rows.COLUMNS)} FROM calls WHERE call_id = ? AND (? = '' OR session = ?) "
        "AND ended_at_ns >= ? ORDER BY id DESC LIMIT 1",
        (call_id, session, session, since_ns),
    ):
        try:
            return rows.decode(row)
        except rows.BadRow as error:
            LOGGER.warning("history: a row is left out: %s", error)
    return None


def _decoded(found: list[rows.Row]) -> list[Event]:
    events = []
    for row in found:
        try:
            events.append(decode(row))
        except rows.BadRow as error:
            # A later version may have written words that this one does not know.
            LOGGER.warning("history: a row is left out: %s", error)
    return events
