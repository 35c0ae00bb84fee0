"""The operator's eye: follows the daemon's events and samples its sessions, and passes both on as they come."""

import threading
import time
from collections.abc import Callable
from typing import Final

from agentcgroup.client import Call, CallState, ClientError, Feedback, OperatorClient, Session
from demo.records import Event, Said, Sampled, SessionSample, Told

SAMPLE_EVERY_S: Final = 1.0
RUNNING: Final = frozenset({CallState.RUNNING, CallState.FROZEN, CallState.ENDING})

Sink = Callable[[Event], None]


class Clock:
    """Seconds since the job began, for what is shown."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def now_s(self) -> float:
        return time.monotonic() - self._start


def told(feedback: Feedback, at_s: float) -> Told:
    """A message of the daemon, to be shown."""
    return Told(
        at_s=at_s,
        session=feedback.session,
        kind=str(feedback.kind or ""),
        text=feedback.message,
        advice=feedback.advice,
        verdict=str(feedback.report.verdict) if feedback.report else "",
    )


def sample_of(session: Session, calls: list[Call]) -> SessionSample:
    """How one session stands."""
    running = [call for call in calls if call.session == session.name and call.state in RUNNING]
    return SessionSample(
        name=session.name,
        priority=str(session.priority or ""),
        memory_current_bytes=session.usage.memory_current_bytes,
        memory_peak_bytes=session.usage.memory_peak_bytes,
        memory_reserved_bytes=session.memory_reserved_bytes,
        memory_max_bytes=session.budget.memory_max_bytes,
        running=tuple(
            call.intent.labels.get("step") or " ".join(call.intent.command)[:40] for call in running
        ),
    )


class Watch:
    """Two threads that live until `close`."""

    def __init__(self, operator: OperatorClient, clock: Clock, sink: Sink, *, samples: bool) -> None:
        self._operator = operator
        self._clock = clock
        self._sink = sink
        self._is_over = threading.Event()
        self._follower = threading.Thread(target=self._follow, name="events", daemon=True)
        self._sampler = threading.Thread(target=self._sample, name="samples", daemon=True)
        self._follower.start()
        if samples:
            self._sampler.start()

    def _follow(self) -> None:
        try:
            for feedback in self._operator.watch():
                self._sink(told(feedback, self._clock.now_s()))
        except ClientError as error:
            self._stopped(error)

    def _sample(self) -> None:
        try:
            while not self._is_over.wait(SAMPLE_EVERY_S):
                calls = self._operator.calls()
                sessions = self._operator.sessions()
                host = self._operator.host()
                self._sink(Sampled(
                    at_s=self._clock.now_s(), memory_current_bytes=host.memory_current_bytes,
                    memory_capacity_bytes=host.memory_capacity_bytes,
                    sessions=tuple(sample_of(session, calls) for session in sessions),
                ))  # fmt: skip
        except ClientError as error:
            self._stopped(error)

    def _stopped(self, error: ClientError) -> None:
        if not self._is_over.is_set():
            self._sink(Said(self._clock.now_s(), f"the live view has lost the daemon: {error}"))

    def close(self) -> None:
        """Stops both; the client they use is closed with them."""
        self._is_over.set()
        if self._sampler.ident is not None:
            self._sampler.join(10.0)
        # A stream ends with its channel.
        self._operator.close()
        self._follower.join(5.0)
