"""What a benchmark hears of its calls, and how it begins them."""

import contextlib
import queue
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from agentcgroup.client import Client, ClientError, Feedback, FeedbackKind
from bench.spawning import BenchError
from bench.subject import SESSION, Subject

WITHIN_S: Final = 120.0


class Ear:
    """Every message of the session with the time of its arrival, in ns of CLOCK_BOOTTIME."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._heard: queue.Queue[tuple[int, Feedback]] = queue.Queue()
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def _listen(self) -> None:
        with contextlib.suppress(ClientError):
            for message in self._client.watch():
                self._heard.put((time.clock_gettime_ns(time.CLOCK_BOOTTIME), message))

    def __enter__(self) -> "Ear":
        self._thread.start()
        self.until(FeedbackKind.HELLO)
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()
        self._thread.join(10)

    def of_call(self, call_id: str, last: FeedbackKind) -> list[tuple[int, Feedback]]:
        """The next messages about one call, up to the first of kind `last`. Raises BenchError."""
        found: list[tuple[int, Feedback]] = []
        while not found or found[-1][1].kind is not last:
            at_ns, message = self._next(last)
            if message.call_id == call_id:
                found.append((at_ns, message))
        return found

    def _next(self, wanted: FeedbackKind) -> tuple[int, Feedback]:
        try:
            return self._heard.get(timeout=WITHIN_S)
        except queue.Empty:
            raise BenchError(f"no {wanted} came within {WITHIN_S:g} s") from None

    def until(self, *kinds: FeedbackKind) -> dict[FeedbackKind, tuple[int, Feedback]]:
        """The next messages up to one of the last of `kinds`; of those, by kind. Raises BenchError."""
        found: dict[FeedbackKind, tuple[int, Feedback]] = {}
        while kinds[-1] not in found:
            at_ns, message = self._next(kinds[-1])
            if message.kind in kinds:
                found.setdefault(message.kind, (at_ns, message))
        return found


def launch(
    subject: Subject, *command: str, options: Sequence[str] = (), from_agent: bool = False
) -> list[str]:
    launcher = [
        str(Path(sys.executable).parent / "agentcg"), "run", "--quiet", "--session-dir", subject.session_dir, *options,
        "--", *command,
    ]  # fmt: skip
    if not from_agent:
        return launcher
    leaf = subject.root / SESSION / "agent" / "cgroup.procs"
    return ["/bin/sh", "-c", f'echo $$ > {leaf} && exec "$@"', "sh", *launcher]
