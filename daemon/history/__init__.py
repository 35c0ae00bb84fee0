"""The history of ended calls: one SQLite file, written by one thread, bounded by age and size.

The controller calls `record` on its loop; that appends to a bounded queue. `list` reads in the caller's
thread and is meant for `asyncio.to_thread`. Whatever happens to the file, the daemon goes on and says
so: see HistoryStats.
"""

from agentcgroup.daemon.history.stats import DropCause, HistoryStats
from agentcgroup.daemon.history.store import DisabledHistory, HistoryStore, open_history

__all__ = ["DisabledHistory", "DropCause", "HistoryStats", "HistoryStore", "open_history"]
