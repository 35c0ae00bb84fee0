"""A coding agent without a model: twenty tool calls, each declared too small, and one rule for what to do about it.

    python scripted_agent.py heed|ignore

Runs in its session's agent leaf. After a call that ended badly it declares it again, at most twice: `heed` declares what
the message about that call says would be granted, `ignore` what it declared before. Prints one JSON object: for each call
how often it was declared again and how it ended.
"""

import json
import subprocess
import sys
import threading
from dataclasses import dataclass
from typing import Final

from agentcgroup.client import Client, Feedback, FeedbackKind, Verdict
from agentcgroup.client.places import launcher

MIB: Final = 1 << 20
MOST_FURTHER_DECLARATIONS: Final = 2
# What each tool needs, and what the agent believes that it needs: from four tenths to nine tenths of it.
NEEDS_MIB: Final = tuple(30 + 2 * each for each in range(20))
BELIEVED_TENTHS: Final = (4, 5, 6, 7, 8, 9)
ANSWER_DEADLINE_S: Final = 100.0


@dataclass(frozen=True)
class Outcome:
    need_mib: int
    declared_mib: int
    further_declarations: int
    verdict: str


class Inbox:
    """The last word about the end of each call, off the session's stream."""

    def __init__(self, client: Client) -> None:
        self._ends: dict[str, Feedback] = {}
        self._news = threading.Condition()
        self._stream = client.watch()
        next(self._stream)
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for message in self._stream:
            if message.kind is FeedbackKind.ENDED:
                with self._news:
                    self._ends[message.call_id] = message
                    self._news.notify_all()

    def end_of(self, call_id: str) -> Feedback:
        with self._news:
            self._news.wait_for(lambda: call_id in self._ends, ANSWER_DEADLINE_S)
            return self._ends[call_id]


def tool(need_mib: int) -> list[str]:
    """A command that holds so much at its end, and is at home everywhere."""
    return ["dd", "if=/dev/zero", "of=/dev/null", f"bs={need_mib}M", "count=1", "status=none"]


def work(inbox: Inbox, number: int, *, heeds: bool) -> Outcome:
    need_mib = NEEDS_MIB[number]
    declared_mib = believed_mib = need_mib * BELIEVED_TENTHS[number % len(BELIEVED_TENTHS)] // 10
    verdict = Verdict.UNKNOWN
    # Who does not listen says the same again, which ends the same again: once shows it.
    for further in range((MOST_FURTHER_DECLARATIONS if heeds else 1) + 1):
        # Every other tool is to be slowed down at what it declared, the rest is stopped there.
        limits = ["--memory", f"{declared_mib}M"]
        if number % 2:
            limits += ["--on-exceed", "throttle", "--throttle-limit", "500ms"]
        else:
            limits += ["--memory-max", f"{declared_mib}M"]
        done = subprocess.run(
            [launcher(), "run", "--json", *limits, "--", *tool(need_mib)],
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        end = inbox.end_of(json.loads(done.stderr.splitlines()[0])["call_id"])
        verdict = (end.report and end.report.verdict) or Verdict.UNKNOWN
        if verdict is Verdict.OK:
            return Outcome(need_mib, believed_mib, further, verdict)
        told = end.ladder
        if heeds and told is not None and told.memory_to_ask_bytes is not None:
            declared_mib = told.memory_to_ask_bytes // MIB
    return Outcome(need_mib, believed_mib, further, verdict)


def main() -> None:
    with Client() as client:
        inbox = Inbox(client)
        outcomes = [work(inbox, number, heeds=sys.argv[1] == "heed") for number in range(len(NEEDS_MIB))]
    print(json.dumps([vars(each) for each in outcomes]))


if __name__ == "__main__":
    main()
