"""An agent runtime for tests: a shell in a session of its own that starts what a test tells it to."""

import contextlib
import os
import subprocess
from pathlib import Path

from agentcgroup.client import Call, HistoryEntry, OperatorClient
from agentcgroup.client.errors import ClientError
from tests.running import LAUNCHER, RunningDaemon, wait_until


class Agent:
    """`agentcg session run NAME -- bash`, its commands on standard input."""

    def __init__(
        self, daemon: RunningDaemon, operator: OperatorClient, rule: str, name: str, memory: str = "2G"
    ) -> None:
        self.daemon, self.operator, self.name = daemon, operator, name
        self.shell = subprocess.Popen(
            [str(LAUNCHER), "session", "run", name, "--memory", memory, "--transparent", rule, "--", "bash"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"AGENTCGROUP_OPERATOR_SOCKET": str(daemon.operator_socket)},
        )
        self.run(":")

    def run(self, script: str) -> str:
        """Runs `script` to its end; what it said."""
        assert self.shell.stdin is not None and self.shell.stdout is not None
        self.shell.stdin.write(f"{script}\necho done-$?\n")
        self.shell.stdin.flush()
        said = ""
        while not (line := self.shell.stdout.readline()).startswith("done-"):
            assert line, "the agent has ended"
            said += line
        return said

    def begin(self, script: str) -> None:
        """As `run`, without waiting."""
        assert self.shell.stdin is not None
        self.shell.stdin.write(f"{script}\n")
        self.shell.stdin.flush()

    def calls(self, count: int = 1) -> list[Call]:
        """The live calls, when there are `count`."""
        wait_until(lambda: len(self.operator.calls(self.name)) == count, what=f"{count} calls")
        return self.operator.calls(self.name)

    def ended(self, count: int = 1) -> list[HistoryEntry]:
        """The calls that have ended, oldest first, when there are `count`."""
        wait_until(lambda: len(list(self.operator.history(self.name))) >= count, what=f"{count} ended calls")
        return list(reversed(list(self.operator.history(self.name))))

    def commands(self, count: int = 1) -> list[tuple[str, ...]]:
        return [entry.intent.command for entry in self.ended(count)]

    def end(self) -> None:
        with contextlib.suppress(ClientError):
            self.operator.remove_session(self.name)
        self.shell.communicate(timeout=30)


def cgroup_of(pid: int) -> str:
    lines = Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8").splitlines()
    return next(line for line in lines if line.startswith("0::"))
