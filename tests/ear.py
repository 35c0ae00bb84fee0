"""Listens to a feedback stream in a thread, so that a test can wait for what it expects to be told."""

import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

from agentcgroup.client import Client, ClientError, Feedback, FeedbackKind, OperatorClient, Report


class Ear:
    """Collects every message of `stream`; use as a context manager, so that it hears before anything happens."""

    def __init__(self, client: Client | OperatorClient) -> None:
        self._client = client
        self._heard: list[Feedback] = []
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def _listen(self) -> None:
        stream: Iterator[Feedback] = self._client.watch()
        try:
            for message in stream:
                with self._news:
                    self._heard.append(message)
                    self._news.notify_all()
        except ClientError:
            return

    def __enter__(self) -> Self:
        self._thread.start()
        self.wait(lambda message: message.kind is FeedbackKind.HELLO, what="the hello")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._client.close()
        self._thread.join(10)

    @property
    def heard(self) -> list[Feedback]:
        with self._news:
            return list(self._heard)

    def wait(self, wanted: Callable[[Feedback], bool], *, what: str, deadline_s: float = 60.0) -> Feedback:
        """The first message that is `wanted`, heard already or to come."""

        def found() -> Feedback | None:
            return next((message for message in self._heard if wanted(message)), None)

        with self._news:
            self._news.wait_for(lambda: found() is not None, deadline_s)
            message = found()
            assert message is not None, f"{what} was not heard within {deadline_s:g} s, but: {self._heard}"
            return message

    def report(self, call_id: str) -> Report:
        """The report of a call, when it ends."""
        message = self.wait(
            lambda each: each.kind is FeedbackKind.ENDED and each.call_id == call_id,
            what=f"the end of {call_id}",
        )
        assert message.report is not None
        return message.report
