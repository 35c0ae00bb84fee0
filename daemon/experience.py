"""What ended calls have taught, in memory: filled from the history at start, then with every call that ends.

Bounded in runs and in kinds of calls, so that an agent that runs a new script a second costs no more than this; looked
at when an intent is answered, so a figure is worked out once and kept until the next run of its kind.
"""

from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from agentcgroup.daemon.model import HistoryEntry, Suggestion
from agentcgroup.daemon.policy import suggest
from agentcgroup.daemon.policy.commands import command_class

# Of one kind of call the newest runs; with a half-life of days older ones would hardly count.
RUNS_KEPT: Final = 64
# Kinds of calls; the one that was not met for the longest time goes first.
KINDS_KEPT: Final = 2048


@dataclass(slots=True)
class _Kind:
    runs: deque[suggest.Run] = field(default_factory=lambda: deque(maxlen=RUNS_KEPT))
    suggestion: Suggestion | None = None


class Experience:
    """Kinds of calls by project and command class. Touched on one thread."""

    def __init__(self, rules: suggest.Rules) -> None:
        self._rules = rules
        self._kinds: OrderedDict[tuple[str, str], _Kind] = OrderedDict()

    def use_rules(self, rules: suggest.Rules) -> None:
        """From now on figures are made by `rules`, also of what was learned before."""
        self._rules = rules
        for kind in self._kinds.values():
            kind.suggestion = None

    def learn(self, entries: Iterable[HistoryEntry]) -> int:
        """Takes in ended calls, oldest first; how many of them taught something."""
        learned = 0
        for entry in entries:
            run = suggest.run_of(entry)
            key = suggest.key_of(entry)
            if run is None or not key[1]:
                continue
            kind = self._kinds.setdefault(key, _Kind())
            self._kinds.move_to_end(key)
            kind.runs.append(run)
            kind.suggestion = None
            learned += 1
            if len(self._kinds) > KINDS_KEPT:
                self._kinds.popitem(last=False)
        return learned

    def about(self, project: str, command: Sequence[str]) -> Suggestion:
        """What runs of `command` in `project` needed."""
        name = command_class(command)
        kind = self._kinds.get((project, name))
        if kind is None:
            return suggest.suggestion_of(project, name, (), self._rules)
        if kind.suggestion is None:
            kind.suggestion = suggest.suggestion_of(project, name, tuple(kind.runs), self._rules)
        return kind.suggestion
