"""Reading what the daemon says as an agent would: the options it proposes, out of its sentences."""

import re
from typing import Final

# Options of `agentcg run` that carry a limit; a size, a number or a time follows them.
_OPTION: Final = re.compile(r"--(memory-max|memory|pids|timeout|cpu) (\d+(?:\.\d+)?[a-zA-Z]*)")


def options_in(text: str) -> dict[str, str]:
    """The options proposed in `text`, each as it first stands there: {"memory": "384M", "memory-max": "384M"}."""
    found: dict[str, str] = {}
    for name, value in _OPTION.findall(text):
        found.setdefault(name, value)
    return found
