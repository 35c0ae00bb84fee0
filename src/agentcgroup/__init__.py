"""AgentCgroup: a kernel resource domain for every tool call of every coding agent."""

from typing import Final

__version__: Final = "0.1.0"
