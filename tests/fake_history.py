"""A history in memory."""

from dataclasses import dataclass, field

from agentcgroup.daemon.errors import Kind, RequestError
from agentcgroup.daemon.model import Event, HistoryEntry, Story, Verdict


@dataclass(slots=True)
class FakeHistory:
    """Keeps entries, newest first when listed; the page token is the number of entries given so far."""

    entries: list[HistoryEntry] = field(default_factory=list)
    noted: list[Event] = field(default_factory=list)
    last_event_number: int = 0

    def record(self, entry: HistoryEntry) -> None:
        self.entries.append(entry)

    def note(self, event: Event) -> None:
        self.noted.append(event)

    @staticmethod
    def _place(page_token: str) -> int:
        if not page_token.isdigit() and page_token:
            raise RequestError(
                Kind.INVALID, "page_token is none of this history", "send it unchanged", "page_token"
            )
        return int(page_token or 0)

    def story(self, call_id: str, session: str = "", since_ns: int = 0) -> Story:
        entries = (
            each
            for each in self.entries
            if each.report.call_id == call_id
            and session in ("", each.report.session)
            and each.report.ended_at_ns >= since_ns
        )
        return Story(
            next(entries, None),
            tuple(
                each
                for each in self.noted
                if each.call_id == call_id and session in ("", each.session) and each.at_ns >= since_ns
            ),
        )

    def events(
        self, session: str = "", call_id: str = "", page_size: int = 0, page_token: str = ""
    ) -> tuple["list[Event]", str]:
        matching = [
            each
            for each in reversed(self.noted)
            if session in ("", each.session) and call_id in ("", each.call_id)
        ]
        start = self._place(page_token)
        end = start + (page_size or 100)
        return matching[start:end], str(end) if end < len(matching) else ""

    def list(
        self, session: str = "", verdict: Verdict | None = None, page_size: int = 0, page_token: str = ""
    ) -> tuple["list[HistoryEntry]", str]:
        matching = [
            entry
            for entry in reversed(self.entries)
            if session in ("", entry.report.session) and verdict in (None, entry.report.verdict)
        ]
        start = self._place(page_token)
        end = start + (page_size or 100)
        return matching[start:end], str(end) if end < len(matching) else ""
