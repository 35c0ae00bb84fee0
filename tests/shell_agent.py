"""An agent runtime for tests, with what became of the tools that it was told to start."""

import contextlib
from pathlib import Path

from agentcgroup.client import Call, HistoryEntry, OperatorClient
from agentcgroup.client.errors import ClientError
from bench.shell import AgentShell
from tests.running import RunningDaemon, wait_until


class Agent(AgentShell):
    def __init__(
        self, daemon: RunningDaemon, operator: OperatorClient, rule: str, name: str, memory: str = "2G"
    ) -> None:
        self.daemon, self.operator, self.name = daemon, operator, name
        super().__init__(daemon.operator_socket, name, memory=memory, rule=rule)

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
        super().end()


def cgroup_of(pid: int) -> str:
    lines = Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8").splitlines()
    return next(line for line in lines if line.startswith("0::"))
