"""What earlier calls teach: offered in answers, and the default of a call that declares nothing."""

import dataclasses
from collections.abc import Iterable, Sequence

from agentcgroup.daemon.controller.core import Core
from agentcgroup.daemon.model import Action, HistoryEntry, Intent, Session, Suggestion, ToolCall
from agentcgroup.daemon.policy import admission, grounds, suggest
from agentcgroup.daemon.policy.admission import CallDefaults
from agentcgroup.proto.quantity import format_size


class Learning(Core):
    def learn_from(self, entries: Iterable[HistoryEntry]) -> int:
        """Takes in what the history kept, oldest first; how many calls taught something."""
        return self._experience.learn(entries)

    def suggestion(self, command: Sequence[str], project: str | None, session: str | None) -> Suggestion:
        """What runs of `command` needed, in `project` or, when that is None, in the project of `session`."""
        if project is None:
            labels = self._ledger.session(session).labels if session is not None else ()
            project = suggest.project_of((), labels)
        return self._experience.about(project, command)

    def _learned(self, intent: Intent, session: Session) -> Suggestion | None:
        """The figure for a call with `intent`; None when there is none, or suggestions are switched off."""
        if not self.config.suggest.enabled or not intent.command:
            return None
        found = self._experience.about(suggest.project_of(intent.labels, session.labels), intent.command)
        return found if found.memory_bytes is not None or found.expected_duration_ms is not None else None

    def _defaults_of(self, intent: Intent, learned: Suggestion | None) -> CallDefaults:
        """What a call gets that does not say otherwise: the configuration's, with the learned need when none is declared."""
        if learned is None or learned.memory_bytes is None or intent.memory_bytes is not None:
            return self._defaults
        return dataclasses.replace(self._defaults, memory_bytes=learned.memory_bytes)

    def _reserve_learned(self, call: ToolCall) -> None:
        """What runs is known only now: reserves what runs like it needed, as far as there is room, if nothing was declared.

        Only the reservation changes. Where memory.high stands on it, it stays.
        """
        limits = call.limits
        if call.intent.memory_bytes is not None or limits.memory_high_bytes is not None or call.parent_id:
            return
        session = self._ledger.session(call.session)
        learned = self._learned(call.intent, session)
        if learned is None or learned.memory_bytes is None:
            return
        self._make_way(session, learned.memory_bytes - limits.memory_bytes)
        room = admission.memory_available_bytes(self._session_view(session), self._host_view())
        memory_bytes = min(
            learned.memory_bytes, limits.memory_bytes + room, limits.memory_max_bytes or learned.memory_bytes
        )
        if memory_bytes == limits.memory_bytes:
            return
        self._ledger.relimit(call, dataclasses.replace(limits, memory_bytes=memory_bytes))
        words = f"Reserved {format_size(memory_bytes)} instead of {format_size(limits.memory_bytes)}: {learned.reason}"
        self._decided(Action.RELIMITED, call.session, words, call=call, because=grounds.of_learned(learned))
