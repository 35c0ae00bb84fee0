"""Feedback to agents and operators: one feed, many subscribers, each with a bounded queue that counts its losses."""

import asyncio
from collections import deque
from dataclasses import replace
from typing import Final, Protocol

from agentcgroup.daemon.model import Feedback

# Enough for a burst of a few hundred calls ending at once; a subscriber slower than that loses the oldest and is told.
QUEUE_LENGTH: Final = 1024


class Subscription:
    """An asynchronous iterator of Feedback; ends after `close()` once the queue is empty."""

    def __init__(self, feed: "Feed", session: str | None, call_id: str) -> None:
        self._feed = feed
        self.session = session
        self._call_id = call_id
        self._queue: deque[Feedback] = deque()
        self._lost = 0
        self._wake = asyncio.Event()
        self._closed = False

    def offer(self, message: Feedback, lineage: tuple[str, ...]) -> bool:
        """Queues `message` if it is for this subscriber. False: an older one had to go for it."""
        if self.session is not None and message.session != self.session:
            return True
        if self._call_id and self._call_id not in lineage:
            return True
        fits = len(self._queue) < QUEUE_LENGTH
        if not fits:
            self._queue.popleft()
            self._lost += 1
        self._queue.append(message)
        self._wake.set()
        return fits

    def close(self) -> None:
        self._closed = True
        self._wake.set()
        self._feed.drop(self)

    def __aiter__(self) -> "Subscription":
        return self

    async def __anext__(self) -> Feedback:
        while not self._queue:
            if self._closed:
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()
        message = self._queue.popleft()
        return replace(message, lost=self._lost) if self._lost else message


class Ear(Protocol):
    """Whoever keeps the present state of a session rather than a queue of what was said."""

    def hear(self, message: Feedback) -> None: ...
    def forget(self, call_id: str) -> None:
        """What was said last about the memory of a call no longer holds, and that was not worth a message."""


class Feed:
    """Where the controller publishes; numbers the messages of each session."""

    def __init__(self) -> None:
        self._subscriptions: list[Subscription] = []
        self._sequences: dict[str, int] = {}
        self._attending: dict[str, list[Ear]] = {}
        self.dropped = 0

    @property
    def subscribers(self) -> int:
        return len(self._subscriptions)

    def subscribe(self, session: str | None, call_id: str = "") -> Subscription:
        """`session` None hears every session; `call_id` narrows to that call and what runs inside it."""
        subscription = Subscription(self, session, call_id)
        self._subscriptions.append(subscription)
        return subscription

    def attend(self, session: str, ear: Ear) -> None:
        """`ear` hears each message of `session` as it is published."""
        self._attending.setdefault(session, []).append(ear)

    def leave(self, session: str, ear: Ear) -> None:
        attending = self._attending.get(session, [])
        if ear in attending:
            attending.remove(ear)
        if not attending:
            self._attending.pop(session, None)

    def go_on(self, session: str, sequence: int) -> None:
        """The messages of `session` were numbered up to `sequence` by an earlier daemon."""
        self._sequences[session] = max(sequence, self._sequences.get(session, 0))

    def calm(self, session: str, call_id: str) -> None:
        """What was said last about the memory of a call no longer holds: see Ear.forget."""
        for ear in self._attending.get(session, ()):
            ear.forget(call_id)

    def drop(self, subscription: Subscription) -> None:
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)

    def publish(self, message: Feedback, lineage: tuple[str, ...] = ()) -> None:
        sequence = self._sequences.get(message.session, 0) + 1
        self._sequences[message.session] = sequence
        attending = self._attending.get(message.session, ())
        if not self._subscriptions and not attending:
            return
        numbered = replace(message, sequence=sequence)
        for ear in attending:
            ear.hear(numbered)
        for subscription in self._subscriptions:
            if not subscription.offer(numbered, lineage):
                self.dropped += 1

    def end_session(self, name: str) -> None:
        """Closes the streams of a session that is gone."""
        for subscription in [each for each in self._subscriptions if each.session == name]:
            subscription.close()
        self._sequences.pop(name, None)
