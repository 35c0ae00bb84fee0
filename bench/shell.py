"""A shell that starts what it is told to: the agent runtime of benchmarks and of tests on a real kernel."""

import itertools
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

LAUNCHER: Final = Path(sys.executable).parent / "agentcg"
_ENDS_WITHIN_S: Final = 120.0


class Shell:
    """`command`, at last a shell, with its commands on standard input; one after the other, like typed lines."""

    def __init__(
        self, command: Sequence[str] = ("bash",), environment: dict[str, str] | None = None
    ) -> None:
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | (environment or {}),
        )
        self._scripts = itertools.count(1)

    @property
    def pid(self) -> int:
        return self.process.pid

    def begin(self, script: str) -> None:
        """Without waiting."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{script}\n")
        self.process.stdin.flush()

    def run(self, script: str) -> str:
        """Until `script`, and what was begun before, has ended; what they wrote. Raises EOFError when the shell is gone."""
        assert self.process.stdout is not None
        end = f"=end {next(self._scripts)}=\n"
        self.begin(f"{script}\necho '{end.strip()}'")
        said = ""
        while (line := self.process.stdout.readline()) != end:
            if not line:
                raise EOFError(f"the shell has ended; {script!r} has written {said!r}")
            said += line
        return said

    def end(self) -> None:
        """As at the end of its input; a shell that has ended already is no error."""
        self.process.communicate(timeout=_ENDS_WITHIN_S)


class AgentShell(Shell):
    """`agentcg session run NAME -- bash`: in a session of its own, where `rule` (docs/transparent.md) makes tools calls."""

    def __init__(self, operator_socket: Path, session: str, *, memory: str, rule: str) -> None:
        command = ["session", "run", session, "--memory", memory, "--transparent", rule, "--", "bash"]
        super().__init__((str(LAUNCHER), *command), {"AGENTCGROUP_OPERATOR_SOCKET": str(operator_socket)})
        self.run(":")
