"""The agent's ear: reads the session's feedback stream in a thread and keeps what it heard, by call."""

import threading
import time
from typing import Final

from agentcgroup.client import Client, ClientError, Feedback, FeedbackKind, Report

# A call's report comes when its last process is gone, which takes as long as the machine is slow.
REPORT_PATIENCE_S: Final = 60.0


class Ear:
    """Listens until it is closed or the session ends."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._changed = threading.Condition()
        self._reports: dict[str, Feedback] = {}
        self._problem: ClientError | None = None
        self._is_closed = False
        self._is_ready = False
        self.heard = 0
        self.lost = 0
        self._thread = threading.Thread(target=self._listen, name="feedback", daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        try:
            for message in self._client.watch():
                with self._changed:
                    self._note(message)
                    self._changed.notify_all()
        except ClientError as error:
            with self._changed:
                if not self._is_closed:
                    self._problem = error
                self._changed.notify_all()

    def _note(self, message: Feedback) -> None:
        self.heard += 1
        self.lost = max(self.lost, message.lost)
        if message.kind is FeedbackKind.HELLO:
            self._is_ready = True
        if message.kind is FeedbackKind.ENDED and message.report is not None:
            self._reports[message.call_id] = message

    def _wait(self, what: str, deadline: float) -> None:
        if self._problem is not None:
            raise self._problem
        left_s = deadline - time.monotonic()
        if left_s <= 0 or not self._thread.is_alive():
            raise TimeoutError(f"{what} did not come on the feedback stream")
        self._changed.wait(min(left_s, 1.0))

    def wait_ready(self) -> None:
        """Comes back when the stream has begun, so that nothing said later is missed."""
        deadline = time.monotonic() + REPORT_PATIENCE_S
        with self._changed:
            while not self._is_ready:
                self._wait("the first message", deadline)

    def report_of(self, call_id: str) -> Report:
        """The report of a call, as soon as the stream has brought it. Raises TimeoutError or ClientError."""
        deadline = time.monotonic() + REPORT_PATIENCE_S
        with self._changed:
            while call_id not in self._reports:
                self._wait(f"the report of call {call_id}", deadline)
            report = self._reports[call_id].report
        if report is None:
            raise TimeoutError(f"the end of call {call_id} came without a report")
        return report

    def close(self) -> None:
        """Stops listening."""
        with self._changed:
            self._is_closed = True
        self._client.close()
        self._thread.join(5.0)
